"""What does one training process do from start to exit? `python -m tclx.worker RUN_FOLDER`, alone, as a rank under torchrun, or
called by a SLURM task.

| exit code | state.json | why |
|---|---|---|
| 0 | finished | trained and evaluated |
| 75 | interrupted | asked to stop, saved; the same command continues |
| 1, 2, 3 | failed, with the reason | a `TclxError`'s own code |
| 1 | failed, with the exception | a bug: the traceback is in logs/rank<r>.log and on the screen |
| 69 | left alone | another process trains this run |

What it prints is in logs/rank<r>.log. Rank 0 also shows its progress to whoever started it at a terminal.

As one of several processes an interrupted worker exits with 0: torchrun and srun take any other code for a crash and kill the
others, who are still saving. Every process that gives up says why in errors/rank<r>.json, since the first to fall is seldom the
one that writes the state.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tclx.errors import InputError, Interrupted, LostPeer, MachineError, Problem, RunFailed, StandStill, TclxError
from tclx.files import Unreadable, read_as
from tclx.printing import print_into_log, screen
from tclx.runs import Attempt, RunFolder, RunState, Status, Superseded
from tclx.terminal import error_lines, printable
from tclx.train.stopping import REQUESTS, end_start_up_on_request

INTERRUPTED_AND_SAVED = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""

HELD_BY_ANOTHER = 69
"""EX_UNAVAILABLE of sysexits.h."""

ATTEMPT = "TCLX_ATTEMPT"
"""Environment variable: the name that all processes of one start share."""

PRINT_INTO_LOG = "TCLX_PRINT_INTO_LOG"
"""Environment variable: when set, nothing is shown at the terminal."""

HANDOVER_SECONDS = 300
"""How long a new attempt waits for an old one, which ends at its next written row, to let go of the run."""


class _Held(RunFailed):
    """Another process trains this run; its state is none of our business."""

    exit_code = HELD_BY_ANOTHER


def main(arguments: list[str]) -> int:
    """Train the run of a prepared folder; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m tclx.worker RUN_FOLDER", file=sys.stderr)
        return InputError.exit_code
    name = os.environ.get(ATTEMPT) or f"{socket.gethostname()}-{os.getpid()}"
    folder = RunFolder(Path(arguments[0]))
    if folder.spec.is_file():
        print_into_run(folder, name, keep_screen=not os.environ.get(PRINT_INTO_LOG))
    return work(folder, Attempt(name))


def work(folder: RunFolder, attempt: Attempt, *, takes_over: bool = False) -> int:
    """Train a prepared run as one of its processes; returns the exit code.

    Args:
        folder: of the run.
        attempt: this start of the run, the same in all its processes.
        takes_over: end an older attempt that is still alive, for instance on a node that lost touch; otherwise the run is
            left to it.
    """
    end_start_up_on_request()
    folder, since = replace(folder, attempt_name=attempt.name), time.time()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)  # a sweep's worker has them held back until here
        with _holding(folder, attempt, takes_over=takes_over):
            _train(folder)
            return 0
    except (Interrupted, KeyboardInterrupt) as error:
        _record(folder, "interrupted", str(error) or "stopped while it started")
        return 0 if os.environ.get("WORLD_SIZE", "1") != "1" else INTERRUPTED_AND_SAVED
    except (_Held, Superseded) as error:
        return _give_up(error, error.exit_code)
    except TclxError as error:
        _note_error(folder, str(error), since=since, lost_peer=isinstance(error, LostPeer), still=isinstance(error, StandStill))
        _record(folder, "failed", str(error))
        return _give_up(error, error.exit_code)
    except Exception as error:  # a bug: kept for whoever mends it, and said in the state
        reason = f"{type(error).__name__}: {error} (traceback in {folder.log(_rank())})"
        _note_error(folder, reason, since=since, lost_peer=False)
        _record(folder, "failed", reason)
        _print_traceback()
        return RunFailed.exit_code


def print_into_run(folder: RunFolder, attempt: str, *, keep_screen: bool = False) -> None:
    """From here on this process prints into its log in the run folder."""
    print_into_log(folder.log(_rank()), f"{attempt}, rank {_rank()} on {os.uname().nodename}", keep_screen=keep_screen)


def _train(folder: RunFolder) -> None:
    from tclx.plan import Plan
    from tclx.spec.load import load_spec_json
    from tclx.train.loop import train

    train(folder, load_spec_json(folder.spec), read_as(folder.plan, Plan))


@contextmanager
def _holding(folder: RunFolder, attempt: Attempt, *, takes_over: bool) -> Iterator[None]:
    """Rank 0 holds the run's lock for all ranks, and names this attempt as the one that writes."""
    if not folder.spec.is_file():
        raise InputError(Problem("", f"{folder.path} is not a prepared run folder: it has no spec.json", "use tclx run"))
    if _rank() != 0:
        yield
        return
    if takes_over:
        folder.begin(attempt)
    deadline = time.monotonic() + (HANDOVER_SECONDS if takes_over else 0)
    while True:
        with folder.lock() as free:
            if free:
                folder.begin(attempt)
                yield
                return
        if time.monotonic() >= deadline:
            raise _Held(f"another process is training {folder.path}")
        time.sleep(0.5)


def _record(folder: RunFolder, status: Status, reason: str | None) -> None:
    """Rank 0 says how it ended, unless the training loop of this very process already has; what is finished stays so."""
    if _rank() != 0 or not folder.path.is_dir():
        return
    try:
        folder.check_attempt()
    except Superseded:
        return  # the state is the newer attempt's
    except Unreadable:
        pass  # nobody can tell; this process holds the lock
    state = folder.read_state() or RunState("created")
    said_already = (state.status, state.pid, state.host) == (status, os.getpid(), os.uname().nodename)
    if said_already or state.status == "finished":
        return
    try:
        folder.write_state(replace(state, status=status, reason=reason))
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        with suppress(OSError):
            folder.heartbeat.unlink()  # the state still says that it runs; without a heartbeat nobody believes it


def _note_error(folder: RunFolder, reason: str, *, since: float, lost_peer: bool, still: bool = False) -> None:
    """Leave this process's own word for whoever asks why the run ended, unless a newer attempt has begun since."""
    if not folder.path.is_dir() or _is_superseded(folder, since):
        return
    note: dict[str, Any] = {"attempt": folder.attempt_name, "host": os.uname().nodename, "time": time.time()}
    if still:  # as the watchdog writes it
        note["stood_still"] = {"rank": _rank(), "node": os.environ.get("SLURMD_NODENAME", os.uname().nodename)}
    with suppress(MachineError):  # a full disk is what is being reported; stderr has it
        folder.write_json(folder.error(_rank()), {**note, "reason": reason, "lost_peer": lost_peer})


def _is_superseded(folder: RunFolder, since: float) -> bool:
    """Whether another attempt has begun since this process started.

    A rank may fall before its rank 0 has named their attempt: an older one's name alone says nothing.
    """
    try:
        newest = folder.read_attempt()
    except Unreadable:
        return False
    return newest is not None and newest.name != folder.attempt_name and newest.started_at > since


def _give_up(error: TclxError, exit_code: int) -> int:
    for line in error_lines(error):
        print("error:", line, file=sys.stderr)
    return exit_code


def _print_traceback() -> None:
    """Into the log, and on the screen: whoever mends it reads either."""
    text = printable(traceback.format_exc())
    for stream in filter(None, (sys.stderr, screen())):
        print(text, end="", file=stream)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
