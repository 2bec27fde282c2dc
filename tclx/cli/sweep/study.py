"""A study by its file or name, and what every command prints of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import aligned, say, show

if TYPE_CHECKING:
    from tclx.sweep.parts import Part

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file.")]
StudyName = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a study's name.")]


WhichVariant = Annotated[
    str | None, typer.Option("--variant", help="Which variant's search, where the sweep has one for each of several.")
]


def one_of(parts: Sequence[Part], variant: str | None) -> Part:
    """The search of a study that is meant."""
    from tclx.errors import InputError, Problem

    found = [part for part in parts if part.folder.variant == variant]
    if len(parts) == 1 and variant is None:
        found = list(parts)
    if not found:
        names = ", ".join(part.folder.variant for part in parts if part.folder.variant is not None)
        hint = f"name one of {names}" if names else "leave it out"
        what = f"the study has no search of `{variant}`" if variant else "the study has a search for each of several variants"
        raise InputError(Problem("--variant", what, hint))
    return found[0]


def opened(sweep: str, runs_dir: Path) -> list[Part]:
    """A study that is there, by its file or name: its searches."""
    from tclx.sweep.parts import open_parts
    from tclx.sweep.study import find_study

    return open_parts(find_study(sweep, runs_dir))


def print_study(parts: Sequence[Part]) -> None:
    """Of each search the best trials as a table, what confirms them, how it stands, and where it is on W&B."""
    from tclx.sweep.showing import standing_of, table_of
    from tclx.sweep.summary import summarise
    from tclx.sweep.tracking import standing
    from tclx.sweep.verdict import rows

    for number, part in enumerate(parts):
        summary = summarise(part.search, part.sweep, part.folder)
        confirmation = part.confirmation()
        tables = [table_of(part.search, part.sweep, part.folder, summary)]
        if confirmation is not None and confirmation.has_begun:
            tables.append(rows(confirmation, part.sweep))
        if part.folder.variant is not None:
            show(("\n" if number else "") + f"{part.folder.variant}:")
        for table in filter(None, tables):
            show(aligned(table))
        sys.stdout.flush()
        for line in (*standing_of(part), standing(part.sweep, part.folder)):
            if line:
                say(line)
