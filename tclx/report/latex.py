"""A table for a paper: booktabs, with everything escaped that LaTeX would read as more than a letter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "±": r"$\pm$", "`": r"\textasciigrave{}",
    "--": "-{}-",
    # After a row's end, `[` begins a length and `*` forbids a page break.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_SPECIAL_CHARACTER = re.compile("|".join(map(re.escape, _SPECIAL)))
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


class Cell(NamedTuple):
    """One cell of a table of results."""

    text: str
    marked: bool = False
    """Bold, or a star where there is no bold."""


def escape(text: str) -> str:
    """Text as LaTeX prints it: with pdfLaTeX in T1 encoding, XeLaTeX or LuaLaTeX; a minus before a number is one."""
    parts = _MINUS.split(text)
    return "$-$".join(_SPECIAL_CHARACTER.sub(lambda found: _SPECIAL[found[0]], part) for part in parts)


def latex_table(rows: Sequence[Sequence[Cell]], *, said: str, foot: Sequence[Sequence[Cell]] = ()) -> str:
    r"""A `tabular` that needs `\usepackage{booktabs}` and, for `"` in a name, `\usepackage[T1]{fontenc}`.

    Args:
        rows: the head and the rows below it, equally long; the first column names the row.
        said: what the table shows, one line, as a comment above it.
        foot: rows below a rule.
    """
    head, *body = rows
    blocks = ["\n".join(map(_line, block)) for block in ([head], body, foot) if block]
    lines = ["\\toprule", "\n\\midrule\n".join(blocks), "\\bottomrule"]
    columns = "l" + "r" * (len(head) - 1)
    needs = "% \\usepackage{booktabs}, \\usepackage[T1]{fontenc}"
    return "\n".join([needs, f"% {said}", f"\\begin{{tabular}}{{{columns}}}", *lines, "\\end{tabular}"])


def _line(cells: Sequence[Cell]) -> str:
    shown = (f"\\textbf{{{escape(cell.text)}}}" if cell.marked else escape(cell.text) for cell in cells)
    return f"{' & '.join(shown)} \\\\"
