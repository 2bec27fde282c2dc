"""Who may ask a run to stop, and how is it asked? Ctrl-C, SIGTERM and SIGUSR2.

While it trains, the handler sets a flag and nothing else: a handler runs between any two lines, also in the middle of an
update, and only the loop knows when the state is whole. Before, a request ends the process. Afterwards it changes nothing: srun
and torchrun send SIGTERM to all processes when one has fallen, and how the run ended is being written down.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tclx.printing import announce

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


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
        first = self.signal_name is None
        self.signal_name = signal.Signals(number).name
        text = "stopping after this step and saving" if first else "still saving: stopping now would lose work"
        announce(f"\n{self.signal_name}: {text}\n")


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
