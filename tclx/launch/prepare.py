"""What happens to a run before it is handed to anybody, here or on a cluster? Its images are checked, its folder is made."""

from __future__ import annotations

import glob
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from tclx.data.facts import refuse_bad_images
from tclx.files import Unreadable, machine_error, read_as
from tclx.launch.downloads import check_downloads
from tclx.launch.order import PlannedRun
from tclx.plan import Plan
from tclx.runs import Job, RunFolder, RunState
from tclx.spec.difference import differences
from tclx.spec.load import load_spec_json

Ending = Literal["finished", "already finished", "interrupted", "failed", "held", "skipped", "submitted", "already submitted"]
Say = Callable[[str], None]

SUBMISSIONS = ".submissions"
"""Beside the runs: a folder for everything that was handed over at once."""


class Outcome(NamedTuple):
    """What became of one run."""

    folder: RunFolder
    ending: Ending
    reason: str | None = None
    exit_code: int = 0


def describe(outcome: Outcome) -> str:
    """One line for people."""
    reason = f": {outcome.reason}" if outcome.reason else ""
    return {
        "finished": f"finished: {outcome.folder.path}",
        "already finished": f"finished earlier, nothing to do (--again trains it from scratch): {outcome.folder.path}",
        "interrupted": f"interrupted{reason}; run the same command to continue",
        "failed": f"failed{reason}",
        "held": f"another process is training it right now: {outcome.folder.path}",
        "skipped": f"skipped{reason}",
        "submitted": f"submitted{reason}",
        "already submitted": f"submitted earlier, nothing to do{reason}",
    }[outcome.ending]


def check_beginnings(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, say: Say) -> None:
    """Of every run that is about to take its first step: is what it takes from the hub at hand, and are its images as its
    policy asks? Each data set is opened once.

    Raises:
        InputError: with the bad images.
        MachineError: something of the hub is neither in the cache nor to be had.
    """
    states = [RunFolder(runs_dir / run.plan.run_id).read_state() for run in runs]
    beginning = [
        run.spec
        for run, state in zip(runs, states, strict=True)
        if state is None or (state.step == 0 and state.status != "finished") or (again and run.asked_for)
    ]
    for warning in check_downloads(beginning, with_image=True):
        say(f"warning: {warning}")
    for data, evaluation in dict.fromkeys((spec.data, spec.evaluation) for spec in beginning):
        evaluation.check(data)
        found = refuse_bad_images(data, others=evaluation.images())
        if found.num_images:
            say(found.summary())


_ANOTHER_LENGTH = (
    "training.steps", "training.epochs", "training.batch_size_per_gpu", "training.accumulation_steps", "training.checkpoints",
    "optim.schedule.warmup_steps", "evaluation.every_steps", "evaluation.every_epochs",
)  # fmt: skip
"""Keys that somebody changes who wants the same run longer, or on other hardware."""


def relatives(run: PlannedRun, *, runs_dir: Path) -> list[str]:
    """What to know before a run begins of which another length is there: a line each. It is easily taken for a continuation."""
    if (runs_dir / run.plan.run_id).exists():
        return []
    stem, _, digest = run.plan.run_id.rpartition("-")
    lines = []
    for path in sorted(runs_dir.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * len(digest)}/spec.json")):
        other = RunFolder(path.parent)
        with suppress(Unreadable):
            found = differences([other.read_json(path), run.spec.model_dump(mode="json")])
            found = [one for one in found if one.key.partition(".")[0] not in ("launch", "tracking")]
            state = other.read_state()
            if state is None or not found or not all(one.key.startswith(_ANOTHER_LENGTH) for one in found):
                continue
            how = ", ".join(f"{one.key} {one.values[0]} instead of {one.values[1]}" for one in found)
            cure = f"--set 'init={{checkpoint: {other.path}, resume: true}}' would have it go on from there"
            lines.append(
                f"{other.run_id} is this experiment with {how}, {state.status} at step {state.step}. {run.plan.run_id} is "
                f"another run and begins at step 0; {cure}"
            )
    return lines


def prepare(run: PlannedRun, folder: RunFolder) -> None:
    """Make the run folder and write what was asked and what will happen.

    Raises:
        MachineError: the folder cannot be written.
    """
    make_folder(folder.path)
    try:
        folder.cancel.unlink(missing_ok=True)
    except OSError as error:
        raise machine_error(error, f"could not forget the request to cancel {folder.path}") from error
    folder.write_json(folder.spec, run.spec.model_dump(mode="json"))
    folder.write_json(folder.plan, run.plan.to_json())
    if folder.read_state() is None:
        folder.write_state(RunState("created", total_steps=run.plan.total_steps))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        MachineError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, f"could not make {path}") from error


def prepared(folder: RunFolder, needs: str | None = None) -> PlannedRun:
    """The run that a prepared folder holds.

    Raises:
        InputError: another version of tclx wrote it.
    """
    return PlannedRun(load_spec_json(folder.spec), read_as(folder.plan, Plan), needs, asked_for=True)


def new_submission(runs_dir: Path) -> Path:
    """A folder for one submission; its name is the token that its jobs carry."""
    folder = runs_dir.resolve() / SUBMISSIONS / secrets.token_hex(4)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise machine_error(error, f"could not make {folder}") from error
    return folder


def hand_over(folder: RunFolder, job: Job) -> None:
    """Write down whom a run is handed to, before it is."""
    folder.write_json(folder.job, asdict(job))


def job_of(submission: Path, backend: Literal["local", "slurm"], job_id: str | None = None) -> Job:
    """The record of a run in this submission."""
    return Job(submission.name, backend, time.time(), os.uname().nodename, str(submission), job_id)


def set_aside(folder: RunFolder) -> Path:
    """Rename the run's folder, so that it starts from scratch; returns where the old one is.

    Raises:
        MachineError: it cannot be renamed.
    """
    return rename_aside(folder.path)


def rename_aside(path: Path) -> Path:
    """Give a folder the first free name `<name>.old-<n>` beside it; returns where it is.

    Raises:
        MachineError: it cannot be renamed.
    """
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        return path.rename(kept)
    except OSError as error:
        raise machine_error(error, f"could not set {path} aside") from error
