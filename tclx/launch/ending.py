"""Why did a run end? What its processes left behind -> one sentence that names the process, the cause and what to change.

When one process of several falls, the others fall over it: the first error that is no consequence is the cause. A process that
was killed leaves no word; then SLURM's own log may know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tclx.files import Unreadable, read_object
from tclx.runs import RunFolder

_OUT_OF_MEMORY = re.compile(r"oom.?kill|out.of.memory|exceeded (job |step )?memory limit|memory limit \(\d+", re.IGNORECASE)
_KILLED_TASK = re.compile(
    r"tasks? (\d+)[^\n]*: (Out Of Memory|Killed|Segmentation fault|Bus error|Aborted|Exited with exit code \d+)"
)
"""The tasks that are `Terminated` were ended because of another one."""

_EARLIER_START = re.compile(r".*\*\*\* JOB [^\n]*DUE TO (?:JOB REQUEUE|PREEMPTION|NODE FAILURE)[^\n]*", re.DOTALL)
"""A job that starts again goes on in the same log."""

AT_ONCE_SECONDS = 15.0
"""Processes that end because one stands still do so within this time of each other."""

TAIL_BYTES = 20_000
TAIL_LINES = 15


class Cause(NamedTuple):
    """Why a run ended without being asked to."""

    reason: str
    by_itself: bool
    """Its own doing: started again it would end the same way."""
    stood_still: bool = False
    """Nothing moved any more, and its processes ended themselves."""
    node: str | None = None
    """On which it happened, where that is known."""


def find_cause(
    folder: RunFolder, attempt: str, *, log: Path | None, memory_key: str | None, own_word: str | None = None
) -> Cause:
    """Read the errors of one attempt, then the log around it.

    Args:
        folder: of the run.
        attempt: whose errors count; those of earlier ones are still there.
        log: what SLURM printed around the processes, if anything.
        memory_key: the spec's key that grants memory, for the advice.
        own_word: what the run's state says; counts where no process could leave a note, as on a full disk.
    """
    own = [note for note in _notes(folder) if note.get("attempt") == attempt]
    causes = sorted((note for note in own if not note["lost_peer"]), key=lambda note: note["time"])
    # A process that a companion ends for standing still may yet say that it was disturbed.
    still = next((note for note in causes if note.get("stood_still")), None)
    if still is not None and causes[0]["time"] > still["time"] - AT_ONCE_SECONDS:
        return Cause(still["reason"], by_itself=False, stood_still=True, node=still["stood_still"].get("node"))
    if causes:
        first = causes[0]
        where = f"rank {first['rank']} on {first['host']}: " if len(own) > 1 or first["rank"] else ""
        return Cause(f"{where}{first['reason']}", by_itself=True)
    text = _EARLIER_START.sub("", tail(log))
    killed = _KILLED_TASK.search(text)
    who = f"rank {killed[1]}" if killed else "a process"
    if _OUT_OF_MEMORY.search(text):
        advice = f"raise {memory_key}" if memory_key else "give it more memory"
        return Cause(
            f"{who} ran out of memory and was killed: {advice}, or lower data.num_workers or the batch", by_itself=True
        )
    how = f" ({killed[2].lower()})" if killed else ""
    node = _node_of(folder, attempt, int(killed[1])) if killed else None
    return Cause(f"{who} was killed{how} without a word", by_itself=False, node=node)


def _node_of(folder: RunFolder, attempt: str, rank: int) -> str | None:
    """Where a process of this attempt ran, by its own last word."""
    try:
        word = folder.read_json(folder.rank(rank))
        return str(word["node"]) if word["attempt"] == attempt else None
    except (Unreadable, KeyError):
        return None


def _notes(folder: RunFolder) -> Iterable[dict[str, Any]]:
    for path in sorted(folder.error(0).parent.glob("rank*.json")):
        rank = path.stem.removeprefix("rank")
        with suppress(Unreadable):  # one that cannot be read must not hide the others
            note = {"lost_peer": False, "time": 0.0, "host": "?", "reason": "", **read_object(path)}
            if rank.isdecimal() and isinstance(note["time"], int | float):
                yield {**note, "rank": int(rank)}


def tail(path: Path | None, *, num_bytes: int = TAIL_BYTES) -> str:
    """The end of a log; empty where there is none."""
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - num_bytes))
        return file.read().decode(errors="replace")


def last_lines(path: Path | None, *, count: int = TAIL_LINES) -> list[str]:
    """The last lines that say something."""
    return [line for line in tail(path).splitlines() if line.strip()][-count:]
