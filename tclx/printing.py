"""Words of a process that runs unattended: into its run's log, and on the screen where somebody watches.

Training must not end because a line could not be printed: the log may lie on the disk that has just filled up, the terminal may
be closed. So these streams drop what they cannot write.
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_screen: TextIO | None = None


class _Dropping(io.FileIO):
    """A descriptor whose writes never fail."""

    def write(self, data: ReadableBuffer, /) -> int:
        with suppress(OSError):
            if (written := super().write(data)) is not None:
                return written
        return memoryview(data).nbytes


def dropping_stream(descriptor: int) -> TextIO:
    """A text stream on a descriptor, which stays open when the stream is closed; what cannot be written is dropped."""
    raw = _Dropping(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def survive_unprintable() -> None:
    """From here on no print of this process raises, wherever its output goes."""
    sys.stdout, sys.stderr = dropping_stream(1), dropping_stream(2)


def print_into_log(log: Path, heading: str, *, keep_screen: bool) -> None:
    """From here on this process prints into a log, below a line that says which start it is.

    A log that cannot be opened (a full disk has no room for a new file) changes nothing but that prints no longer raise.

    Args:
        log: the file that is added to.
        heading: its next line, the time is added.
        keep_screen: what stdout and stderr were so far stays at hand as `screen()`.
    """
    global _screen
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        survive_unprintable()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if keep_screen:
        _screen = dropping_stream(os.dup(2))
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    survive_unprintable()
    print(f"--- {heading}, {time.strftime('%Y-%m-%d %H:%M:%S')}", file=sys.stderr, flush=True)


def screen() -> TextIO | None:
    """Where somebody watches while stderr is a log; None where stderr is all there is."""
    return _screen


def announce(text: str) -> None:
    """Print a line from a signal handler, where print() must not be called again: straight to the descriptors."""
    for descriptor in (2, *([_screen.fileno()] if _screen is not None else [])):
        with suppress(OSError):
            os.write(descriptor, text.encode())
