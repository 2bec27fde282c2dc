"""On which device, in which precision, and can this machine do it?"""

from __future__ import annotations

import torch

from tclx import distributed
from tclx.errors import MachineError
from tclx.model.precision import autocast as autocast_to
from tclx.spec.training import TrainingSpec

_AMPERE = (8, 0)
"""The first compute capability with tf32 and bf16 matrix units."""


def choose_device(training: TrainingSpec) -> torch.device:
    """The device of this process: its own GPU by its rank on this machine, the Mac's, or the CPU.

    Raises:
        MachineError: it is not there, or it cannot compute in the precision asked for; names the key to change.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "training.device: cuda was asked for, and torch sees no GPU here (auto takes a GPU where there is one)"
        )
    if training.device == "mps" and not torch.backends.mps.is_available():
        raise MachineError(
            "training.device: mps was asked for, which is the GPU of an Apple silicon Mac, and torch sees none here "
            "(auto takes an NVIDIA GPU where there is one, else the CPU)"
        )
    if training.device == "mps":
        device = torch.device("mps")
    elif training.device == "cpu" or not torch.cuda.is_available():
        device = torch.device("cpu")
    elif distributed.local_rank() >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise MachineError(f"launch.num_processes: process {distributed.local_rank()} has no GPU of its own, there are {count}")
    else:
        device = torch.device("cuda", distributed.local_rank())
    _check_precision(training.precision, device)
    return device


def _check_precision(precision: str, device: torch.device) -> None:
    if precision != "fp32" and device.type == "mps":
        raise MachineError(f"training.precision: {precision} does not run on training.device: mps; fp32 does")
    if precision == "fp16" and device.type == "cpu":
        raise MachineError("training.precision: fp16 needs a GPU, and torch sees none here; fp32 and bf16 run on a CPU")
    if precision == "tf32" and (device.type == "cpu" or torch.cuda.get_device_capability(device) < _AMPERE):
        raise MachineError(
            "training.precision: tf32 needs an NVIDIA GPU of compute capability 8.0 or newer; fp32 runs anywhere"
        )
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < _AMPERE:
        raise MachineError("training.precision: this GPU has no bf16 (compute capability 8.0 or newer); fp16 or fp32 run on it")


def prepare_numerics(training: TrainingSpec, device: torch.device) -> None:
    """Set torch's process-wide switches: products in exactly the precision asked for, and on a CPU the same bits every time."""
    fast = training.precision != "fp32"
    torch.set_float32_matmul_precision("high" if training.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = fast  # torch's own default lets convolutions use tf32 even where fp32 was asked for
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # That switch also fills every new tensor with NaN, for nobody's benefit here.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (torch's stubs lack it)


def autocast(training: TrainingSpec, device: torch.device) -> torch.autocast:
    """The context of a forward pass; does nothing for fp32 and tf32."""
    return autocast_to(device, training.precision)


def gradient_scaler(training: TrainingSpec, device: torch.device) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing for the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
