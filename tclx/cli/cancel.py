"""`tclx cancel`: save and stop."""

from __future__ import annotations

from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say

EXAMPLE = "Example:  tclx cancel tcl-4m-s0-1a2b3c4d"


def cancel(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help="Run folders, run ids or experiment names.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Ask runs to save and stop, wherever they run; `tclx resume` continues them.

    A run that waits in a queue leaves it. A job that you cancel with scancel itself is not brought back either.
    """
    from tclx.eval.results import find_runs
    from tclx.launch.control import cancel_runs

    if not cancel_runs(find_runs(runs, runs_dir=runs_dir), say=say):
        say("none of these runs is going on")
