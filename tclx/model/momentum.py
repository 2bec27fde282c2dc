"""How the momentum encoders follow: an exponential moving average of the trained ones, in a few multi-tensor kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_momentum(online: nn.Module, averaged: nn.Module, *, momentum: float) -> None:
    """averaged <- momentum * averaged + (1 - momentum) * online, in place, paired by name.

    Buffers (batch-norm statistics) are copied: averaging an average would lag twice.

    Args:
        online: the trained module; what only it has is left out.
        averaged: its momentum copy.
        momentum: the share the copy keeps of itself, in [0, 1].

    Source: He et al. 2020, arXiv:1911.05722, equation 2.
    """
    parameters = _pairs(dict(online.named_parameters()), dict(averaged.named_parameters()))
    torch._foreach_lerp_(parameters[1], parameters[0], 1 - momentum)
    buffers = _pairs(dict(online.named_buffers()), dict(averaged.named_buffers()))
    if buffers[1]:
        torch._foreach_copy_(buffers[1], buffers[0])


def _pairs(online: dict[str, Tensor], averaged: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return [online[name] for name in averaged], list(averaged.values())
