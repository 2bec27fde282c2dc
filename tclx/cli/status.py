"""`tclx status`: where runs stand, wherever they run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, aligned, print_json, say, show
from tclx.terminal import time_left

if TYPE_CHECKING:
    from tclx.launch.watch import RunStatus
    from tclx.runs import TrialOf

EXAMPLE = "Example:  tclx status quickstart --json"
FOLLOW_SECONDS = 5.0

Runs = Annotated[
    list[str] | None, typer.Argument(metavar="[RUNS]...", help=f"{RUNS_HELP}; all by default.", autocompletion=complete_runs)
]


def status(
    runs: Runs = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep reporting changes until all runs have ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every run: how far it is, what it waits for, why it ended.

    It works from every machine that sees the run folders, and asks SLURM in one call for all of them.
    """
    from tclx.found import find, trial_of
    from tclx.launch.watch import watch_runs

    found = find(runs or [], runs_dir=runs_dir)
    if follow:
        raise typer.Exit(follow_until_ended(found.folders))
    statuses = watch_runs(found.folders)
    trials = {folder: trial for folder in found.folders if (trial := found.trials.get(folder) or trial_of(folder))}
    if as_json:
        print_json([as_tree(status, trials.get(status.folder.path)) for status in statuses])
    elif len(statuses) == 1 and runs:
        show(aligned([(name, _text(value)) for name, value in _lines(statuses[0]) if value is not None]))
        warn(statuses)
    elif statuses:
        print_statuses(statuses, trials)
        warn(statuses)
    elif not found.notes:
        say(f"no runs in {runs_dir}; choose another folder with --runs-dir")
    for note in found.notes:
        say(note)


def as_tree(status: RunStatus, trial: TrialOf | None = None) -> dict[str, Any]:
    """The status for machines."""
    tree = status._asdict()
    return {
        "run_id": status.folder.run_id,
        "folder": str(tree.pop("folder").path),
        "state": tree.pop("standing"),
        **tree,
        "warnings": status.folder.read_warnings(),
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in status.metrics.items()
        },  # JSON knows no NaN
        "study": trial and trial.study,
        "trial": trial and trial.number,
        "variant_of_study": trial and trial.variant,
        "confirms": bool(trial and trial.confirms),
    }


def print_statuses(statuses: Sequence[RunStatus], trials: Mapping[Path, TrialOf] = {}) -> None:
    """A line a run, of a sweep's with its trial; reasons below the table, where there are any."""
    rows = [
        [
            status.folder.run_id,
            *([_trial(trials.get(status.folder.path))] if trials else []),
            status.standing,
            f"{status.step}/{status.total_steps}",
            time_left(status.eta_seconds),
            f"{status.metrics['loss/total']:.3f}" if "loss/total" in status.metrics else "-",
            status.job_id or "-",
            status.node or "-",
            str(status.restarts) if status.restarts else "-",
        ]
        for status in statuses
    ]
    head = ["run", *(["trial"] if trials else []), "state", "step", "ETA", "loss", "job", "node", "restarts"]
    show(aligned([head, *rows]))
    for status in statuses:
        if status.reason and status.standing not in ("finished", "running"):
            say(f"{status.folder.run_id}: {status.reason}")


def warn(statuses: Sequence[RunStatus]) -> None:
    """What training has warned of, of runs that go on or are finished."""
    for status in statuses:
        if status.standing in ("running", "finished"):
            for message in status.folder.read_warnings():
                say(f"warning: {status.folder.run_id}: {message}")


def _trial(trial: TrialOf | None) -> str:
    if trial is None:
        return "-"
    number = str(trial.number) if trial.number is not None else "?"
    return " ".join(filter(None, (trial.study, trial.variant, "confirms" if trial.confirms else "", number)))


def follow_until_ended(folders: Sequence[Path]) -> int:
    """Report every change until no run goes on by itself; returns 0 if all are finished, else 1. Ctrl-C only leaves."""
    from tclx.launch.watch import GOING_ON, watch_runs

    seen: dict[str, tuple[str, int]] = {}
    try:
        while True:
            statuses = watch_runs(folders)
            for status in statuses:
                now = (status.standing, status.step)
                if seen.get(status.folder.run_id) != now:
                    seen[status.folder.run_id] = now
                    why = f": {status.reason}" if status.reason else ""
                    say(f"{status.folder.run_id}  {status.standing}  {status.step}/{status.total_steps}{why}")
            if not any(status.standing in (*GOING_ON, "unknown") for status in statuses):
                break
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        say("no longer watching; the runs go on (tclx status shows them, tclx cancel ends them)")
        return 130
    print_statuses(statuses)
    sys.stdout.flush()
    return 0 if all(status.standing == "finished" for status in statuses) else 1


def _lines(status: RunStatus) -> list[tuple[str, Any]]:
    from tclx.launch.watch import last_row

    return [
        ("run", status.folder.run_id),
        ("state", status.standing),
        ("reason", status.reason),
        ("step", f"{status.step}/{status.total_steps}"),
        ("ETA", time_left(status.eta_seconds) if status.eta_seconds is not None else None),
        ("job", status.job_id),
        ("node", status.node),
        ("restarts", status.restarts or None),
        ("folder", status.folder.path),
        *((name, value) for name, value in last_row(status.folder).items() if isinstance(value, float)),
    ]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
