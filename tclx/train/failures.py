"""What a user can do about an error of torch's or of memory, and the run folder's last word about it."""

from __future__ import annotations

import re

import torch

from tclx import distributed
from tclx.data.loading import worker_death
from tclx.errors import Interrupted, LostPeer, MachineError, RunFailed, TclxError
from tclx.plan import Plan
from tclx.runs import RunFolder, RunState, Status, Superseded
from tclx.train import checkpoint

# Only CUDA's allocator raises an error of its own class; cuBLAS, cuDNN, NCCL and the CPU's allocator raise plain ones, and
# oneDNN (kernels of torch on a CPU) one that names no memory.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|STATUS_ALLOC_FAILED|(can't allocate|not enough) memory|could not create a (primitive|memory)"
)


def known_failure(error: RuntimeError | MemoryError, device: torch.device) -> TclxError | None:
    """The same failure in words, with what would help; None for what is a bug."""
    if device.type == "mps" and (isinstance(error, NotImplementedError) or "out of memory" in str(error)):
        return RunFailed(f"training.device: mps: {str(error).splitlines()[0]} (device: cpu computes everything)")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)):
        whose = "this machine"
        if device.type == "cuda":
            gib = torch.cuda.get_device_properties(device).total_memory / 2**30
            whose = f"the GPU ({gib:.0f} GiB)"
        return RunFailed(
            f"the memory of {whose} is not enough: lower training.batch_size_per_gpu (and raise accumulation_steps), or set "
            "training.activation_checkpointing: true or precision: bf16; during an evaluation lower "
            "evaluation.retrieval.batch_size; tclx plan estimates what training needs"
        )
    if distributed.is_lost_peer(error):
        return LostPeer("another process of this run is gone; its own log says why, unless it was killed")
    return worker_death(error)


def record_end(folder: RunFolder, plan: Plan, error: TclxError) -> None:
    """Say in the run folder how it ended; the error itself goes on to the caller."""
    if not distributed.is_main() or isinstance(error, Superseded):
        return
    status: Status = "interrupted" if isinstance(error, Interrupted) else "failed"
    newest = checkpoint.newest(folder.checkpoints)
    step = checkpoint.step_of(newest) if newest is not None else 0
    try:
        folder.write_state(RunState(status, step=step, total_steps=plan.total_steps, reason=str(error)))
        folder.add_event(status, step=step, reason=str(error))
    except MachineError:
        pass  # a full disk is what is being reported
