"""Who works on a trial? One worker at a time; when it is gone, the next one takes the trial over where it stands.

Optuna knows that a trial runs, not whether its process lives. A worker holds the lock of its own file and touches it every few
seconds, so its end shows at once on its own machine and within a minute and a half elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from tclx.files import beating, is_recent, lock_is_free, write_atomically
from tclx.runs import BEAT_SECONDS
from tclx.sweep.study import StudyFolder


@dataclass(frozen=True)
class Claim:
    """Who works on a trial, and how it went so far."""

    worker: str
    host: str
    starts: int = 1
    """How often a worker has begun or continued it."""
    deaths: int = 0
    """How often its worker has died over it without saving a further step."""
    step: int = 0
    """The training step saved when it was last taken over."""
    released: bool = False
    """Whether its worker let it go on purpose."""


@contextmanager
def living(folder: StudyFolder, worker: str) -> Iterator[None]:
    """Be known as alive for as long as the block runs."""
    path = folder.workers / worker
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        try:
            with beating(path, every_seconds=BEAT_SECONDS):
                yield
        finally:
            path.unlink(missing_ok=True)


def is_alive(folder: StudyFolder, claim: Claim) -> bool:
    """Whether the worker of a claim may still work."""
    if claim.released:
        return False
    path = folder.workers / claim.worker
    try:
        file = path.open("a") if path.exists() else None
    except OSError:
        file = None
    if file is None:
        return False
    with file:
        if claim.host == socket.gethostname():
            return not lock_is_free(file.fileno())
        return is_recent(os.fstat(file.fileno()).st_mtime)


def read_claim(folder: StudyFolder, number: int) -> Claim | None:
    """Who works, or worked, on a trial; None before anybody did."""
    try:
        content = json.loads(folder.claim(number).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Claim(**content)


def write_claim(folder: StudyFolder, number: int, claim: Claim) -> None:
    write_atomically(folder.claim(number), json.dumps(asdict(claim)))


def take(folder: StudyFolder, number: int, worker: str, *, step: int) -> Claim:
    """Make a trial this worker's; the caller holds the study's lock and has made sure that nobody else lives on it.

    Args:
        folder: of the study.
        number: the trial's.
        worker: this one.
        step: what the trial has saved by now.
    """
    before = read_claim(folder, number)
    mine = Claim(worker, socket.gethostname())
    if before is not None:
        died_here = not before.released and step <= before.step
        mine = replace(mine, starts=before.starts + 1, deaths=before.deaths + 1 if died_here else 0, step=step)
    write_claim(folder, number, mine)
    return mine


def release(folder: StudyFolder, number: int) -> None:
    """Let the trial go, saved: whoever comes next continues it, and this was no death."""
    if (claim := read_claim(folder, number)) is not None:
        write_claim(folder, number, replace(claim, released=True))


def new_worker() -> str:
    """A name that no other worker has; it says on which machine the worker lives."""
    return f"{secrets.token_hex(4)}@{socket.gethostname()}"


def living_workers(folder: StudyFolder) -> list[str]:
    """The workers that live, on whichever machine."""
    names = [path.name for path in folder.workers.glob("*@*")]
    return [name for name in names if is_alive(folder, Claim(name, name.partition("@")[2]))]


def has_pool(folder: StudyFolder) -> bool:
    """Whether a process on this machine starts workers, also those that do not live yet."""
    try:
        with folder.pool_lock.open("rb") as file:
            return not lock_is_free(file.fileno())
    except FileNotFoundError:
        return False


def process_of(folder: StudyFolder, worker: str) -> tuple[int | None, str]:
    """A worker's process id, and the machine on which it is one."""
    try:
        text = (folder.workers / worker).read_text(encoding="utf-8")
    except OSError:
        text = ""
    return (int(text) if text.isdigit() else None), worker.partition("@")[2]
