"""What multiplies the weighted terms of the loss, where a run balances them: state that is trained and kept with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tclx.tasks.pretrain.balance import BalanceSpec, GradNormBalance, UncertaintyBalance

SMALLEST = 1e-3
"""Of a multiplier of GradNorm: a term that has lost all its weight could never ask for more."""


class Balance(nn.Module):
    """One multiplier for each of K terms, in the order of the spec; all 1 at the start.

    Args:
        spec: by what they follow.
        terms: names of the terms.
    """

    multiplied: Tensor
    """[K] what the terms were multiplied with last."""
    first_losses: Tensor
    """[K] of GradNorm: weighted terms when it first looked; NaN before."""

    def __init__(self, spec: BalanceSpec, terms: Sequence[str]) -> None:
        super().__init__()
        self.spec, self.terms = spec, tuple(terms)
        self.register_buffer("multiplied", torch.ones(len(terms)), persistent=isinstance(spec, GradNormBalance))
        self.log_variances = nn.Parameter(torch.zeros(len(terms))) if isinstance(spec, UncertaintyBalance) else None
        if isinstance(spec, GradNormBalance):
            self.register_buffer("first_losses", torch.full((len(terms),), torch.nan))

    def total(self, weighted: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            weighted: [K] the terms times their weights.
        """
        if self.log_variances is not None:
            return ((-self.log_variances).exp() * weighted + self.log_variances / 2).sum()
        if isinstance(self.spec, GradNormBalance):
            return (self.multiplied * weighted).sum()
        return weighted.sum()

    @torch.no_grad()
    def multipliers(self) -> dict[str, float]:
        """By term, as they are now."""
        now = (-self.log_variances).exp() if self.log_variances is not None else self.multiplied
        return dict(zip(self.terms, now.tolist(), strict=True))

    @torch.no_grad()
    def equalise_(self, norms: Tensor, losses: Tensor) -> None:
        """One step of GradNorm, in place; none where a number is not finite, as of a step that fp16 skips.

        Args:
            norms: [K] of the gradients of the weighted terms at shared parameters, multipliers left out.
            losses: [K] the weighted terms.
        """
        spec = cast("GradNormBalance", self.spec)
        is_sound = (norms + losses).isfinite().all()  # asked on the device, which nothing waits for
        self.first_losses.copy_(torch.where(is_sound & self.first_losses.isnan(), losses, self.first_losses))
        lengths = self.multiplied * norms
        slowness = losses / self.first_losses
        wanted = lengths.mean() * (slowness / slowness.mean()) ** spec.alpha
        downhill = norms * (lengths - wanted).sign() / lengths.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        moved = (self.multiplied - spec.rate * downhill).clamp(min=SMALLEST)
        self.multiplied.copy_(torch.where(is_sound, moved * len(moved) / moved.sum(), self.multiplied))


def surgery(products: Tensor, order: torch.Generator) -> Tensor:
    """PCGrad by the gradients' inner products alone: what is projected stays a combination of the gradients.

    Args:
        products: [K, K] of each gradient with each.
        order: draws in which order a gradient meets the others.

    Returns:
        [K] how often each gradient is in the update.
    """
    num = len(products)
    exact = products.double().cpu()
    shares = torch.eye(num, dtype=torch.float64)
    for place, own in enumerate(shares):
        for other in torch.randperm(num, generator=order).tolist():
            along = own @ exact[:, other]
            if other != place and along < 0:
                own[other] -= along / exact[other, other]
    return shares.sum(dim=0)
