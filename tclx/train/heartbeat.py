"""Is the run's main process alive, and does somebody far away want it to stop? A thread that says the one and asks the other.

`tclx status` tells a dead run from a slow one by the heartbeat's age, also where SLURM keeps no accounts; `tclx cancel` on
another machine has no signal to send, so it leaves a file.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tclx.runs import RunFolder

BEAT_SECONDS = 5.0


@contextmanager
def heartbeat(folder: RunFolder, *, every_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Beat for as long as the block runs; a request to cancel reaches this process as SIGTERM, once."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder, every_seconds, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(folder: RunFolder, every_seconds: float, ended: threading.Event) -> None:
    """The file's age is the heartbeat: to touch it costs nothing, also where the disk is full."""
    asked = False
    while True:
        with suppress(OSError):  # what goes wrong with the folder stops the run where it writes what matters
            folder.heartbeat.touch()
        if not asked and folder.cancel.exists():
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        if ended.wait(every_seconds):
            return
