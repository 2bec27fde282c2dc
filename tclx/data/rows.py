"""Which rows does an annotation file hold? Read a piece at a time, so that memory does not grow with the file.

A file that is no JSON list of rows is refused with what it looks like and with the way on.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tclx.data.kinds import kind_of_file, open_ordinary

CHUNK_BYTES = 1 << 20
MAX_ROW_CHARACTERS = 16 << 20
"""Of one row, with all its captions: what a file of nothing but one endless value may cost in memory."""
ROWS_WANTED = "expected a list of objects with `image` and `caption`"
CONVERSION = "docs/data.md has the five lines that make rows of it"

_SPACE = re.compile(r"[ \t\r\n]*")


class Unreadable(Exception):
    """What is wrong with a file (completes `PATH`), and what would be right."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint


class Item(NamedTuple):
    """One entry of the list, whatever it is."""

    number: int
    """From 0."""
    line: int
    """Where it begins; the first is 1."""
    value: Any


class _DuplicateKey(ValueError):
    pass


def read_items(path: Path) -> Iterator[Item]:
    """The entries of a JSON list, one after the other.

    Raises:
        Unreadable: the file is missing, cannot be read, or is anything but a JSON list.
    """
    try:
        with open_ordinary(path) as file:
            head = file.read(CHUNK_BYTES)
            _refuse_other_files(head)
            yield from _items(_Text(file, head))
    except FileNotFoundError:
        raise Unreadable(" does not exist", _similar_file(path)) from None
    except OSError as error:
        raise Unreadable(f" cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path; what is read raises Unreadable
        raise Unreadable(f" is no path that a file can have: {error}") from None


class _Text:
    """The part of a file's text that is in memory, and how far it is read."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(json.detect_encoding(head[:4]))("strict")
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


def _items(source: _Text) -> Iterator[Item]:
    if source.next() != "[":
        raise _no_list(source)
    source.position += 1
    decode = json.JSONDecoder(object_pairs_hook=_without_duplicates).raw_decode
    separator = source.next()
    number = 0
    while separator != "]":
        line, value = source.line(), _next_value(source, decode, number)
        yield Item(number, line, value)
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


def _next_value(source: _Text, decode: Callable[[str, int], tuple[Any, int]], number: int) -> Any:
    while True:
        end = None
        try:
            value, end = decode(source.text, source.position)
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


def _not_json(source: _Text, error: json.JSONDecodeError, number: int) -> Unreadable:
    hint = None
    rest = source.text[error.pos : error.pos + 40]
    if rest.startswith("'"):
        hint = "this is Python's own notation: write it with json.dump"
    elif error.pos >= len(source.text.rstrip()) or error.msg.startswith("Unterminated string"):
        hint = "the file ends within a row: it was cut short"
    return Unreadable(f"{source.place(error.pos)}: not valid JSON: {error.msg} (row {number})", hint)


# Files that are something else


def _refuse_other_files(head: bytes) -> None:
    kind = kind_of_file(head)
    if kind is not None:
        hint = "unpack it first" if kind.endswith("archive") else CONVERSION if "table" in kind else ROWS_WANTED
        raise Unreadable(f" is {kind}, not JSON", hint)
    if b"\0" in head[:4096] and json.detect_encoding(head[:4]) in ("utf-8", "utf-8-sig"):
        raise Unreadable(" is not text: it holds NUL bytes", ROWS_WANTED)


def _no_list(source: _Text) -> Unreadable:
    text = source.text[source.position :]
    if not text:
        return Unreadable(f"{source.place()}: not valid JSON: Expecting value", "the file is empty")
    if text[0] == "{":
        return _no_list_but_object(source)
    looks = _looks_like(text)
    what = f"looks like {looks[0]}, not like a JSON list of rows" if looks else "not valid JSON: Expecting value"
    return Unreadable(f"{source.place()}: {what}", looks[1] if looks else ROWS_WANTED)


def _no_list_but_object(source: _Text) -> Unreadable:
    """JSON Lines, COCO, Karpathy, a table of pandas, or a Python dictionary in JSON's words."""
    while not source.ended and len(source.text) < MAX_ROW_CHARACTERS:
        source.more()
    position, text = source.position, source.text[source.position :]
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return Unreadable(" is nested too deeply to be a list of rows")
    except ValueError as error:
        keys = list(dict.fromkeys(re.findall(r'"(\w+)"\s*:', text[:CHUNK_BYTES])))
        if source.ended and isinstance(error, json.JSONDecodeError):
            return _not_json(source, json.JSONDecodeError(error.msg, source.text, position + error.pos), 0)
    else:
        if text[end:].lstrip().startswith("{"):
            rest = text[end:]
            place = source.place(position + end + len(rest) - len(rest.lstrip()))
            hint = f"one object per line is JSON Lines; {CONVERSION}"
            return Unreadable(f"{place}: not valid JSON: Extra data", hint)
        keys = list(value)
        if isinstance(value.get("images"), list):
            keys += [key for image in value["images"][:1] if isinstance(image, dict) for key in image]
        if isinstance(value.get("annotations"), list):
            keys += [key for one in value["annotations"][:1] if isinstance(one, dict) for key in one]
    return _named_object(keys)


def _named_object(keys: list[str]) -> Unreadable:
    seen = f"with the keys {', '.join(keys[:8])}" + (" and more" if len(keys) > 8 else "")
    if "images" in keys and "sentences" in keys:
        return Unreadable(f" is a Karpathy file {seen}, not a list of rows", CONVERSION)
    if "images" in keys and "annotations" in keys:
        without = "" if "caption" in keys else ", and its annotations have no `caption`"
        return Unreadable(f" is a COCO file {seen}{without}, not a list of rows", CONVERSION)
    if "image" in keys and "caption" in keys:
        return Unreadable(f" holds one object {seen}, not a list", "a table of pandas is written with orient='records'")
    return Unreadable(f" holds an object {seen}" if keys else " holds an empty object", ROWS_WANTED)


_TOKENS = re.compile(r"\S+\.\w{3,4}#\d\t")


def _looks_like(text: str) -> tuple[str, str] | None:
    """Of text that does not begin as JSON: its form and the way on."""
    lines = text[:20_000].splitlines()[:20]
    if _TOKENS.match(lines[0]):
        return "Flickr's token text", CONVERSION
    if lines[0].startswith(("- ", "---")):
        return "YAML", ROWS_WANTED
    for delimiter, name in (
        ("\t", "TSV (values between tabs)"),
        (",", "CSV"),
        (";", "CSV with semicolons"),
        ("|", "a table with |"),
    ):
        try:
            widths = {len(row) for row in csv.reader(lines[: max(1, len(lines) - 1)], delimiter=delimiter)}
        except csv.Error:
            continue
        if min(widths) > 1 and (len(widths) == 1 or delimiter in lines[0]):
            return name, CONVERSION
    return None


def _similar_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"nor does its folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {near[0]}?" if near else None
