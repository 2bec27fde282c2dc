"""`tclx sync`: bring W&B up to date with run folders and studies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, print_json, say, show
from tclx.errors import InputError, Problem, RunFailed
from tclx.runs import RunFolder

if TYPE_CHECKING:
    from tclx.spec.tracking import WandbSpec
    from tclx.sweep.study import StudyFolder

EXAMPLE = "Example:  tclx sync quickstart"


def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS...]", help=f"{RUNS_HELP}; all by default."),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    again: Annotated[bool, typer.Option("--again", help="Upload the whole run as a new one, also when W&B has it.")] = False,
    timeout: Annotated[int, typer.Option("--timeout", min=10, metavar="SECONDS", help="Per run or study.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Upload to W&B what it does not have yet: offline runs, and what was left when W&B could not be reached.

    Of a sweep that is named: its trials' runs, then the study. Needs a login (WANDB_API_KEY or `wandb login`) and sight of the
    run folders, no GPU. What arrived is asked for, and the next call goes on from there. Exit code 1: something is still
    missing; 3: W&B cannot be used from here.
    """
    from tclx.found import find
    from tclx.sweep.study import StudyFolder, all_studies

    found = find(runs or [], runs_dir=runs_dir, trials=True)
    studies = [StudyFolder(path) for path in found.studies] if runs else all_studies(runs_dir)
    folders = [RunFolder(path) for path in found.folders]
    wanted = [(folder, spec) for folder in folders if (spec := _spec(folder)) is not None]
    wanted_studies = [study for study in studies if _is_tracked(study)]
    if runs and not wanted and not wanted_studies:
        message = f"none of the {len(folders)} runs was started with W&B"
        raise InputError(Problem("tracking.wandb", message, "set tracking.wandb in the spec, not to null or mode: disabled"))
    outcomes = [_sync(folder, spec, again=again, timeout=timeout) for folder, spec in wanted]
    outcomes += [_sync_study(study, again=again, timeout=timeout) for study in wanted_studies]
    if as_json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            name, count = ("run_id", "rows") if "run_id" in outcome else ("study", "trials")
            show(f"{outcome[name]}  {outcome[f'num_{count}']} {count}  {outcome['url'] or '-'}  {outcome['outcome']}")
        if not outcomes:
            say("nothing to upload: no run here was started with W&B")
    if code := max((outcome["exit_code"] for outcome in outcomes), default=0):
        raise typer.Exit(code)


def _spec(folder: RunFolder) -> WandbSpec | None:
    """What the run's spec says of W&B, where it wants it."""
    from tclx.spec.load import load_spec_json

    spec = load_spec_json(folder.spec).tracking.wandb
    return spec if spec is not None and spec.mode != "disabled" else None


def _sync(folder: RunFolder, spec: WandbSpec, *, again: bool, timeout: int) -> dict[str, Any]:
    from tclx.track.wandb.process import due, missing, num_due, read_sent, send_now

    code = 0
    if _uploads_itself(folder, spec):
        outcome = "is training and uploads itself"
    elif not num_due(folder, due(folder, spec)):
        outcome = "has nothing to upload yet"
    elif not again and missing(folder, spec) is None:
        outcome = "was complete"
    else:
        if again:
            folder.wandb.unlink(missing_ok=True)
        say(f"{folder.run_id}: uploading {missing(folder, spec)}")
        code = send_now(folder, "online", seconds=timeout, say=lambda line: say(f"{folder.run_id}: {line}"))
        lacking = missing(folder, spec)
        outcome = "complete" if code == 0 and lacking is None else f"lacks {lacking or 'what was written meanwhile'}"
        code = code or (RunFailed.exit_code if lacking and not _trains(folder) else 0)
    sent = read_sent(folder)
    facts = {"num_rows": sent.num_rows if sent else 0, "url": sent.url if sent else None}
    return {"run_id": folder.run_id, "folder": str(Path(folder.path)), **facts, "outcome": outcome, "exit_code": code}


def _is_tracked(study: StudyFolder) -> bool:
    """Whether the study wants W&B; of one that cannot be read the upload says so, and the others go on."""
    try:
        spec = study.read_sweep().wandb()
    except InputError:
        return True
    return spec is not None and spec.mode != "disabled"


def _sync_study(study: StudyFolder, *, again: bool, timeout: int) -> dict[str, Any]:
    from tclx.sweep.tracking import sync_study
    from tclx.track.wandb.study import forget_study_sent, read_study_sent

    if again:
        forget_study_sent(study.path)
    code, num_trials, outcome = sync_study(study, seconds=timeout, say=say)
    sent = read_study_sent(study.path)
    facts = {"num_trials": num_trials, "url": sent.url if sent else None}
    return {"study": study.path.name, "folder": str(study.path), **facts, "outcome": outcome, "exit_code": code}


def _uploads_itself(folder: RunFolder, spec: WandbSpec) -> bool:
    """Whether its own process does: two at once would upload every row twice."""
    with folder.lock("wandb.lock") as free:
        if not free:
            return True
    state = folder.read_state()
    elsewhere = state is not None and state.host != os.uname().nodename  # whose locks may not be seen here
    return spec.mode == "online" and elsewhere and _trains(folder)


def _trains(folder: RunFolder) -> bool:
    from tclx.launch.watch import watch_runs

    (status,) = watch_runs([folder.path])
    return status.standing == "running"
