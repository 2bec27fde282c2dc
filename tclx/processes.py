"""What can be known of another process of ours from outside? Whether it does anything, what it waits for, whether it is gone.

A process that was stopped, or that waits for a file system which does not answer, says nothing of it itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil


def end_with(parent: int) -> None:
    """End this process when the one that began it is gone: after a SIGKILL nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Seen(NamedTuple):
    """Some processes, as of now."""

    cpu_seconds: float
    """That those which live have used so far, together."""
    stopped: tuple[int, ...]
    """Those that a signal stopped."""
    words: str
    """What each does: `process 4711 is stopped, process 4712 sleeps in nfs_wait_bit_killable`."""


def look_at(pids: Iterable[int]) -> Seen:
    """What processes do; one that is gone is left out."""
    cpu, stopped, words = 0.0, [], []
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            times, status = process.cpu_times(), process.status()
            cpu += times.user + times.system
            stopped += [pid] if status == psutil.STATUS_STOPPED else []
            words.append(f"process {pid} {_VERBS.get(status, f'is {status}')}{_waits_in(pid, status)}")
    return Seen(cpu, tuple(stopped), ", ".join(words))


_VERBS = {
    psutil.STATUS_STOPPED: "is stopped (SIGSTOP; `kill -CONT` lets it go on)",
    psutil.STATUS_DISK_SLEEP: "waits for a disk or a network file system",
    psutil.STATUS_SLEEPING: "sleeps",
    psutil.STATUS_RUNNING: "runs",
    psutil.STATUS_ZOMBIE: "has ended",
}


def _waits_in(pid: int, status: str) -> str:
    """The kernel's function that a sleeper waits in, where this system says so."""
    if status not in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP):
        return ""
    try:
        place = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")
    except OSError:
        return ""
    return f" in {place}" if place not in ("", "0") else ""
