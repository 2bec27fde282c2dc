"""Who may ask a run to stop, and how is it asked? Ctrl-C, SIGTERM and SIGUSR2; the handler sets a flag and nothing else.

A handler runs between any two lines, also in the middle of an update: only the loop knows when the state is whole.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


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
        os.write(2, f"\n{self.signal_name}: {text}\n".encode())  # print() is not safe to re-enter from a handler


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn the signals into a flag for as long as the block runs. Python allows handlers in the main thread only."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._receive) for number in _REQUESTS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
