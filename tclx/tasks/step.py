"""What the steps of all tasks are: a model and a spec in one module, so that DDP sees a single forward call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec


class Step(nn.Module):
    """The loss of a task. Its forward pass changes no parameter and no buffer.

    Args:
        model: what is trained.
        spec: of the run.
    """

    model: nn.Module
    """Each task's step says which."""

    def __init__(self, model: nn.Module, spec: ExperimentSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
