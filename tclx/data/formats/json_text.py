"""JSON: a list of rows, or rows one after the other (JSON Lines). Read a piece at a time, so that memory does not grow with the
file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from tclx.data.formats.entry import CHUNK_BYTES, ROWS_WANTED, Entry, Unreadable, text_encoding

MAX_ROW_CHARACTERS = 16 << 20
"""Of one row, with all its captions: what a file of nothing but one endless value may cost in memory."""

_SPACE = re.compile(r"[ \t\r\n]*")


class _DuplicateKey(ValueError):
    pass


def read_list(file: BinaryIO, head: bytes) -> Iterator[Entry]:
    """The entries of a JSON list, one after the other.

    Args:
        file: read up to `head`.
        head: its first `CHUNK_BYTES`.

    Raises:
        Unreadable: it is anything but a JSON list.
    """
    source = _Text(file, head)
    if source.next() != "[":
        raise Unreadable(f"{source.place()}: not valid JSON: Expecting value", ROWS_WANTED)
    source.position += 1
    separator = source.next()
    number = 0
    while separator != "]":
        line, value = source.line(), _next_value(source, number)
        yield Entry(number, line, value)
        number += 1
        separator = source.next()
        if separator == ",":
            source.position += 1
            if source.next() == "]":
                raise Unreadable(f"{source.place()}: not valid JSON: a comma before the end of the list")
        elif separator != "]":
            message = "Expecting ',' delimiter" if separator else "the file ends within the list: it was cut short"
            raise Unreadable(f"{source.place()}: not valid JSON: {message}")
    source.position += 1
    if source.next():
        raise Unreadable(f"{source.place()}: not valid JSON: the list ends and something follows", "one list a file")


def read_lines(file: BinaryIO, head: bytes) -> Iterator[Entry]:
    """The values of JSON Lines, one after the other; arguments as `read_list`.

    Raises:
        Unreadable: something is no JSON.
    """
    source = _Text(file, head)
    number = 0
    while source.next():
        line, value = source.line(), _next_value(source, number)
        yield Entry(number, line, value)
        number += 1


class _Text:
    """The part of a file's text that is in memory, and how far it is read."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(text_encoding(head))("strict")
        self._num_bytes = 0
        self._start = (1, 1)
        """Line and column of the text's first character."""
        self._line, self._counted = 1, 0
        """The line of position `_counted`."""
        self.text = ""
        self.position = 0
        self.ended = False
        self._add(head, wanted=CHUNK_BYTES)

    def more(self) -> None:
        """Forget what is read, and take at least as much as is left once more."""
        self._start = self._place(self.position)
        self._line, self._counted = self._start[0], 0
        self.text, self.position = self.text[self.position :], 0
        wanted = max(CHUNK_BYTES, len(self.text))
        self._add(self._file.read(wanted), wanted=wanted)

    def line(self) -> int:
        """Of the position; cheap when asked for again and again."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def place(self, position: int | None = None) -> str:
        """`:LINE:COLUMN`, of what is read next by default."""
        line, column = self._place(self.position if position is None else position)
        return f":{line}:{column}"

    def next(self) -> str:
        """The next character that is no space, "" at the end; the position is there afterwards."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self.more()

    def _place(self, position: int) -> tuple[int, int]:
        newlines = self.text.count("\n", 0, position)
        line, column = self._start
        return line + newlines, position - self.text.rfind("\n", 0, position) if newlines else column + position

    def _add(self, chunk: bytes, *, wanted: int) -> None:
        waiting = len(self._decoder.getstate()[0])
        self.ended = len(chunk) < wanted
        try:
            self.text += self._decoder.decode(chunk, self.ended)
        except UnicodeDecodeError as error:
            byte = self._num_bytes - waiting + error.start
            line = self._start[0] + self.text.count("\n") + chunk[: max(error.start - waiting, 0)].count(b"\n")
            raise Unreadable(f":{line}: is not UTF-8 text: {error.reason} at byte {byte}", "save it as UTF-8") from None
        self._num_bytes += len(chunk)


def _next_value(source: _Text, number: int) -> Any:
    while True:
        end = None
        try:
            value, end = _decode(source.text, source.position)
        except json.JSONDecodeError as error:
            # Near the end of what is in memory, or within a text that goes on, the fault may be the cut.
            cut = error.msg.startswith("Unterminated string") or error.pos > len(source.text) - 16
            if source.ended or not cut:
                raise _not_json(source, error, number) from None
        except _DuplicateKey as error:
            raise Unreadable(f"{source.place()}: row {number}: {error}", "which of the two is meant?") from None
        except ValueError:  # Python turns no more than 4,300 digits into a number
            raise Unreadable(f"{source.place()}: row {number} holds a number of thousands of digits") from None
        except RecursionError:
            raise Unreadable(f"{source.place()}: row {number} is nested too deeply to be a row", ROWS_WANTED) from None
        if end is not None and (end < len(source.text) or source.ended):
            source.position = end
            return value
        if len(source.text) - source.position > MAX_ROW_CHARACTERS:
            fault = f"row {number} is longer than {MAX_ROW_CHARACTERS:,} characters"
            raise Unreadable(f"{source.place()}: {fault}", ROWS_WANTED)
        source.more()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _DuplicateKey(f"`{twice}` stands there twice")
    return row


_decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(object_pairs_hook=_without_duplicates).raw_decode


def _not_json(source: _Text, error: json.JSONDecodeError, number: int) -> Unreadable:
    hint = None
    rest = source.text[error.pos : error.pos + 40]
    if rest.startswith("'"):
        hint = "this is Python's own notation: write it with json.dump"
    elif error.pos >= len(source.text.rstrip()) or error.msg.startswith("Unterminated string"):
        hint = "the file ends within a row: it was cut short"
    return Unreadable(f"{source.place(error.pos)}: not valid JSON: {error.msg} (row {number})", hint)
