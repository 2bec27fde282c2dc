"""What does one training process do from start to exit? `python -m tclx.worker RUN_FOLDER`, alone or as a rank under torchrun.

| exit code | state.json | why |
|---|---|---|
| 0 | finished | trained and evaluated |
| 75 | interrupted | asked to stop, saved; the same command continues |
| 1, 2, 3 | failed, with the reason | a `TclxError`'s own code |
| 1 | failed, with the exception | a bug: the traceback is on stderr and in logs/rank<r>.log |
| 1 | left alone | another process on this machine trains this run |

Under torchrun an interrupted worker exits with 0: torchrun would report any other code as a crash, and reports its own.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tclx.errors import InputError, Interrupted, Problem, RunFailed, TclxError
from tclx.runs import RunFolder, RunState, Status

INTERRUPTED_AND_SAVED = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""


class _Held(RunFailed):
    """Another process trains this run; its state is none of our business."""


def main(arguments: list[str]) -> int:
    """Train the run of a prepared folder; returns the exit code."""
    # Until the training loop has its own handlers, a request to stop ends the start-up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if len(arguments) != 1:
        print("usage: python -m tclx.worker RUN_FOLDER", file=sys.stderr)
        return InputError.exit_code
    folder = RunFolder(Path(arguments[0]))
    try:
        with _holding(folder):
            _train(folder)
            return 0
    except (Interrupted, KeyboardInterrupt) as error:
        _record(folder, "interrupted", str(error) or None)
        return 0 if "TORCHELASTIC_RUN_ID" in os.environ else INTERRUPTED_AND_SAVED
    except _Held as error:
        return _give_up(error, error.exit_code)
    except TclxError as error:
        _record(folder, "failed", str(error))
        return _give_up(error, error.exit_code)
    except Exception as error:  # a bug: kept for whoever mends it, and said in the state
        _keep_traceback(folder)
        _record(folder, "failed", f"{type(error).__name__}: {error} (traceback in {_log(folder)})")
        return RunFailed.exit_code


def _train(folder: RunFolder) -> None:
    from tclx.plan import Plan
    from tclx.spec.load import load_spec_json
    from tclx.train.loop import train

    train(folder, load_spec_json(folder.spec), Plan.from_json(folder.read_json(folder.plan)))


@contextmanager
def _holding(folder: RunFolder) -> Iterator[None]:
    """Rank 0 holds the run's lock for all ranks."""
    if not folder.spec.is_file():
        raise InputError(Problem("", f"{folder.path} is not a prepared run folder: it has no spec.json", "use tclx run"))
    if not _is_main():
        yield
        return
    with folder.lock() as free:
        if not free:
            raise _Held(f"another process is training {folder.path}")
        yield


def _record(folder: RunFolder, status: Status, reason: str | None) -> None:
    """Rank 0 says how it ended, unless the training loop of this very process already has."""
    if not _is_main() or not folder.path.is_dir():
        return
    state = folder.read_state() or RunState("created")
    if (state.status, state.pid) != (status, os.getpid()):
        folder.write_state(replace(state, status=status, reason=reason))


def _give_up(error: TclxError, exit_code: int) -> int:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return exit_code


def _keep_traceback(folder: RunFolder) -> None:
    traceback.print_exc()
    log = _log(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exc(file=file)


def _log(folder: RunFolder) -> Path:
    return folder.path / "logs" / f"rank{os.environ.get('RANK', '0')}.log"


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
