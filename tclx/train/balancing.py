"""How do the gradients of several terms become one update, where `objectives.balance` takes part in it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.model.balance import Balance, surgery
from tclx.tasks.pretrain.balance import GradNormBalance, PCGradBalance
from tclx.tasks.task import StepOutput
from tclx.train.measure import weighted_gradients


class Balancing:
    """What a balance does at one optimizer step beyond the forward pass; nothing where there is none.

    Args:
        balance: the model's.
        parameters: everything that is trained.
        shared: which of them all terms share.
        done: updates with this step.
    """

    def __init__(
        self, balance: Balance | None, parameters: Sequence[nn.Parameter], shared: Sequence[nn.Parameter], *, done: int
    ) -> None:
        self._balance, self._parameters, self._shared = balance, parameters, shared
        spec = balance.spec if balance is not None else None
        self.projects = isinstance(spec, PCGradBalance)
        """Whether the gradients are made here, not by a backward pass of the loss."""
        self._looks = isinstance(spec, GradNormBalance) and done % spec.every_steps == 0
        self._seen: tuple[Tensor, Tensor] | None = None
        self._sums: list[list[Tensor | None]] = []

    def look(self, output: StepOutput, *, scale: Callable[[], float]) -> None:
        """Before the first backward pass of the step: what GradNorm wants to know.

        Args:
            output: of a forward pass whose graph is still there; it stays usable.
            scale: gives what the loss is multiplied with against underflow (fp16), 1 otherwise; a GPU is waited for then.
        """
        if not self._looks or self._balance is None or self._seen is not None:
            return
        multiplied = self._balance.multiplied
        terms = list(output.terms.values())
        weights = torch.stack(torch.autograd.grad(output.loss, terms, retain_graph=True)) / multiplied
        norms = weighted_gradients(output, self._shared, scale=scale()).norm(dim=1) / multiplied
        self._seen = norms, distributed.mean(torch.stack([term.detach() for term in terms]) * weights)

    def add(self, output: StepOutput, *, scale: float) -> None:
        """The gradients of one forward pass, term by term; its graph is used up.

        Args:
            output: of the forward pass.
            scale: what the gradients are multiplied with.
        """
        terms = list(output.terms.values())
        weights = torch.autograd.grad(output.loss, terms, retain_graph=True)
        for place, (term, weight) in enumerate(zip(terms, weights, strict=True)):
            keep = place < len(terms) - 1
            found = torch.autograd.grad(term * weight * scale, self._parameters, retain_graph=keep, allow_unused=True)
            if len(self._sums) <= place:
                self._sums.append(list(found))
            else:
                self._sums[place] = [_plus(old, new) for old, new in zip(self._sums[place], found, strict=True)]

    def put(self, *, seed: int) -> None:
        """Projected and added up, averaged over processes, the gradients are the parameters'.

        Args:
            seed: of the order in which gradients meet, the same on all processes.
        """
        if not self.projects or self._balance is None:
            return
        used = [any(each is not None for each in found) for found in zip(*self._sums, strict=True)]
        having = [parameter for parameter, is_used in zip(self._parameters, used, strict=True) if is_used]
        flat: list[Tensor] = []
        while self._sums:  # one at a time, so that none is there twice for longer
            found = self._sums.pop(0)
            parts = [
                (torch.zeros_like(parameter) if gradient is None else gradient).flatten().float()
                for parameter, gradient, is_used in zip(self._parameters, found, used, strict=True)
                if is_used
            ]
            flat.append(distributed.mean(torch.cat(parts)))
            del found, parts
        products = torch.stack([torch.stack([torch.dot(one, other) for other in flat]) for one in flat])
        shares = surgery(products, torch.Generator().manual_seed(seed)).to(flat[0])
        self._balance.multiplied.copy_(shares)
        whole = torch.zeros_like(flat[0])
        for share, one in zip(shares, flat, strict=True):
            whole.add_(one * share)
        for parameter, part in zip(having, torch.split(whole, [parameter.numel() for parameter in having]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def finish(self) -> None:
        """After the update: GradNorm's multipliers move."""
        if self._seen is not None and self._balance is not None:
            self._balance.equalise_(*self._seen)


def _plus(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
