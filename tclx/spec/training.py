"""How long, how large, in which precision, and what is kept on the way."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.section import BatchSize, Conflict, Count, Section, Sensible


class CheckpointsSpec(Section):
    """When the whole training state is saved; a run resumes from the newest complete checkpoint, bit for bit."""

    every_steps: Count | None = None
    """Save after this many optimizer steps; null saves at the end of every epoch."""
    keep_last: Count = 2
    """Number of most recent checkpoints to keep, besides the best."""
    in_background: bool = True
    """Copy the state into the host's memory, as much as a checkpoint takes on the disk, and train on while it is written; false
    lets training wait for the disk instead."""


class TrainingSpec(Section):
    """Length, batch, precision. Give `epochs` or `steps`."""

    epochs: Annotated[int, Field(ge=1), Sensible(at_most=1_000_000)] | None = None
    """Passes over the training data, the last incomplete batch of each dropped."""
    steps: Annotated[int, Field(ge=0), Sensible(at_most=10**9)] | None = None
    """Optimizer steps; 0 trains nothing and only evaluates."""
    batch_size_per_gpu: BatchSize
    """Image-text pairs per process and forward pass (per process on a CPU, too)."""
    accumulation_steps: BatchSize = 1
    """Forward and backward passes per optimizer step. Negatives come from one pass and the queue."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: an NVIDIA GPU when there is one, else the CPU. `mps`, a Mac's GPU, is never chosen by itself: it computes in
    fp32, in one process, without torch.compile, and its runs do not resume bit for bit."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of matrix products; softmaxes and losses are always fp32."""
    compile: bool = False
    """Whether to compile the encoders' layers with torch.compile: the first steps take longer, those after them less where a
    GPU has much to do (docs/performance.md). Dropout draws other numbers than without."""
    activation_checkpointing: bool = False
    """Recompute the encoders' activations in the backward pass: less memory, about a third more time."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """Checkpoint schedule."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise Conflict("give exactly one of `epochs` and `steps`", "epochs", "steps", one_too_many=True)
        return self
