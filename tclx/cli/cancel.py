"""`tclx cancel`: save and stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, RunsDir, say

EXAMPLE = "Example:  tclx cancel quickstart"


def cancel(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help=f"{RUNS_HELP}.", autocompletion=complete_runs)],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Ask runs to save and stop, wherever they run; `tclx resume` continues them.

    Of a sweep, its workers: each saves its trial. A run that waits in a queue leaves it. A job that you cancel with scancel
    itself is not brought back either.
    """
    from tclx.found import find
    from tclx.launch.control import cancel_runs

    found = find(runs, runs_dir=runs_dir)
    asked = sum(_cancel_study(study) for study in found.studies)  # its workers first: each saves its own trial and stops
    asked += len(cancel_runs([folder for folder in found.folders if folder not in found.trials], say=say))
    if not asked:
        say("none of these runs is going on")


def _cancel_study(study: Path) -> int:
    from tclx.sweep.cluster import cancel_workers
    from tclx.sweep.study import StudyFolder

    return cancel_workers(StudyFolder(study), say=say)
