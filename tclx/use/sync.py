"""What W&B does not have yet of run folders and studies, uploaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tclx.errors import InputError, Problem, RunFailed
from tclx.found import find
from tclx.launch.watch import watch_runs
from tclx.runs import RunFolder
from tclx.spec.load import load_spec_json
from tclx.spec.tracking import WandbSpec
from tclx.sweep.study import StudyFolder, all_studies
from tclx.sweep.tracking import sync_study
from tclx.track.wandb.process import due, missing, num_due, read_sent, send_now
from tclx.track.wandb.study import forget_study_sent, read_study_sent

Say = Callable[[str], None]


def sync_all(names: Sequence[str], *, runs_dir: Path, again: bool, timeout: int, say: Say) -> list[dict[str, Any]]:
    """Upload what the runs and studies that names stand for still owe W&B.

    Args:
        names: as `tclx.found.find`; empty for all runs and studies.
        runs_dir: where runs are kept.
        again: upload whole runs as new ones, also those that W&B has.
        timeout: seconds for each run or study.
        say: is told what is being uploaded.

    Returns:
        For each that wants W&B: `run_id` and `num_rows`, or `study` and `num_trials`; `folder`, `url`, `outcome` in words, and
        `exit_code`, 0 when nothing is missing.

    Raises:
        InputError: runs are named, and none of them was started with W&B.
    """
    found = find(names, runs_dir=runs_dir, trials=True)
    studies = [StudyFolder(path) for path in found.studies] if names else all_studies(runs_dir)
    studies = [part for study in studies for part in _parts(study)]
    folders = [RunFolder(path) for path in found.folders]
    wanted = [(folder, spec) for folder in folders if (spec := _spec(folder)) is not None]
    wanted_studies = [study for study in studies if _is_tracked(study)]
    if names and not wanted and not wanted_studies:
        message = f"none of the {len(folders)} runs was started with W&B"
        raise InputError(Problem("tracking.wandb", message, "set tracking.wandb in the spec, not to null or mode: disabled"))
    outcomes = [_sync_run(folder, spec, again=again, timeout=timeout, say=say) for folder, spec in wanted]
    return outcomes + [_sync_study(study, again=again, timeout=timeout, say=say) for study in wanted_studies]


def _parts(study: StudyFolder) -> list[StudyFolder]:
    """Of each variant that it searches; of one that cannot be read the upload says so."""
    try:
        return study.parts()
    except InputError:
        return [study]


def _spec(folder: RunFolder) -> WandbSpec | None:
    """What the run's spec says of W&B, where it wants it."""
    spec = load_spec_json(folder.spec).tracking.wandb
    return spec if spec is not None and spec.mode != "disabled" else None


def _is_tracked(study: StudyFolder) -> bool:
    """Whether the study wants W&B; of one that cannot be read the upload says so, and the others go on."""
    try:
        spec = study.read_sweep().wandb()
    except InputError:
        return True
    return spec is not None and spec.mode != "disabled"


def _sync_run(folder: RunFolder, spec: WandbSpec, *, again: bool, timeout: int, say: Say) -> dict[str, Any]:
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


def _sync_study(study: StudyFolder, *, again: bool, timeout: int, say: Say) -> dict[str, Any]:
    if again:
        forget_study_sent(study.own)
    code, num_trials, outcome = sync_study(study, seconds=timeout, say=say)
    sent = read_study_sent(study.own)
    facts = {"num_trials": num_trials, "url": sent.url if sent else None}
    named = {"study": study.path.name, **({"variant": study.variant} if study.variant is not None else {})}
    return {**named, "folder": str(study.path), **facts, "outcome": outcome, "exit_code": code}


def _uploads_itself(folder: RunFolder, spec: WandbSpec) -> bool:
    """Whether its own process does: two at once would upload every row twice."""
    with folder.lock("wandb.lock") as free:
        if not free:
            return True
    state = folder.read_state()
    elsewhere = state is not None and state.host != os.uname().nodename  # whose locks may not be seen here
    return spec.mode == "online" and elsewhere and _trains(folder)


def _trains(folder: RunFolder) -> bool:
    (status,) = watch_runs([folder.path])
    return status.standing == "running"
