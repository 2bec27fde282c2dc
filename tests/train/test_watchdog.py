"""Promises of the watchdog: what stands still is ended and named, what is slow is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tclx.runs import RunFolder, RunState
from tclx.train import watchdog
from tclx.train.watchdog import (
    BATCH,
    ENDED,
    EVALUATING,
    FIRST_STEP,
    FLOOR_SECONDS,
    SILENT_SECONDS,
    STARTING,
    Stage,
    Verdict,
    Watchdog,
    Word,
    _Watch,
    read_word,
)

TICK = 5.0
STEP = Stage("a training step", bound=FLOOR_SECONDS, busy_is_progress=False)


def word(rank: int, stage: Stage, *, idle: float = 0.0, number: int = 1, step: int = 7, at: str = "graph.py:1") -> Word:
    return Word("a", rank, f"h{rank}", f"n{rank}", 100 + rank, step, stage.name, at, idle, stage.bound, stage.silence, number)


class Clock:
    """A run of four as rank 0 sees it, tick by tick."""

    def __init__(self) -> None:
        self.watch, self.now, self.number, self.progress = _Watch(), 1000.0, 0, 0
        self.idle = 0.0

    def tick(
        self,
        stage: Stage,
        others: dict[int, Stage],
        *,
        moves: bool = False,
        cpu: float | None = None,
        silent: tuple[int, ...] = (),
        busy: tuple[int, ...] = (),
        took: float = TICK,
        places: dict[int, str] | None = None,
    ) -> Verdict | None:
        """One look: whether the own main thread has moved, who has not written since, who is busy."""
        self.now, self.number, self.progress = self.now + took, self.number + 1, self.progress + moves
        own = self.watch.look(word(0, stage), self.progress, cpu, self.now)
        self.idle = own.idle
        theirs = [
            word(
                rank,
                what,
                idle=0.0 if rank in busy else own.idle,
                number=1 if rank in silent else self.number,
                at=(places or {}).get(rank, "graph.py:1"),
            )
            for rank, what in others.items()
        ]
        return self.watch.judge(own, theirs)

    def seconds_until_verdict(self, *args: object, most: int = 1000, **kwargs: object) -> tuple[float, Verdict]:
        began = self.now
        for _ in range(most):
            if (verdict := self.tick(*args, **kwargs)) is not None:  # type: ignore[arg-type]
                return self.now - began, verdict
        raise AssertionError("no verdict")


THREE = {1: STEP, 2: STEP, 3: STEP}


def test_a_stopped_rank_is_named_within_a_minute() -> None:
    clock = Clock()
    for _ in range(5):
        assert clock.tick(STEP, THREE, moves=True) is None
    seconds, verdict = clock.seconds_until_verdict(STEP, THREE, silent=(2,))
    assert seconds <= 60 - 2 * TICK  # its last word and our look are a tick each
    assert verdict.culprit is not None
    assert verdict.culprit.rank == 2
    assert "rank 2 on n2 (process 102) has given no sign of life for" in verdict.reason
    assert "it was at step 7: a training step" in verdict.reason


def test_silence_alone_is_no_reason_while_the_run_moves() -> None:
    """Its node may only have lost sight of the folder."""
    clock = Clock()
    assert all(clock.tick(STEP, THREE, silent=(2,), moves=True) is None for _ in range(100))


def test_a_rank_that_has_ended_is_not_missed() -> None:
    clock = Clock()
    others = {1: ENDED, 2: ENDED, 3: ENDED}
    assert all(clock.tick(EVALUATING, others, silent=(1, 2, 3), cpu=5.0 * tick) is None for tick in range(500))


def test_a_rank_that_may_hold_the_interpreter_has_longer() -> None:
    clock = Clock()
    seconds, _ = clock.seconds_until_verdict(STARTING, dict.fromkeys((1, 2, 3), STARTING), silent=(2,))
    assert STARTING.silence <= seconds < STARTING.silence + 3 * TICK
    assert STARTING.silence > 10 * SILENT_SECONDS


def test_a_step_of_living_ranks_ends_at_its_bound_and_names_who_does_something_else() -> None:
    clock = Clock()
    seconds, verdict = clock.seconds_until_verdict(STEP, THREE, places={3: "images.py:60"})
    assert FLOOR_SECONDS <= seconds <= FLOOR_SECONDS + 2 * TICK
    assert verdict.culprit is not None
    assert verdict.culprit.rank == 3
    assert "has stood still" in verdict.reason
    assert "images.py:60" in verdict.reason


def test_where_all_wait_at_the_same_place_nobody_is_accused() -> None:
    _, verdict = Clock().seconds_until_verdict(STEP, THREE)
    assert verdict.culprit is None
    assert "all 4 processes have stood still" in verdict.reason


def test_the_others_wait_for_a_rank_whose_loaders_work() -> None:
    """The first batches of a cold network file system take their time."""
    clock = Clock()
    others = {1: STEP, 2: BATCH, 3: STEP}
    assert all(clock.tick(STEP, others, busy=(2,)) is None for _ in range(500))
    seconds, verdict = clock.seconds_until_verdict(STEP, others)
    assert verdict.culprit is not None
    assert (verdict.culprit.rank, verdict.culprit.stage) == (2, BATCH.name)
    assert seconds <= 2 * TICK


@pytest.mark.parametrize("stage", [STARTING, FIRST_STEP, BATCH, EVALUATING])
def test_who_uses_a_processor_gets_on_outside_of_steps(stage: Stage) -> None:
    clock = Clock()
    assert all(clock.tick(stage, {}, cpu=0.2 * tick) is None for tick in range(1000))
    seconds, verdict = clock.seconds_until_verdict(stage, {}, cpu=200.0)
    assert stage.bound <= seconds <= stage.bound + 2 * TICK
    assert verdict.culprit is not None
    assert verdict.reason.startswith("process 100 on n0 has stood still")


def test_time_in_which_this_process_was_stopped_too_is_not_counted() -> None:
    """A suspended job, a laptop that slept: an hour later everything goes on."""
    clock = Clock()
    clock.tick(STEP, THREE, moves=True)
    assert clock.tick(STEP, THREE, took=3600.0, silent=(1, 2, 3)) is None
    assert clock.idle <= 2 * TICK
    assert clock.tick(STEP, THREE) is None


def test_a_step_may_take_twenty_medians_and_five_minutes(tmp_path: Path) -> None:
    dog = Watchdog(RunFolder(tmp_path), rank=0, world_size=1)
    with dog.step(0):
        assert dog.stage == FIRST_STEP
    for seconds, bound in ((1.0, 300.0), (60.0, 1200.0)):
        dog._durations.clear()
        dog._durations.extend([seconds] * 5)
        with dog.step(1):
            assert dog.stage.bound == bound
        dog._durations.pop()
        with dog.step(1, compiles=True):
            assert dog.stage.bound == max(bound, 1800.0)


def test_a_stage_lasts_for_its_block(tmp_path: Path) -> None:
    dog = Watchdog(RunFolder(tmp_path), rank=0, world_size=1)
    with dog.during(EVALUATING):
        with suppress(KeyError), dog.during(BATCH):
            assert dog.stage == BATCH
            raise KeyError
        assert dog.stage == EVALUATING
    assert dog.stage == STARTING


def test_every_process_says_what_it_does_and_at_last_that_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.02)
    folder = replace(RunFolder(tmp_path), attempt_name="job7.0")
    with Watchdog(folder, rank=3, world_size=1) as dog, dog.step(12):
        deadline = time.monotonic() + 10
        # Most words are written while this thread sleeps here; one may be while it reads the one before.
        while (said := read_word(folder, 3)) is None or said.step != 12 or not said.at.startswith("test_watchdog.py:"):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        assert (said.attempt, said.pid, said.stage) == ("job7.0", os.getpid(), FIRST_STEP.name)
    ended = read_word(folder, 3)
    assert ended is not None
    assert ended.stage == ENDED.name


STANDS_STILL = """
import sys, time
from pathlib import Path
from tclx.runs import RunFolder
from tclx.train import watchdog
from tclx.train.watchdog import Stage, Watchdog

watchdog.TICK_SECONDS = 0.1
folder = RunFolder(Path(sys.argv[1]))
with Watchdog(folder, rank=0, world_size=1) as dog, dog.during(Stage("waiting for nothing", bound=0.5, busy_is_progress=False)):
    def in_vain():
        time.sleep(60)
    in_vain()
"""


def test_what_stands_still_is_ended_with_its_stacks_and_the_reason(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_state(RunState("running", step=9, total_steps=12))
    folder.write_json(folder.checkpoints / "step-00000006" / "manifest.json", {})
    done = subprocess.run([sys.executable, "-c", STANDS_STILL, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 3, done.stderr
    assert "has stood still" in done.stderr
    state = folder.read_state()
    assert state is not None
    assert (state.status, state.step, state.total_steps) == ("failed", 6, 12)  # where it goes on
    assert "waiting for nothing" in (state.reason or "")
    assert "in_vain" in folder.stacks(0).read_text()
    note = json.loads(folder.error(0).read_text())
    assert note["lost_peer"] is False
    assert note["stood_still"]["rank"] == 0
    assert [event["event"] for event in folder.read_events()] == ["failed"]


def said_by(folder: Path, rank: int) -> str | None:
    """What a process does, by its own word."""
    word = read_word(RunFolder(folder), rank)
    return word.stage if word is not None else None


def test_a_second_process_ends_when_its_companion_is_stopped(tmp_path: Path) -> None:
    """Two real processes; the folder is all that they share."""
    program = STANDS_STILL.replace("rank=0, world_size=1", "rank=int(sys.argv[2]), world_size=2").replace(
        "bound=0.5", "silence=1.0"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
                 for rank in range(2)]  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while [said_by(tmp_path, rank) for rank in range(2)] != ["waiting for nothing"] * 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGSTOP)
        _, said = processes[0].communicate(timeout=40)
        assert processes[0].returncode == 3, said
        assert f"rank 1 on {os.uname().nodename} (process {processes[1].pid}) has given no sign of life" in said
        assert "is stopped (SIGSTOP" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
