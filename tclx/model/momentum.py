"""How the momentum encoders follow: an exponential moving average of the trained ones, in a few multi-tensor kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tclx.model.sharding import own_part


class Pairs(NamedTuple):
    """The tensors of a trained module and of its momentum copy, paired by name; of divided ones this process's parts.

    They stay the same as long as the modules stay where they are, and finding them takes the host longer than the update.
    """

    online: list[Tensor]
    averaged: list[Tensor]
    online_buffers: list[Tensor]
    averaged_buffers: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, online: nn.Module, averaged: nn.Module) -> Pairs:
        """Of what the copy has; what only the trained module has is left out."""
        parameters, buffers = dict(online.named_parameters()), dict(online.named_buffers())
        names, averaged_parameters = zip(*averaged.named_parameters(), strict=True)
        own_buffers = dict(averaged.named_buffers())
        return cls(
            [own_part(parameters[name]) for name in names],
            [own_part(parameter) for parameter in averaged_parameters],
            [buffers[name] for name in own_buffers],
            list(own_buffers.values()),
        )

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """averaged <- momentum * averaged + (1 - momentum) * online, in place.

        Buffers (batch-norm statistics) are copied: averaging an average would lag twice.

        Args:
            momentum: the share the copy keeps of itself, in [0, 1].

        Source: He et al. 2020, arXiv:1911.05722, equation 2.
        """
        torch._foreach_lerp_(self.averaged, self.online, 1 - momentum)
        if self.averaged_buffers:
            torch._foreach_copy_(self.averaged_buffers, self.online_buffers)
