"""What the commands that use a trained model have in common: which model, and where it computes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tclx.use.loaded import VisionLanguageModel


class Device(StrEnum):
    """Where a model computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(StrEnum):
    """Of its matrix products."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


DeviceOption = Annotated[Device, typer.Option("--device", help="Device; auto is a GPU where there is one, else the CPU.")]
PrecisionOption = Annotated[Precision | None, typer.Option("--precision", help="Precision; that of the training by default.")]
SpecOption = Annotated[
    Path | None, typer.Option("--spec", metavar="SPEC", help="Spec with the model; needed for official weights.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images or texts per forward pass.")]


def load_model(
    run: str, *, spec: Path | None, device: Device, precision: Precision | None, runs_dir: Path
) -> VisionLanguageModel:
    """As `tclx.load`."""
    from tclx.use.loaded import load

    return load(
        run, spec=spec, device=device.value, precision=None if precision is None else precision.value, runs_dir=runs_dir
    )
