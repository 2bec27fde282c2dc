"""Who may ask a run to stop, and how is it asked? Ctrl-C, SIGTERM and SIGUSR2.

While it trains, the handler sets a flag and nothing else: a handler runs between any two lines, also in the middle of an
update, and only the loop knows when the state is whole. Before, a request ends the process. Afterwards it changes nothing: srun
and torchrun send SIGTERM to all processes when one has fallen, and how the run ended is being written down.

Handlers run in the main thread, between two lines of Python. While that waits inside a library, for another process perhaps,
none does. So a thread hears the signals, too: it says what will happen, and ends the process when somebody asks again.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tclx.printing import announce

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

GRACE_SECONDS = 5.0
"""What is left to the step and its save when somebody asks a second time; checkpoints are whole or not there."""

ECHO_SECONDS = 10.0
"""Another SIGTERM or SIGUSR2 within this time is the same request: `tclx cancel` sends a signal and leaves a file."""

DOUBLE_SECONDS = 0.3
"""Two SIGINT within this time are one key press that arrived on two ways."""


def end_start_up_on_request() -> None:
    """From here until training begins, the first request raises KeyboardInterrupt."""
    for number in REQUESTS:
        signal.signal(number, _end_start_up)


def ignore_requests() -> None:
    """From here on none of them changes anything: what is left takes seconds, and is what they are for."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def _end_start_up(number: int, frame: FrameType | None) -> None:
    ignore_requests()
    raise KeyboardInterrupt


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._owner = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked data-loader worker inherits the handler; only the training process decides
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn the signals into a flag for as long as the block runs. Python allows handlers in the main thread only.

    Where a request would have ended the start-up before, it is ignored from here on: the start-up is over.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._receive) for number in REQUESTS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if handler is _end_start_up else handler)


@contextmanager
def answering_requests(*, doing: Callable[[], str], leave: Callable[[str], None]) -> Iterator[None]:
    """In the block every request is answered at once, and a second one ends the process within `GRACE_SECONDS`; in the start-up
    the first one does. Python allows signals to be heard from the main thread only; elsewhere this does nothing.

    Args:
        doing: what the main thread does, in words.
        leave: ends the process, for the reason that it is given.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_hear, args=(reader, doing, leave), name="requests", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, _END)
        thread.join()
        os.close(reader)
        os.close(writer)


_END = b"\0"


def _hear(reader: int, doing: Callable[[], str], leave: Callable[[str], None]) -> None:
    asked_at: float | None = None
    leaves_at: float | None = None
    name = ""
    while True:
        seconds = max(0.0, leaves_at - time.monotonic()) if leaves_at is not None else None
        if not select.select([reader], [], [], seconds)[0]:
            leave(f"ended by {name} while {doing()}, without saving; the same command continues from the newest checkpoint")
            return
        for number in os.read(reader, 512):
            if number == _END[0]:
                return
            if number not in REQUESTS:
                continue  # the death of a child
            now, name = time.monotonic(), signal.Signals(number).name
            if asked_at is None:
                asked_at = now
                if _is_flagged(number):
                    announce(f"\n{name}: stopping after this step and saving (now {doing()}); once more: ends within seconds\n")
                    continue
            elif is_echo(number, after=now - asked_at):
                continue
            if leaves_at is None:
                leaves_at = now + GRACE_SECONDS
                announce(f"\n{name}: still {doing()}; ends within {GRACE_SECONDS:.0f} s, saved or not\n")


def is_echo(number: int, *, after: float) -> bool:
    """Whether a signal is the same request as the first one, so many seconds before it."""
    return after < (DOUBLE_SECONDS if number == signal.SIGINT else ECHO_SECONDS)


def _is_flagged(number: int) -> bool:
    """Whether a request waits for the step's end: training has begun."""
    return isinstance(getattr(signal.getsignal(number), "__self__", None), StopRequest)
