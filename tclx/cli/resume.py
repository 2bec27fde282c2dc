"""`tclx resume`: continue what was interrupted, cancelled, lost or has failed."""

from __future__ import annotations

from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, RunsDir, say

EXAMPLE = "Example:  tclx resume quickstart"


def resume(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help=f"{RUNS_HELP}.", autocompletion=complete_runs)],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Local runs: return immediately.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="SLURM runs: wait and watch.")] = False,
) -> None:
    """Continue runs from their newest checkpoints as they were asked for; no spec file is needed.

    `tclx run` with the same spec does the same, and `tclx sweep` with a sweep's.
    """
    from tclx.cli.run import start
    from tclx.cli.sweep.study import print_study
    from tclx.found import find
    from tclx.launch.control import resumable

    found = find(runs, runs_dir=runs_dir)
    codes = []
    if found.studies:
        from tclx.sweep.working import resume_study

        codes += [resume_study(study, detach=detach, follow=follow, say=say, ended=print_study) for study in found.studies]
    planned = resumable([folder for folder in found.folders if folder not in found.trials], say=say)
    if planned:
        codes.append(start(planned, runs_dir=runs_dir, again=False, detach=detach, follow=follow))
    if code := max(codes, default=0):
        raise typer.Exit(code)
