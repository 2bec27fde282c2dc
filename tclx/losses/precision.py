"""In which precision is a loss computed? At least fp32: at a temperature of 0.001 logits reach 1000, where bf16 steps by 4."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 when it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Every row of one matrix times every row of another, in full precision under autocast too.

    Args:
        x: [B, D].
        y: [M, D].

    Returns:
        [B, M], fp32 or fp64.
    """
    with _without_autocast(x.device.type):
        return full_precision(x) @ full_precision(y).T


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    # The meta device, on which a step's cost is estimated, has no autocast to switch off and refuses the request.
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
