"""A table within a Markdown file, between two comments that name it; all around it stays as it is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tclx.errors import InputError, Problem
from tclx.report.latex import Cell
from tclx.repro.made import STALE, Made, cells_of


def marks(table: Path) -> tuple[str, str]:
    """The comments before and after."""
    return f"<!-- tclx repro {table.name} -->", f"<!-- end of {table.name} -->"


def with_table(text: str, made: Made, document: Path) -> str:
    """The document's text with the table as it is now.

    Raises:
        InputError: the two comments are not there, or not once.
    """
    begin, end = marks(made.table.path)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        message = f"{document} has no single place for the table"
        raise InputError(Problem("document", message, f"two lines, {begin} and {end}, with what is between them replaced"))
    before, after = text[: text.index(begin)], text[text.index(end) :]
    return f"{before}{begin}\n\n{markdown(made)}\n\n{after}"


def markdown(made: Made) -> str:
    """The table, and below it from which code its runs are and which rows are out of date."""
    rows, foot = cells_of(made)
    head, *body = [*rows, *foot]
    lines = [_line(head), f"|{'---|' * len(head)}", *map(_line, body)]
    return "\n".join([*lines, "", *_notes(made)])


def _notes(made: Made) -> list[str]:
    runs = [run for one in made.rows if one.row is not None for run in one.row.runs]
    commits = Counter(run.commit or "no commit" for run in runs)
    of = ", ".join(f"{number} at {commit}" for commit, number in commits.items())
    notes = [f"{len(runs)} runs: {of}; `{made.table.record.name}` has each seed's numbers." if runs else "No runs yet."]
    for one in made.rows:
        if one.stale:
            notes += ["", f"{STALE} {one.label} was measured with another spec: {'; '.join(map(_escaped, one.stale))}."]
    return notes


def _line(cells: list[Cell]) -> str:
    shown = (f"**{_escaped(cell.text)}**" if cell.marked else _escaped(cell.text) for cell in cells)
    return f"| {' | '.join(shown)} |"


def _escaped(text: str) -> str:
    """As Markdown prints it. Brackets of intervals need nothing, since no parenthesis follows, nor does `_` within a word."""
    return _SPECIAL.sub(r"\\\g<0>", text).replace("\n", " ")


_SPECIAL = re.compile(r"[\\|*`<]|(?<!\w)_|_(?!\w)")
