"""What may go to a terminal? Text in which whatever would steer it, or turn the reading direction, is spelled out.

Names of tensors, keys of annotations, paths, reasons in a run folder come from other people's files, and a terminal obeys what
they hold: it changes colours, titles, the clipboard, or shows other words than are there. All that is printed passes here.
"""

from __future__ import annotations

import json
import re

from tclx.errors import InputError, TclxError

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, separators, bidirectional
    "\ud800-\udfff"  # halves of a pair: no stream can encode them
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"  # formats of notations; tags
)


def printable(text: str) -> str:
    r"""The text with such characters as JSON spells them, `\u001b`; newlines and tabs stay. JSON stays the same JSON."""
    return _STEERING.sub(_spelled, text)


def one_line(text: str) -> str:
    r"""The same for a cell or a name: newlines and tabs are spelled out, too (`\n`)."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def error_lines(error: TclxError) -> list[str]:
    """What is wrong, a line for each problem; other errors may have several lines of their own."""
    if isinstance(error, InputError):
        return [one_line(str(problem)) for problem in error.problems]
    return [line for line in printable(str(error)).split("\n") if line] or [type(error).__name__]


def time_left(seconds: float | None) -> str:
    """Minutes and seconds, or hours and minutes; `-` where it is not known."""
    if seconds is None:
        return "-"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours}h{minutes % 60:02d}" if hours else f"{minutes}m{int(seconds % 60):02d}"


def _spelled(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
