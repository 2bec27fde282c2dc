"""Does this process get on, and do its companions? A thread beside the training that ends what stands still.

Every process says in ranks/rank<r>.json every few seconds what it does and for how long nothing has moved. All of them read all
of it, so whichever rank stands still, the others say which, and end; nobody waits for a collective's timeout.

| a process | is it at once when | is ended by its companions when |
|---|---|---|
| is stopped, or its machine is gone | | it gives no sign of life for `silence` of its stage |
| lives and stands still | no process has got on for the `bound` of its stage | |

A stage says what counts as getting on. Time in which this thread could not run itself (the job was suspended, a laptop slept,
the file system hung for everybody) is not counted.
"""

from __future__ import annotations

import faulthandler
import json
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple, Self

from tclx.errors import MachineError, StandStill
from tclx.printing import announce, screen
from tclx.processes import look_at
from tclx.runs import RunFolder, RunState, Status, Superseded

TICK_SECONDS = 5.0
"""Between two looks."""

SILENT_SECONDS = 35.0
"""A living process writes every 5 s: after so long without it has been stopped, or its machine is gone."""

MEDIANS = 20.0
FLOOR_SECONDS = 300.0
"""A step may take so many times the median of those before, and in any case so long."""

BUSY_SHARE = 0.02
"""Of one processor: a process that uses less does nothing."""

WORD_BYTES = 1024
"""Length of what a process says of itself, filled up with blanks: a later word covers the whole of an earlier one."""

LAST_WORDS_SECONDS = 3.0
"""What a process that ends itself may take to write down why: the folder's file system may be what does not answer."""


@dataclass(frozen=True)
class Stage:
    """What a process is doing, and how long it may do so without getting on."""

    name: str
    """Follows `while` and `:` in messages."""
    bound: float = 1800.0
    """Seconds."""
    silence: float = SILENT_SECONDS
    """Seconds without a sign of life; longer where a library may keep Python's other threads from running."""
    busy_is_progress: bool = True
    """Whether using a processor counts as getting on."""


STARTING = Stage("starting", silence=600.0)
FIRST_STEP = Stage("the first step", silence=600.0)
BATCH = Stage("waiting for a batch", bound=360.0)
EVALUATING = Stage("evaluating")
SAVING = Stage("saving a checkpoint", silence=600.0)
UPLOADING = Stage("waiting for W&B", bound=math.inf)  # it has a bound of its own
ENDED = Stage("ended", bound=math.inf, silence=math.inf)


class Word(NamedTuple):
    """What one process last said of itself."""

    attempt: str | None
    rank: int
    host: str
    node: str
    """SLURM's name of it, elsewhere the host's."""
    pid: int
    step: int
    stage: str
    at: str
    """Where its main thread is in the code."""
    idle: float
    """Seconds since it got on."""
    bound: float
    silence: float
    number: int
    """Of this word; a new one is a sign of life."""

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.node} (process {self.pid})"


class Verdict(NamedTuple):
    """That the run stands still."""

    reason: str
    culprit: Word | None
    """Which process it waits for, where one can be named."""


class Watchdog:
    """What the main thread tells, and the thread that reads it."""

    def __init__(self, folder: RunFolder, *, rank: int, world_size: int) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._stage, self._step, self._progress = STARTING, 0, 0
        self._durations: deque[float] = deque(maxlen=101)
        self._main = threading.main_thread().ident
        self._ended = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # ------------------------------------------------------------------------------------------------ told by the main thread

    @property
    def stage(self) -> Stage:
        return self._stage

    def enter(self, stage: Stage) -> None:
        """From here on this is what is done."""
        self._stage, self._progress = stage, self._progress + 1

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """In the block this is what is done."""
        before = self._stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    @contextmanager
    def step(self, number: int, *, compiles: bool = False) -> Iterator[None]:
        """In the block a training step is taken; the first one may take as long as it is busy.

        Args:
            number: steps that were taken before.
            compiles: another shape may have to be compiled at any step.
        """
        began = time.monotonic()
        known = len(self._durations) > 0
        bound = max(1800.0 if compiles else FLOOR_SECONDS, MEDIANS * statistics.median(self._durations) if known else 0.0)
        self.enter(Stage("a training step", bound=bound, busy_is_progress=False) if known else FIRST_STEP)
        self._step = number
        yield
        self._durations.append(time.monotonic() - began)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.enter(ENDED)
        self._ended.set()
        self._thread.join(LAST_WORDS_SECONDS)

    # ----------------------------------------------------------------------------------------------------------- the thread

    def _watch(self) -> None:
        watch, number = _Watch(), 0
        while True:
            number += 1
            own = watch.look(self._own_word(number), self._progress, self._cpu_seconds(), time.monotonic())
            self._write(own)
            if self._stage is ENDED:
                return
            # While this process gets on so do the others, since they exchange something in every step.
            verdict = watch.judge(own, self._read_others() if own.idle >= TICK_SECONDS else [])
            if verdict is not None and not self._ended.is_set():
                self._stand_still(verdict, own)
            self._ended.wait(TICK_SECONDS)

    def _own_word(self, number: int) -> Word:
        step = self._step  # read before the stage, as it is written after it
        stage, host = self._stage, os.uname().nodename
        frame = sys._current_frames().get(self._main or 0)
        at = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame is not None else ""
        node = os.environ.get("SLURMD_NODENAME", host)
        attempt, pid = self._folder.attempt_name, os.getpid()
        bound, silence = stage.bound, stage.silence
        return Word(attempt, self._rank, host, node, pid, step, stage.name, at, 0.0, bound, silence, number)

    def _cpu_seconds(self) -> float | None:
        """Of this process and its loaders; None where using a processor is no progress."""
        if not self._stage.busy_is_progress:
            return None
        children = [child.pid for child in multiprocessing.active_children() if child.pid]
        return time.process_time() - time.thread_time() + look_at(children).cpu_seconds  # without this thread's own

    def _write(self, word: Word) -> None:
        """In place, since a network file system shows a renamed file late; at once, since it may be stopped at any time."""
        with suppress(OSError):  # what is wrong with the folder ends the process where it writes what matters
            path = self._folder.rank(self._rank)
            path.parent.mkdir(exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, json.dumps(word._asdict()).ljust(WORD_BYTES).encode(), 0)
            finally:
                os.close(file)

    def _read_others(self) -> list[Word]:
        found = (read_word(self._folder, rank) for rank in range(self._world_size) if rank != self._rank)
        return [word for word in found if word is not None and word.attempt == self._folder.attempt_name]

    # ------------------------------------------------------------------------------------------------------------ the ending

    def _stand_still(self, verdict: Verdict, own: Word) -> None:
        culprit = verdict.culprit or own
        reason = verdict.reason
        if culprit.host == own.host and culprit.pid != own.pid and (seen := look_at([culprit.pid]).words):
            reason = f"{reason}; seen from outside, {seen}"
        note = {"stood_still": {"rank": culprit.rank, "node": verdict.culprit.node if verdict.culprit else None}}
        self.leave("failed", reason, exit_code=StandStill.exit_code, note=note)

    def leave(self, status: Status, reason: str, *, exit_code: int, note: dict[str, Any] | None = None) -> None:
        """End this process now, whatever its main thread does: its stacks, the reason and the state are written first.

        Args:
            status: of the run, which rank 0 writes.
            reason: for people.
            exit_code: of this process.
            note: further facts for errors/rank<r>.json; None leaves none.
        """
        if not self._leaving.acquire(blocking=False):
            return
        announce(f"\n{status}: {reason}\n")
        words = threading.Thread(target=self._last_words, args=(status, reason, note), daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)
        for child in multiprocessing.active_children():
            child.kill()
        if (terminal := screen() or sys.stderr).isatty():
            os.write(terminal.fileno(), b"\x1b[?25h")  # a progress bar has hidden the cursor
        os._exit(exit_code)

    def _last_words(self, status: Status, reason: str, note: dict[str, Any] | None) -> None:
        folder = self._folder
        with suppress(OSError, MachineError, Superseded):  # the folder may be what does not answer; stderr has the reason
            folder.check_attempt()
            if note is not None:
                word = {"attempt": folder.attempt_name, "host": os.uname().nodename, "time": time.time(), "reason": reason}
                folder.write_json(folder.error(self._rank), {**word, "lost_peer": False, **note})
                with folder.stacks(self._rank).open("w", encoding="utf-8") as file:
                    file.write(f"{reason}\n\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
            if self._rank == 0:
                state = folder.read_state() or RunState("created")
                step = folder.saved_step()
                folder.write_state(replace(state, status=status, step=step, reason=reason))
                folder.add_event(status, step=step, reason=reason)


def read_word(folder: RunFolder, rank: int) -> Word | None:
    """What a process last said; None before its first word, or where it is half written."""
    try:
        return Word(**json.loads(folder.rank(rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class _Watch:
    """What one process has seen so far of itself and of the others. Time comes in, so that a test can say what it is."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._elapsed = 0.0
        self._progress, self._idle, self._cpu = -1, 0.0, 0.0
        self._heard: dict[int, int] = {}
        self._silent: dict[int, float] = {}

    def look(self, own: Word, progress: int, cpu_seconds: float | None, now: float) -> Word:
        """The own word with the time in which this process has not got on."""
        elapsed = now - self._looked_at if self._looked_at is not None else 0.0
        self._looked_at, self._elapsed = now, min(elapsed, 2 * TICK_SECONDS)  # more: this thread did not run either
        cpu = cpu_seconds if cpu_seconds is not None else self._cpu
        is_busy = cpu_seconds is not None and cpu - self._cpu > BUSY_SHARE * elapsed
        moved = progress != self._progress or is_busy
        self._progress, self._cpu = progress, cpu
        self._idle = 0.0 if moved else self._idle + self._elapsed
        return own._replace(idle=self._idle)

    def judge(self, own: Word, others: list[Word]) -> Verdict | None:
        """Whether the run stands still, and because of whom."""
        for word in others:
            heard = self._heard.get(word.rank) != word.number
            self._silent[word.rank] = 0.0 if heard else self._silent[word.rank] + self._elapsed
            self._heard[word.rank] = word.number
        living = [word for word in others if word.stage != ENDED.name]
        silent = [word for word in living if self._silent[word.rank] >= word.silence]
        if silent and own.idle >= min(word.silence for word in silent):
            first = max(silent, key=lambda word: self._silent[word.rank])
            seconds = self._silent[first.rank]
            reason = f"{first.name} has given no sign of life for {seconds:.0f} s; {_before(first)}"
            return Verdict(reason, first)
        everyone = [own, *living]
        if own.idle < own.bound or any(word.idle < word.bound for word in living):
            return None
        culprit = _odd_one(everyone)
        if culprit is None:
            return Verdict(f"all {len(everyone)} processes have stood still for {own.idle:.0f} s; {_before(own)}", None)
        who = culprit.name if len(everyone) > 1 else f"process {culprit.pid} on {culprit.node}"
        return Verdict(f"{who} has stood still for {culprit.idle:.0f} s; {_before(culprit)}", culprit)


def _before(word: Word) -> str:
    return f"it was at step {word.step}: {word.stage}" + (f" ({word.at})" if word.at else "")


def _odd_one(words: list[Word]) -> Word | None:
    """The one process that does something else than the others, who wait for it."""
    if len(words) == 1:
        return words[0]
    places = Counter((word.step, word.stage, word.at) for word in words)
    rare = [word for word in words if places[word.step, word.stage, word.at] == 1]
    if len(rare) == 1:
        return rare[0]
    waiting = [word for word in words if word.stage == BATCH.name]
    return waiting[0] if len(waiting) == 1 else None
