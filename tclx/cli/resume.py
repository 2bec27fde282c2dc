"""`tclx resume`: continue what was interrupted, cancelled, lost or has failed."""

from __future__ import annotations

from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say

EXAMPLE = "Example:  tclx resume tcl-4m-s0-1a2b3c4d"


def resume(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help="Run folders, run ids or experiment names.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Local runs: return at once.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="SLURM runs: wait and watch.")] = False,
) -> None:
    """Continue runs from their newest checkpoints as they were asked for; no spec file is needed.

    `tclx run` with the same spec does the same.
    """
    from tclx.cli.run import start
    from tclx.eval.results import find_runs
    from tclx.launch.control import resumable

    found = resumable(find_runs(runs, runs_dir=runs_dir), say=say)
    if found:
        raise typer.Exit(start(found, runs_dir=runs_dir, again=False, detach=detach, follow=follow))
