"""Several real training processes for a test: torchrun's environment without torchrun's start-up time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def start_processes(
    arguments: Sequence[str], *, world_size: int, environment: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start `python ARGUMENTS` once per rank, on this machine, one thread each; stdout and stderr are piped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(_ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        **(environment or {}),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish_processes(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 120) -> list[str]:
    """Wait for all of them and return what each printed; fails with the first error output otherwise. None of them outlives
    this, however it ends.
    """
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    for process, (_, error) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise AssertionError(f"exit code {process.returncode}:\n{error}")
    return [output for output, _ in outputs]
