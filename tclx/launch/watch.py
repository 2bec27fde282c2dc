"""Where does every run stand? Run folders first, then one squeue for all of their jobs, then sacct for those it does not list.

Every command, page and JSON document takes its word for a run from here, and says it as `describe` does.

No source is enough alone: a folder cannot say that its process is dead, squeue forgets, sacct may not exist or lags. What
cannot be known is called unknown, never gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tclx.errors import MachineError
from tclx.files import STALE_SECONDS, Unreadable, is_recent, parse_json, read_as
from tclx.launch.clusters import CLUSTERS
from tclx.launch.ending import last_lines
from tclx.launch.jobs import Jobs, JobState
from tclx.runs import Attempt, Job, RunFolder, RunState, is_held

Standing = Literal[
    "created",
    "queued",
    "starting",
    "running",
    "restarting",
    "finished",
    "interrupted",
    "cancelled",
    "pruned",
    "failed",
    "lost",
    "unknown",
]
GOING_ON: tuple[Standing, ...] = ("queued", "starting", "running", "restarting")
"""Standings of a run that nobody needs to start."""

PRUNED = "pruned "
"""How the reason of a run begins that a sweep's pruner has stopped."""

_METRICS_TAIL_BYTES = 8192


class RunStatus(NamedTuple):
    """One run, as of now."""

    folder: RunFolder
    standing: Standing
    step: int
    total_steps: int
    reason: str | None = None
    """Why it is not going on, or what it waits for."""
    job_id: str | None = None
    node: str | None = None
    restarts: int = 0
    eta_seconds: float | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012  (a NamedTuple's default is shared, and nobody writes to it)


def describe(status: RunStatus) -> str:
    """`interrupted at step 120 of 600: by SIGTERM`, for people."""
    progress = f" at step {status.step} of {status.total_steps}" if status.total_steps else ""
    return f"{status.standing}{progress}" + (f": {status.reason}" if status.reason else "")


@dataclass(frozen=True)
class _Batch:
    """What of a plan tells how long a run takes."""

    global_batch_size: int


class _Read(NamedTuple):
    """What one folder says."""

    folder: RunFolder
    state: RunState
    job: Job | None
    attempt: Attempt | None
    beat_age: float | None
    """Seconds since the last heartbeat; None before the first, and where its process is known to be gone."""
    cancel_asked: bool
    row: dict[str, Any]
    unreadable: str | None = None
    """Why the folder could not be read."""


def watch_runs(folders: Iterable[Path]) -> list[RunStatus]:
    """The status of each run folder, in order; SLURM is asked at most twice."""
    read = [_read(RunFolder(folder)) for folder in folders]
    jobs = {"local": Jobs({})}
    for name, cluster in CLUSTERS.items():
        own = [one.job.job_id for one in read if one.job and one.job.backend == name and one.state.status != "finished"]
        jobs[name] = cluster.ask([job_id for job_id in own if job_id])
    return [_status(one, jobs[one.job.backend] if one.job else Jobs({})) for one in read]


def _read(folder: RunFolder) -> _Read:
    try:
        beat_age = max(0.0, time.time() - folder.heartbeat.stat().st_mtime)
    except OSError:
        beat_age = None
    try:
        state = folder.read_state() or RunState("created")
        job, attempt = folder.read_job(), folder.read_attempt()
        if _is_gone(state) and not is_held(folder):
            beat_age = None  # it may have beaten a moment ago
    except (Unreadable, MachineError) as error:
        return _Read(folder, RunState("unknown"), None, None, beat_age, folder.cancel.exists(), {}, str(error))
    if state.status == "unknown":
        return _Read(folder, state, job, attempt, beat_age, folder.cancel.exists(), last_row(folder), state.reason)
    return _Read(folder, state, job, attempt, beat_age, folder.cancel.exists(), last_row(folder))


def _is_gone(state: RunState) -> bool:
    """Whether the process that wrote that it runs is known to be gone; only its own machine can tell."""
    if state.status != "running" or state.pid is None or state.host != os.uname().nodename:
        return False
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def last_row(folder: RunFolder) -> dict[str, Any]:
    """The newest complete row of metrics; empty before the first."""
    if not folder.metrics.is_file():
        return {}
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, folder.metrics.stat().st_size - _METRICS_TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss/total" in row:
            return row
    return {}


def _status(read: _Read, jobs: Jobs) -> RunStatus:
    if read.unreadable is not None:
        return RunStatus(read.folder, "unknown", 0, 0, read.unreadable)
    standing, reason = judge(read.state, read.job, read.attempt, read.beat_age, jobs.states.get(_id(read.job)), jobs.silent)
    waits_here = standing in ("queued", "created") and (read.job is None or read.job.is_local)
    if standing == "interrupted" and (reason or "").startswith(PRUNED):
        standing = "pruned"
    elif read.cancel_asked and (standing in ("interrupted", "lost") or waits_here):
        standing = "cancelled"
    elif standing == "lost" and read.job is None and is_held(read.folder):
        standing, reason = "running", None
    job = jobs.states.get(_id(read.job))
    step = max(read.state.step, int(read.row.get("step", 0))) if standing in GOING_ON else read.state.step
    return RunStatus(
        read.folder,
        standing,
        step,
        read.state.total_steps,
        reason if standing != "failed" or reason else _last_words(read),
        job_id=_id(read.job) or None,
        node=(job.nodes if job and job.nodes else None) or (read.state.host if standing == "running" else None),
        restarts=read.attempt.restart if read.attempt else 0,
        eta_seconds=_eta(read, step) if standing == "running" else None,
        metrics={name: value for name, value in read.row.items() if name.startswith(("loss/", "speed/"))},
    )


def judge(
    state: RunState,
    job: Job | None,
    attempt: Attempt | None,
    beat_age: float | None,
    seen: JobState | None,
    silent: str | None,
) -> tuple[Standing, str | None]:
    """Where a run stands, and why. Pure: everything that was read comes in.

    Args:
        state: the run's own word.
        job: whom it was handed to.
        attempt: its newest start.
        beat_age: seconds since its last heartbeat.
        seen: its job, as its cluster sees it; None when it is not listed.
        silent: why the cluster could not be asked; None when it answered.
    """
    if state.status == "finished":
        return "finished", None
    alive = beat_age is not None and beat_age < STALE_SECONDS and state.status not in ("interrupted", "failed")
    if job is None or job.is_local:
        return _judge_local(state, job, alive)
    if job.job_id is None and silent is None and seen is None:
        return "unknown", "it was being submitted and the submitting process died; tclx run finds its job again or submits it"
    if silent is not None:
        return ("running", None) if alive else ("unknown", f"{CLUSTERS[job.backend].title} does not answer: {silent}")
    ours = attempt is not None and attempt.job_id == job.job_id
    if seen is not None and seen.lives:
        return _judge_living(state, seen, restarted=ours, alive=alive)
    return _judge_ended(state, seen, ours=ours, alive=alive, job=job)


def _judge_local(state: RunState, job: Job | None, alive: bool) -> tuple[Standing, str | None]:
    waits = job is not None and state.updated_at < job.submitted_at and queue_is_alive(job)
    if state.status in ("failed", "interrupted") and not waits:
        return state.status, state.reason
    if alive and state.status == "running":
        return "running", None
    if alive:
        return "starting", None
    if job is not None and queue_is_alive(job):
        return "queued", f"for a free slot on {job.host}"
    if state.status == "created":
        return "created", "it has not been started"
    return "lost", "its process is gone without a word; tclx resume continues it from the newest checkpoint"


def queue_is_alive(job: Job) -> bool:
    """Whether the local queue that has the run still runs: it touches a file as runs do."""
    try:
        return is_recent((Path(job.folder) / "heartbeat").stat().st_mtime)
    except OSError:
        return False


def _judge_living(state: RunState, seen: JobState, *, restarted: bool, alive: bool) -> tuple[Standing, str | None]:
    waits = seen.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING")
    if waits and seen.reason == "DependencyNeverSatisfied":
        return "failed", "the run that it starts from has failed (DependencyNeverSatisfied)"
    if waits:
        why = f"{seen.state.lower()}: {seen.reason}" if seen.reason else seen.state.lower()
        if restarted and state.reason:
            why = f"{why}; before: {state.reason}"
        return ("restarting" if restarted else "queued"), why
    if alive and state.status == "running":
        return "running", None
    if state.status in ("failed", "interrupted") and restarted and seen.state == "RUNNING":
        return "restarting", state.reason  # its job still decides whether to requeue, or has started and does not train yet
    if state.status in ("failed", "interrupted") and restarted:
        return state.status, state.reason  # its last seconds
    return "starting", None


def _judge_ended(state: RunState, seen: JobState | None, *, ours: bool, alive: bool, job: Job) -> tuple[Standing, str | None]:
    cluster = CLUSTERS[job.backend].title
    how = f"{cluster} no longer lists its job"
    if seen is not None:
        how = f"{cluster} says {seen.state}" + (f" ({seen.reason})" if seen.reason else "")
    if seen is not None and seen.state == "CANCELLED":
        return "cancelled", state.reason if state.status == "interrupted" and ours else how
    if state.status in ("failed", "interrupted") and ours:
        return state.status, state.reason
    if alive and seen is None:
        return "running", None  # just started: squeue was asked a moment before
    if seen is None and is_recent(job.submitted_at):
        return "queued", "just submitted"
    if ours or (seen is not None and seen.state == "NODE_FAIL"):
        return "lost", f"{how}, and it left no word; tclx resume continues it from the newest checkpoint"
    return "failed", f"{how}: it ended before training began"


def _last_words(read: _Read) -> str | None:
    lines = last_lines(read.folder.log(0), count=1)
    return lines[0] if lines else None


def _eta(read: _Read, step: int) -> float | None:
    speed = read.row.get("speed/images_per_second")
    if not speed:
        return None
    try:
        batch = read_as(read.folder.plan, _Batch).global_batch_size
    except Unreadable:
        return None
    return float((read.state.total_steps - step) * batch / speed)


def _id(job: Job | None) -> str:
    return (job.job_id or "") if job else ""
