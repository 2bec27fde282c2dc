"""CSV and its relatives: a row a line, values between commas, tabs, semicolons or bars."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

from tclx.data.formats.entry import ROWS_WANTED, Entry, Unreadable, text_lines
from tclx.data.formats.naming import Naming
from tclx.data.forms.form import Fault
from tclx.data.kinds import IMAGE_SUFFIXES

MAX_LINE_CHARACTERS = 16 << 20
LINES_LOOKED_AT = 20
_DELIMITERS = {"\t": "TSV", ",": "CSV", ";": "CSV with semicolons", "|": "a table with bars"}
_WEB = ("http://", "https://", "s3://", "gs://")


class Table(NamedTuple):
    """How a table is written."""

    delimiter: str
    has_header: bool

    @property
    def title(self) -> str:
        return _DELIMITERS[self.delimiter]


def recognise_table(lines: Sequence[str], naming: Naming) -> Table | None:
    """What a text is, from its first lines; None where it is no table.

    Args:
        lines: all of the file, or some of its first, without the last, which may be cut.
        naming: tells a header from a row.
    """
    for delimiter in _DELIMITERS:
        if naming.is_header(_cells(lines[0], delimiter)):
            return Table(delimiter, has_header=True)
    for delimiter in _DELIMITERS:
        widths = {len(_cells(line, delimiter)) for line in lines if line.strip()}
        if min(widths) > 1 and (len(widths) == 1 or delimiter in lines[0]):
            return Table(delimiter, has_header=False)
    return None


def read_table(file: BinaryIO, head: bytes, table: Table, naming: Naming) -> Iterator[Entry]:
    """The rows of a table as objects of texts, under the names of its columns.

    Without a header the columns are named "1", "2" and so on, and one that holds names of images is `image`; where there is one
    other, that is `caption`.

    Raises:
        Unreadable: it is not text, a quote is not closed, or what the columns are cannot be told.
    """
    records = _records(text_lines(file, head, max_characters=MAX_LINE_CHARACTERS), table.delimiter)
    try:
        first = next(records, None)
        if first is None:
            raise Unreadable(" is empty", ROWS_WANTED)
        names = _header(first) if table.has_header else _columns_without_header(first, table, naming)
        for number, (line, cells) in enumerate(records if table.has_header else chain([first], records)):
            if len(cells) != len(names):
                hint = "put a value that holds the delimiter in quotes" if table.delimiter in ",;" else "one row a line"
                fault = Fault(f"has {len(cells)} values, and there are {len(names)} columns ({', '.join(names)})", hint)
                yield Entry(number, line, fault)
            else:
                yield Entry(number, line, dict(zip(names, map(_value, cells), strict=True)))
    except csv.Error as error:
        raise Unreadable(f": not valid {table.title}: {error}", "is a quote opened and never closed?") from None


class _Record(NamedTuple):
    line: int
    cells: list[str]


def _records(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[_Record]:
    if delimiter in "\t|":  # a value never goes on in the next line, so that a lone quote costs no row
        yield from (_Record(number, _cells(line, delimiter)) for number, line in lines if line.strip())
        return
    reader = csv.reader((f"{line}\n" for _, line in lines), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Unreadable(f":{line}: not valid {_DELIMITERS[delimiter]}: {error}", _QUOTES) from None
        if cells is None:
            return
        if cells:
            yield _Record(line, cells)


_QUOTES = 'a value in quotes ends with one before the next delimiter, and a quote in it is written twice ("")'


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter in "\t|":
        cells = [cell.strip(" ") if delimiter == "|" else cell for cell in line.split(delimiter)]
        return [cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell for cell in cells]
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _header(first: _Record) -> list[str]:
    names = [name.strip() for name in first.cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Unreadable(f":{first.line}: two columns are called {twice[0]!r}", "which of the two is meant?")
    return names


def _columns_without_header(first: _Record, table: Table, naming: Naming) -> list[str]:
    names = [str(number) for number in range(1, len(first.cells) + 1)]
    if naming.image is not None and naming.image in names:
        return names
    images = [place for place, cell in enumerate(first.cells) if PurePath(cell).suffix.lower() in IMAGE_SUFFIXES]
    if any(cell.startswith(_WEB) for cell in first.cells):
        message = f":{first.line}: holds web addresses, no images, as CC3M and CC12M are published"
        raise Unreadable(message, "download them, with img2dataset for instance, and name what it writes")
    if len(images) != 1 or (len(names) > 2 and not naming.captions):
        shown = ", ".join(cell[:40] for cell in first.cells[:8])
        message = f":{first.line}: is {table.title} whose first line names no columns for image and caption: {shown}"
        raise Unreadable(
            message, "name them there, or as `image_column` and `caption_columns` (numbers where there is no header)"
        )
    names[images[0]] = "image"
    if len(names) == 2:
        names[1 - images[0]] = "caption"
    return names


def _value(cell: str) -> Any:
    """Text; a list of texts where it is one in JSON's notation, as in tables of Flickr30k."""
    if cell.startswith('["') and cell.endswith('"]'):
        try:
            value = json.loads(cell)
        except ValueError:
            return cell
        return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else cell
    return cell
