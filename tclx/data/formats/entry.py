"""An entry of an annotation file, and why a file cannot be read."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 20
MAX_WHOLE_BYTES = 1 << 30
"""Of a file that is one JSON object and so has to be read at once: COCO's largest has 0.1 GiB."""
ROWS_WANTED = "expected rows with an image and its captions; docs/data.md shows every format"


class Unreadable(Exception):
    """What is wrong with a file (completes `PATH`), and what would be right."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint


class Entry(NamedTuple):
    """One row, whatever it is."""

    number: int
    """From 0."""
    line: int | None
    """Where it begins, the first being 1; None in a file without lines of its own."""
    value: Any
    name: str = "row"
    """What its list is called in the file."""

    @property
    def place(self) -> str:
        """Completes the file's path, up to what is wrong."""
        return f":{self.line}: {self.name} {self.number}" if self.line is not None else f": {self.name}[{self.number}]"


def text_encoding(head: bytes) -> str:
    """UTF-8, unless a byte-order mark or the zeros of plain characters say otherwise."""
    return json.detect_encoding(head[:4])


def text_lines(file: BinaryIO, head: bytes, *, max_characters: int) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers from 1, without line ends (Unix's or Windows').

    Args:
        file: read up to `head`.
        head: its first bytes.
        max_characters: of a line.

    Raises:
        Unreadable: it is not UTF-8 (or UTF-16 or UTF-32 with a byte-order mark), or a line is longer.
    """
    encoding = text_encoding(head)
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)("strict")
    rest, number, chunk = "", 1, head
    while chunk:
        try:
            rest += decoder.decode(chunk)
        except UnicodeDecodeError as error:
            line = number + rest.count("\n") + error.object[: error.start].count(b"\n")
            raise Unreadable(f":{line}: is not UTF-8 text: {error.reason}", "save it as UTF-8") from None
        *lines, rest = rest.split("\n")
        yield from ((place, text.removesuffix("\r")) for place, text in enumerate(lines, number))
        number += len(lines)
        if len(rest) > max_characters:
            raise Unreadable(f":{number}: is longer than {max_characters:,} characters", ROWS_WANTED)
        chunk = file.read(CHUNK_BYTES)
    if decoder.getstate()[0]:
        raise Unreadable(f":{number}: is not UTF-8 text: the file ends within a character", "was it cut short?")
    if rest:
        yield number, rest.removesuffix("\r")


def whole_object(file: BinaryIO, head: bytes) -> dict[str, Any]:
    """The one JSON object that a file holds.

    Raises:
        Unreadable: it is none, or too large.
    """
    content = head + file.read(MAX_WHOLE_BYTES)
    if len(content) > MAX_WHOLE_BYTES:
        raise Unreadable(f" is one JSON object of more than {MAX_WHOLE_BYTES >> 30} GiB", "write one row a line (JSON Lines)")
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise Unreadable(f" is not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        cut = "the file ends within it: it was cut short" if error.pos >= len(error.doc.rstrip()) else None
        raise Unreadable(f":{error.lineno}:{error.colno}: not valid JSON: {error.msg}", cut) from None
    except RecursionError:
        raise Unreadable(" is nested too deeply to hold rows", ROWS_WANTED) from None
    except ValueError:  # Python turns no more than 4,300 digits into a number
        raise Unreadable(" holds a number of thousands of digits") from None
    if not isinstance(value, dict):
        raise Unreadable(" is no JSON object", ROWS_WANTED)
    return value
