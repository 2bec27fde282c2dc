"""What do all processes agree on at a step? Whether its update may be taken, and whether one of them was asked to stop.

A GPU works behind the program that feeds it, and stands idle after every moment in which that program waits for an answer. So
where the optimizer can leave an update out by itself, the answer to a step is read while the next one is computed; before
anything is written down, saved or evaluated, it is read in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tclx import distributed
from tclx.errors import RunFailed
from tclx.spec.experiment import ExperimentSpec
from tclx.train.measure import describe_nonfinite


class Pass(NamedTuple):
    """What is kept of one forward and backward pass; its gradients are in the parameters."""

    loss: Tensor
    """Detached scalar."""
    measures: dict[str, Tensor]
    keys: Any
    rows: Tensor
    """The training rows that it learned from."""


class Agreement:
    """One step's; every process makes it, which is the exchange.

    Args:
        step: updates done before this one.
        passes: this process's, of the step.
        norm: 0-D length of the whole gradient.
        scaler: whose business gradients are that overflow in fp16: it skips such a step and tries a smaller scale.
        stop: whether this process was asked to stop.
    """

    def __init__(self, step: int, passes: Sequence[Pass], *, norm: Tensor, scaler: torch.amp.GradScaler, stop: bool) -> None:
        self._step, self._passes, self._norm = step, passes, norm
        bad_loss = ~torch.stack([each.loss for each in passes]).isfinite().all()
        bad_gradient = ~norm.isfinite() & (not scaler.is_enabled())
        asked = torch.full_like(bad_gradient, stop)  # filled there: a copy from here would be waited for
        answer = distributed.maximum(torch.stack([bad_loss | bad_gradient, asked]).to(torch.uint8))
        self.is_bad = answer[0].float()
        """0-D on the device, 1 where the update may not be taken."""
        self._answer, self._until_there = _on_its_way(answer)

    def read(self) -> bool:
        """Whether any process was asked to stop.

        Raises:
            RunFailed: on all processes: a loss or a gradient is not finite on one of them.
        """
        self._until_there()
        is_bad, stopping = self._answer.tolist()
        if is_bad:
            measures, rows = [each.measures for each in self._passes], torch.cat([each.rows for each in self._passes])
            raise RunFailed(describe_nonfinite(self._step, measures, rows, float(self._norm)))
        return bool(stopping)


def _on_its_way(answer: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """The host's copy, and what waits until it is there."""
    if not answer.is_cuda:
        return answer, lambda: None
    copied = torch.empty_like(answer, device="cpu", pin_memory=True).copy_(answer, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()
    return copied, there.synchronize


def reads_late(spec: ExperimentSpec, device: torch.device) -> bool:
    """Whether a step's answer may be read during the next: a GPU's, whose optimizer leaves out what it should by itself."""
    return device.type == "cuda" and spec.optim.optimizer == "adamw" and not spec.launch.fsdp


def update(optimizer: Optimizer, scaler: torch.amp.GradScaler, *, unless: Tensor | None) -> None:
    """Move the weights.

    Args:
        unless: 0-D, 1 where they stay as they are; with the fused AdamW only.
    """
    if scaler.is_enabled():  # what is not finite then, it leaves out itself
        scaler.step(optimizer)
        scaler.update()
    elif unless is None:
        optimizer.step()
    else:
        # How a scaler tells an optimizer that skips by itself.
        vars(optimizer).update(grad_scale=None, found_inf=unless)
        optimizer.step()
        vars(optimizer).update(found_inf=None)
