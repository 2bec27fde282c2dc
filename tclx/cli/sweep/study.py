"""A study by its file or name, and what every command prints of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import aligned, say, show

if TYPE_CHECKING:
    import optuna

    from tclx.sweep.load import Sweep
    from tclx.sweep.study import StudyFolder

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file.")]
StudyName = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or a study's name.")]


def opened(sweep: str, runs_dir: Path) -> tuple[StudyFolder, Sweep, optuna.Study]:
    """A study that is there, by its file or name."""
    from tclx.sweep.study import find_study, open_study

    folder = find_study(sweep, runs_dir)
    checked = folder.read_sweep()
    return folder, checked, open_study(folder, checked)


def print_study(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> None:
    """The best trials as a table, how the study stands, and where it is on W&B."""
    from tclx.sweep.showing import standing_of, table_of
    from tclx.sweep.summary import summarise
    from tclx.sweep.tracking import standing

    summary = summarise(study, sweep, folder)
    if table := table_of(study, sweep, folder, summary):
        show(aligned(table))
        sys.stdout.flush()
    say(standing_of(summary, sweep, folder))
    if line := standing(sweep, folder):
        say(line)
