"""What a run will cost: parameters, arithmetic and memory, counted on the meta device without allocating anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tclx.model.tcl import TCL, Encoded, Encoders
from tclx.plan import Plan, needs_second_view
from tclx.spec.experiment import ExperimentSpec

GIB = 1024**3


@dataclass(frozen=True)
class Cost:
    """Estimates; captions are taken to be as long as the spec allows."""

    parameters_trainable: int
    parameters_total: int
    """With the momentum copies."""
    flops_per_step: int
    """Of one optimizer step over all processes: forward, backward and the momentum encoders; two a multiply-add."""
    peak_memory_gib: float
    """Of one process: weights, gradients, optimizer, queues, and the activations of a micro-batch as the backward pass starts."""
    checkpoint_gib: float
    """Of one checkpoint on disk."""


def estimate_cost(spec: ExperimentSpec, plan: Plan, *, vocab_size: int) -> Cost:
    """Count what a run computes and holds.

    Args:
        spec: the experiment.
        plan: derived from it; its global batch is what a step computes.
        vocab_size: of the tokenizer.

    Raises:
        InputError, MachineError: the model cannot be built.
    """
    with torch.device("meta"):
        model = TCL(spec, vocab_size=vocab_size, pad_token_id=0)
        micro_batch = _MicroBatch(model, spec, vocab_size=vocab_size)
        with FlopCounterMode(display=False) as counter:
            activation_bytes = micro_batch.run()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state_bytes = _bytes(model.state_dict().values())
    trained_bytes = _bytes(trainable)
    return Cost(
        parameters_trainable=sum(parameter.numel() for parameter in trainable),
        parameters_total=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_step=counter.get_total_flops() * plan.global_batch_size // spec.training.batch_size_per_gpu,
        # Gradients and AdamW's two moments are as large as what is trained.
        peak_memory_gib=(state_bytes + 3 * trained_bytes + activation_bytes) / GIB,
        checkpoint_gib=(state_bytes + 2 * trained_bytes) / GIB,
    )
