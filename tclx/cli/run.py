"""`tclx run`: train and evaluate, here or on a cluster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, Overrides, RunsDir, say, show
from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tclx.launch.order import PlannedRun
    from tclx.launch.prepare import Outcome

EXAMPLE = "Example:  tclx run experiments/quickstart.yaml --set training.steps=300"


class Backend(StrEnum):
    """Where runs happen."""

    LOCAL = "local"
    SLURM = "slurm"


BackendChoice = Annotated[
    Backend | None,
    typer.Option("--backend", help="Replace the spec's launch section by this one's defaults; --set launch.* adds to them."),
]


def _led_to_plan(wanted: bool) -> None:
    if wanted:
        raise InputError(
            Problem("--dry-run", "is no option here", "`tclx plan SPEC`, or `tclx sweep plan SWEEP`, is the dry run")
        )


DryRun = Annotated[bool, typer.Option("--dry-run", hidden=True, is_eager=True, callback=_led_to_plan)]
"""What other tools call it; never true."""


def with_backend(overrides: list[str] | None, backend: Backend | None) -> list[str]:
    """The overrides after the one that chooses where the runs happen."""
    return [*([f"launch={{backend: {backend.value}}}"] if backend else []), *(overrides or [])]


def run(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Experiment files.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train existing runs again from scratch; their folders are renamed and kept.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Local runs: return immediately; they keep running when the terminal closes.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only try: 2 steps of every variant, here, and a short evaluation; nothing is kept.")
    ] = False,
    dry_run: DryRun = False,
    follow: Annotated[bool, typer.Option("--follow", help="SLURM runs: wait and watch; Ctrl-C leaves them running.")] = False,
) -> None:
    """Train and evaluate every run of the specs, and print their results; on SLURM: submit them.

    Ctrl-C saves; the same command continues. A finished run is reported, never trained again unless you say --again; a run
    that is on its way is never submitted twice.
    """
    if smoke:
        if again or detach or follow:
            raise InputError(Problem("--smoke", "tries here and keeps nothing", "without --again, --detach and --follow"))
        raise typer.Exit(try_out(specs, with_backend(overrides, backend)))
    from tclx.launch.order import plan_runs
    from tclx.runs import RunFolder

    runs = plan_runs(specs, with_backend(overrides, backend), runs_dir=runs_dir)
    say_warnings(runs)
    for planned in runs:
        RunFolder(runs_dir / planned.plan.run_id).adopt()
    raise typer.Exit(start(runs, runs_dir=runs_dir, again=again, detach=detach, follow=follow))


def try_out(specs: Sequence[Path], overrides: Sequence[str]) -> int:
    """Say of every variant whether it works; returns the exit code of the first that does not."""
    from tclx.launch import smoke

    tried = smoke.try_out(specs, overrides, say=say)
    width = max(len(one.label) for one in tried)
    for one in tried:
        show(f"{one.ending:<7}  {one.label:<{width}}  {one.seconds:5.1f} s" + (f"  {one.reason}" if one.reason else ""))
    return next((one.exit_code for one in tried if one.exit_code), 0)


def say_warnings(runs: Sequence[PlannedRun]) -> None:
    """What makes the metrics of these runs doubtful, each once."""
    for warning in dict.fromkeys(warning for run in runs for warning in run.warnings):
        say(f"warning: {warning}")
    if any(run.spec.tracking.notify is not None for run in runs):
        from tclx.track.notify import ADDRESSES, addresses

        if not addresses():
            say(f"warning: tracking.notify: the environment variable {ADDRESSES} names no address, so nobody will be told")


def start(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, follow: bool) -> int:
    """Hand the runs to where each belongs; returns the exit code."""
    from tclx.launch.backend import by_backend
    from tclx.launch.prepare import relatives

    for run in runs:
        for line in relatives(run, runs_dir=runs_dir):
            say(line)

    outcomes: list[Outcome] = []
    here = there = False
    for backend, own in by_backend(runs):
        outcomes += backend.start(own, runs_dir=runs_dir, again=again, detach=detach, say=say)
        here, there = here or backend.waits, there or not backend.waits
    if there and follow:
        from tclx.cli.status import follow_until_ended

        return follow_until_ended([outcome.folder.path for outcome in outcomes])
    if here and not detach:
        _print_made([one for one in outcomes if one.ending.endswith("finished")])  # what failed has been said
    if there or detach:
        say("tclx status shows them, tclx logs RUN -f follows one")
    return next((outcome.exit_code for outcome in reversed(outcomes) if outcome.exit_code), 0)


def _print_made(outcomes: Sequence[Outcome]) -> None:
    from tclx.cli.results import print_results
    from tclx.report.results import Selection, read_runs, summarise

    made = Selection(tuple(outcome.folder.path for outcome in outcomes if outcome.folder.spec.exists()))
    print_results(summarise(read_runs(made)))
