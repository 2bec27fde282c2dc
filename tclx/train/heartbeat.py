"""Is the run's main process alive, and does somebody far away want it to stop? A thread that says the one and asks the other.

`tclx status` tells a dead run from a slow one by the heartbeat's age, also where SLURM keeps no accounts; `tclx cancel` on
another machine has no signal to send, so it leaves a file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tclx.files import beating
from tclx.runs import BEAT_SECONDS, RunFolder


@contextmanager
def heartbeat(folder: RunFolder, *, every_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Beat for as long as the block runs; a request to cancel reaches this process as SIGTERM, once."""
    asked = False

    def ask() -> None:
        nonlocal asked
        if not asked and folder.cancel.exists():
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    with beating(folder.heartbeat, every_seconds=every_seconds, also=ask):
        yield
