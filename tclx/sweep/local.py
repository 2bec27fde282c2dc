"""How does a sweep run on this machine? So many workers as processes of their own, started again when one dies.

`python -m tclx.sweep.local STUDY_FOLDER` is the same without a terminal: what `--detach` leaves behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tclx.errors import Interrupted, RunFailed
from tclx.files import holding
from tclx.launch.ending import last_lines
from tclx.launch.local.queue import POLL_SECONDS, kill_all, passing_signals, say_when, worker_environment
from tclx.launch.prepare import Say
from tclx.printing import survive_unprintable
from tclx.sweep.claims import living_workers
from tclx.sweep.study import StudyFolder
from tclx.train.stopping import is_echo
from tclx.worker import INTERRUPTED_AND_SAVED

MOST_DEATHS_IN_A_ROW = 3
"""A worker that dies so often without a trial's end in between is not started again."""


@dataclass
class _Seat:
    """A place for one worker."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    exit_code: int | None = None
    ended_trials: int = 0


@dataclass
class _Pool:
    folder: StudyFolder
    seats: list[_Seat]
    say: Say
    asked_at: float | None = None
    """When it was asked to stop."""

    def interrupt(self, number: int) -> None:
        """Ask every worker to save and stop; asked again, end them and all that they have started.

        Raises:
            KeyboardInterrupt: they have been ended.
        """
        living = [seat.process for seat in self.seats if seat.process is not None and seat.process.poll() is None]
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            for process in living:
                process.send_signal(signal.SIGTERM)
        elif not is_echo(number, after=time.monotonic() - self.asked_at):
            for process in living:
                kill_all(process.pid)
            raise KeyboardInterrupt


@contextmanager
def as_only_pool(folder: StudyFolder) -> Iterator[bool]:
    """The right to start workers of a study on this machine, for as long as the block runs; yields False when another pool has
    it, or workers of one that was killed live on.
    """
    with holding(folder.pool_lock) as free:
        yield free and not living_workers(folder)


def run_workers(
    folder: StudyFolder,
    num_workers: int,
    *,
    say: Say,
    look: Callable[[], None] = lambda: None,
    num_ended: Callable[[], int] = lambda: 0,
) -> int:
    """Work on a study with processes here until nothing is left to do; returns the exit code.

    Args:
        folder: of the study.
        num_workers: trials at the same time.
        say: receives a line for people at every turn.
        look: called again and again while they work.
        num_ended: trials that have ended so far: a worker that gets on may die again.
    """
    pool = _Pool(folder, [_Seat(number) for number in range(num_workers)], say)
    with passing_signals(pool.interrupt):
        try:
            _watch(pool, look, num_ended)
        except KeyboardInterrupt:
            say("ended at once, not everything is saved; the same command goes on from the newest checkpoints")
            return Interrupted.exit_code
    if pool.asked_at is not None:
        say("stopped, everything is saved; the same command goes on")
        return Interrupted.exit_code
    return max((seat.exit_code or 0 for seat in pool.seats), default=0)


def _watch(pool: _Pool, look: Callable[[], None], num_ended: Callable[[], int]) -> None:
    """Until no worker is left."""
    told = False
    for seat in pool.seats:
        if pool.asked_at is None:
            _start(seat, pool.folder)
    while any(seat.process is not None for seat in pool.seats):
        for seat in pool.seats:
            if seat.process is not None and seat.process.poll() is not None:
                _ended(seat, pool, num_ended())
        if pool.asked_at is not None and not told:
            told = True
            pool.say("stopping: what runs saves after its step and ends; once more: ends at once")
        look()
        time.sleep(POLL_SECONDS)


def worker_log(folder: StudyFolder, number: int) -> Path:
    """What a worker has printed."""
    return folder.path / "logs" / f"worker{number}.log"


def _start(seat: _Seat, folder: StudyFolder) -> None:
    log = worker_log(folder, seat.number)
    log.parent.mkdir(exist_ok=True)
    seat.process = _in_background("tclx.sweep.worker", folder, log)


def _ended(seat: _Seat, pool: _Pool, num_ended: int) -> None:
    """A worker that was killed is started again: its trial goes on where it was saved."""
    code = seat.process.returncode if seat.process is not None else 0
    seat.process, seat.exit_code = None, 0 if code == 0 else RunFailed.exit_code
    if code in (0, INTERRUPTED_AND_SAVED) or pool.asked_at is not None:
        return
    words = "; ".join(last_lines(worker_log(pool.folder, seat.number), count=1))
    if code > 0:
        pool.say(f"worker {seat.number} ends with exit code {code}: {words}")
        seat.exit_code = code
        return
    seat.deaths = 1 if num_ended > seat.ended_trials else seat.deaths + 1
    seat.ended_trials = num_ended
    how = signal.Signals(-code).name
    if seat.deaths >= MOST_DEATHS_IN_A_ROW:
        pool.say(f"worker {seat.number} was killed by {how} {seat.deaths} times in a row and is not started again: {words}")
        return
    pool.say(f"worker {seat.number} was killed by {how} and is started again")
    _start(seat, pool.folder)


def detach(folder: StudyFolder) -> int:
    """Leave the workers to a process that outlives this terminal; returns its id."""
    return _in_background("tclx.sweep.local", folder, folder.path / "pool.log").pid


def _in_background(module: str, folder: StudyFolder, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder.path)],
            env=worker_environment(1),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def main(arguments: list[str]) -> int:
    """Run the workers of a study that `tclx sweep --detach` has prepared."""
    folder = StudyFolder(Path(arguments[0]))
    say_when(f"pool {os.getpid()}")
    with as_only_pool(folder) as alone:
        if not alone:
            say_when("another pool works on this study")
            return 0
        return run_workers(folder, folder.read_sweep().spec.num_workers, say=say_when)


if __name__ == "__main__":
    survive_unprintable()
    sys.exit(main(sys.argv[1:]))
