"""What does one node have? `python -m tclx.doctor.node rank FOLDER`, in a job of `tclx doctor --cluster` on the node itself.

Everything is measured in seconds and bounded; what cannot be measured is said in words and hides nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tclx.files import write_atomically
from tclx.system import memory, num_cpus

SCRATCH_BYTES = 128 << 20
SHARED_BYTES = 32 << 20
NUM_FILES = 50
MATRIX = 8192
"""Side of the matrices whose products tell a GPU's speed; in bf16 a tenth of a second on a slow one."""
EXCHANGED_BYTES = 256 << 20

_BLOCK = 4 << 20


def main(arguments: list[str]) -> int:
    """`rank FOLDER` looks and writes FOLDER/NODE.json; `after FOLDER CODE` ends with the job's code."""
    if arguments[0] == "after":
        return int(arguments[2])
    folder = Path(arguments[1])
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    found = look(folder)
    write_atomically(folder / f"{node}.json", json.dumps(found))
    return 0


def look(folder: Path) -> dict[str, Any]:
    """Everything, by name; under `errors` why something is missing."""
    looks: Mapping[str, Callable[[], Any]] = {
        "clock_seconds": lambda: clock_skew(folder),
        "shared": lambda: shared(folder),
        "scratch": scratch,
        "gpus": gpus,
        "all_reduce_gb_per_second": all_reduce,
    }
    found: dict[str, Any] = {"host": socket.gethostname(), "cpus": num_cpus(), "memory_gib": memory().total / 2**30}
    errors: dict[str, str] = {}
    for name, one in looks.items():
        try:
            found[name] = one()
        except Exception as error:  # one thing that fails must not hide the others
            errors[name] = f"{type(error).__name__}: {error}"[:300]
    return {**found, "errors": errors}


def clock_skew(folder: Path) -> float:
    """Seconds that this node's clock is ahead of that which stamps files of the shared folder."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        return (before + time.time()) / 2 - Path(file.name).stat().st_mtime


def shared(folder: Path) -> dict[str, float]:
    """How fast the folder of the runs is from here: large files, and many small ones."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        speed = _write_speed(Path(place) / "large", SHARED_BYTES)
        began = time.perf_counter()
        for number in range(NUM_FILES):
            (Path(place) / str(number)).write_bytes(b"x")
        each = (time.perf_counter() - began) / NUM_FILES
    return {"mb_per_second": speed, "ms_per_file": 1e3 * each}


def scratch() -> dict[str, Any]:
    """The node's own disk, where shards are kept and temporary files go."""
    place = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()  # which takes TMPDIR where it is set
    facts = os.statvfs(place)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        speed = _write_speed(Path(folder) / "large", SCRATCH_BYTES)
    return {"folder": place, "free_gib": facts.f_bavail * facts.f_frsize / 2**30, "mb_per_second": speed}


def _write_speed(path: Path, size: int) -> float:
    """Megabytes a second until they are on the disk."""
    block, began = os.urandom(_BLOCK), time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // _BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size / 1e6 / (time.perf_counter() - began)


def gpus() -> list[dict[str, Any]]:
    """What torch sees of them, and what each reaches in bf16 matrix products."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", number)
        facts = torch.cuda.get_device_properties(device)
        square = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16)
        seconds = []
        for _ in range(8):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            _ = square @ square
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        tflops = 2 * MATRIX**3 / statistics.median(seconds[3:]) / 1e12
        found.append({"name": facts.name, "memory_gib": facts.total_memory / 2**30, "tflops": tflops})
    return found


def all_reduce() -> float | None:
    """Bus bandwidth of NCCL among the node's GPUs in GB/s; None with fewer than two."""
    import torch
    from torch.multiprocessing.spawn import spawn

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return None
    with tempfile.TemporaryDirectory() as folder:
        spawn(_exchange, args=(count, folder), nprocs=count)  # type: ignore[no-untyped-call]
        return float((Path(folder) / "speed").read_text())


def _exchange(rank: int, count: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    tensor, seconds = torch.zeros(EXCHANGED_BYTES // 4, device="cuda"), []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        moved = 2 * (count - 1) / count * EXCHANGED_BYTES
        Path(folder, "speed").write_text(str(moved / statistics.median(seconds[3:]) / 1e9))
    with suppress(RuntimeError):
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
