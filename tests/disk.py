"""Small disks for tests: what happens when one is full?"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_PATIENCE = 60.0
"""A disk is busy as long as a process that is just ending has a file open."""


@contextmanager
def small_disk(place: Path, *, size: str) -> Iterator[Path]:
    """A file system of its own at a folder, made if needed, for as long as the block runs; the test is skipped where this user
    may not mount one.

    Args:
        size: as mount has it: `64k`.
    """
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if (mounted := subprocess.run(command, capture_output=True, text=True, check=False)).returncode != 0:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        deadline = time.monotonic() + _PATIENCE
        while subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
                raise TimeoutError(f"something still has a file open in {place}")
            time.sleep(0.1)


def resize(disk: Path, size: str) -> None:
    """Make a small disk larger."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill(file: Path) -> None:
    """Write a file until its disk has no byte left."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
