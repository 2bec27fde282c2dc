"""`tclx sweep run`: begin or continue a study."""

from __future__ import annotations

from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, Overrides, RunsDir, say
from tclx.cli.run import BackendChoice, DryRun
from tclx.cli.sweep.study import SweepFile, print_study

EXAMPLE = "Example:  tclx sweep run sweeps/loss_weights.yaml --set num_trials=10"


def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    again: Annotated[bool, typer.Option("--again", help="Start a new study; the existing one is renamed and kept.")] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="The sweep file has changed: start a new study with the earlier trials that are still valid.",
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Local: return immediately; workers keep running when the terminal closes.")
    ] = False,
    dry_run: DryRun = False,
    follow: Annotated[bool, typer.Option("--follow", help="On SLURM: wait and watch; Ctrl-C leaves the jobs running.")] = False,
) -> None:
    """Begin a study, or go on with it; print where it stands.

    Trial 0 is the experiment itself. The same file is the same study: what has ended is never tried again, what was cut off
    goes on from its checkpoints.
    """
    from tclx.sweep.begin import create_studies, set_aside
    from tclx.sweep.load import load_sweeps
    from tclx.sweep.study import StudyFolder
    from tclx.sweep.working import say_doubts, work

    checked = load_sweeps(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    say_doubts(checked, say=say)
    folder = StudyFolder.of(checked[0].spec.name, runs_dir)
    if again and folder.path.exists():
        say(f"the earlier study is kept as {set_aside(folder, checked[0])}")
    create_studies(checked, folder, accept_changes=accept_changes, say=say)
    raise typer.Exit(work(folder, detach=detach, follow=follow, say=say, ended=print_study))
