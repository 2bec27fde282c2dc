"""Batches travel from loader processes to training through shared memory: is there enough of it, and what went wrong if not?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tclx.errors import MachineError
from tclx.spec.launch import SlurmLaunch
from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec

PREFETCHED_BATCHES = 2
"""Of each loader process, ready before they are asked for."""

SHARED_MEMORY = Path("/dev/shm")
"""Where loader processes put their batches, on Linux."""

_NO_PLACE = re.compile(
    r"shared memory|No space left|Cannot allocate memory|Too many open files|Disk quota|unable to (?:mmap|open|resize)",
    re.IGNORECASE,
)
_MORE_SHARED_MEMORY = (
    "Batches travel through shared memory (/dev/shm): make it larger (docker run --shm-size=8g), or data.num_workers or the "
    "batch smaller; data.num_workers: 0 needs none"
)


def check_shared_memory(spec: ExperimentSpec) -> None:
    """Refuse a run whose batches cannot all be in shared memory at once, as they are whenever loading is faster than training.

    Args:
        spec: says how many processes of this machine load how many batches ahead.

    Raises:
        MachineError: there is not so much of it left.
    """
    launch, num_bytes = spec.launch, _bytes_of_batch(spec)
    processes = launch.processes_per_node if isinstance(launch, SlurmLaunch) else launch.num_processes
    needed = num_bytes * PREFETCHED_BATCHES * spec.data.num_workers * processes
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return  # not Linux: elsewhere it is not a folder of its own
    if needed > free.f_bavail * free.f_frsize:
        raise MachineError(
            f"{needed / 2**20:.1f} MiB of shared memory are needed ({num_bytes / 2**20:.1f} MiB a batch x {PREFETCHED_BATCHES} "
            f"batches ahead x {spec.data.num_workers} data.num_workers x {processes} training processes on a machine), and "
            f"{free.f_bavail * free.f_frsize / 2**20:.1f} MiB are free. {_MORE_SHARED_MEMORY}"
        )


def _bytes_of_batch(spec: ExperimentSpec) -> int:
    """Of its images, which are nearly all of it."""
    views = 2 if spec.objectives.need(Needs.SECOND_VIEW) else 1
    return spec.training.batch_size_per_gpu * views * 3 * spec.model.image_encoder.image_size**2


def shared_memory_error(error: Exception) -> MachineError | None:
    """The user's words for a batch that found no place on its way, None for any other error."""
    if not isinstance(error, OSError | RuntimeError) or not _NO_PLACE.search(str(error)):
        return None
    return MachineError(f"data loader processes and training do not reach each other: {error}. {_MORE_SHARED_MEMORY}")
