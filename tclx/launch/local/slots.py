"""How many runs fit on this machine at once, and which GPUs does each get? Two queues on one machine share the GPUs out.

A slot is a lock file a GPU that its run holds, so that another `tclx run` waits for it; the lock goes with the processes.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tclx.data.shared_memory import check_shared_memory
from tclx.errors import MachineError, Problem
from tclx.launch.order import PlannedRun
from tclx.spec.launch import LocalLaunch, SlurmLaunch


class Slot(NamedTuple):
    """What one run may use, for as long as the files are open."""

    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; empty on the CPU."""
    locks: tuple[BinaryIO, ...] = ()

    def release(self) -> None:
        """Let others have the GPUs."""
        for lock in self.locks:
            lock.close()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may hand out: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(lines))) if listed.returncode == 0 else ()


class Gpu(NamedTuple):
    """One that nvidia-smi lists."""

    name: str
    memory_gib: float


def listed_gpus() -> list[Gpu]:
    """Every GPU that nvidia-smi knows; empty where it knows none, or none may be used."""
    if not visible_gpus():
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    parts = [line.partition(",") for line in listed.stdout.splitlines()]
    return [Gpu(name.strip(), int(mebibytes) / 1024) for mebibytes, _, name in parts if mebibytes.strip().isdigit()]


def num_parallel(runs: Sequence[PlannedRun]) -> int:
    """How many of these runs may train at the same time."""
    num_gpus = len(visible_gpus())
    limits = [_limit(run, num_gpus) for run in runs]
    return max(1, min(limits, default=1))


def _limit(run: PlannedRun, num_gpus: int) -> int:
    launch = run.spec.launch
    if not isinstance(launch, LocalLaunch):
        return 1
    fitting = num_gpus // launch.num_processes if uses_gpus(run, num_gpus) else None
    if launch.max_parallel_runs is not None:
        return min(launch.max_parallel_runs, fitting or launch.max_parallel_runs)
    return fitting or 1


def trains_on_gpus(run: PlannedRun, *, elsewhere: bool = False) -> bool:
    """Whether the run trains on GPUs, here or where it is sent.

    Args:
        elsewhere: a local run is planned for another machine, which has GPUs where the spec takes them.
    """
    launch, device = run.spec.launch, run.spec.training.device
    if isinstance(launch, SlurmLaunch):
        return bool(launch.gpus_per_node) and device != "cpu"
    return device in ("cuda", "mps") or (elsewhere and device == "auto") or uses_gpus(run, len(visible_gpus()))


def uses_gpus(run: PlannedRun, num_gpus: int) -> bool:
    """Whether the run trains on GPUs when there are some."""
    return num_gpus > 0 and run.spec.training.device in ("auto", "cuda")


def check_fits(run: PlannedRun) -> None:
    """Refuse a run that this machine can never give enough GPUs, or room for its batches.

    Raises:
        MachineError: it wants more processes than there are GPUs, a GPU where there is none, or more shared memory than is
            free.
    """
    if not isinstance(run.spec.launch, LocalLaunch):
        return
    check_shared_memory(run.spec)
    num_gpus = len(visible_gpus())
    if run.spec.training.device == "cuda" and not num_gpus:
        hint = "auto takes the CPU where there is no GPU"
        raise MachineError(str(Problem("training.device", "cuda was asked for, and this machine has no GPU to give", hint)))
    if uses_gpus(run, num_gpus) and run.spec.launch.num_processes > num_gpus:
        message = f"{run.spec.launch.num_processes} processes want a GPU each, and there are {num_gpus}"
        raise MachineError(str(Problem("launch.num_processes", message, "fewer, or training.device: cpu")))


def take(run: PlannedRun, *, sharing: int = 1) -> Slot | None:
    """A slot for the run, or None while other runs have the GPUs.

    Args:
        run: as it was planned.
        sharing: runs that may have the same GPU, if all of them share it.
    """
    gpus = visible_gpus()
    if not uses_gpus(run, len(gpus)):
        return Slot(())
    taken: list[tuple[str, list[BinaryIO]]] = []
    for gpu in gpus:
        if (locks := _locks(gpu, sharing)) is not None:
            taken.append((gpu, locks))
        if len(taken) == run.spec.launch.num_processes:
            return Slot(tuple(name for name, _ in taken), tuple(lock for _, locks in taken for lock in locks))
    for lock in [lock for _, locks in taken for lock in locks]:
        lock.close()
    return None


def _locks(gpu: str, sharing: int) -> list[BinaryIO] | None:
    """The GPU's lock, held together with others who share it, and one of its shares; None when there is none to be had."""
    if sharing == 1:
        alone = _lock(gpu)
        return [alone] if alone else None
    together = _lock(gpu, fcntl.LOCK_SH)
    if together is None:
        return None
    for share in range(sharing):
        if (mine := _lock(f"{gpu}.share{share}")) is not None:
            return [together, mine]
    together.close()
    return None


def _lock(name: str, kind: int = fcntl.LOCK_EX) -> BinaryIO | None:
    """A lock of this user's on this machine, or None when another run holds it."""
    folder = Path(tempfile.gettempdir()) / f"tclx-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / f"{name.replace('/', '_')}.lock").open("ab")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
