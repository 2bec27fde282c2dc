"""Statements about two images: true or false?

Source: Suhr et al. 2019, arXiv:1811.00491 (NLVR2); the two-image model and the loss are the published code's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tclx.tasks.finetuning import Judging, JudgingEvaluation, judging_metrics
from tclx.tasks.pairing import in_pairs

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("false", "true")


class NlvrSpec(Judging):
    """Training to judge statements about a left and a right image."""

    name: Literal["nlvr"]
    """Which task."""

    classes: ClassVar = CLASSES
    forms: ClassVar = ("nlvr",)
    num_images: ClassVar = 2

    def initial_weights(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Each fusion layer of a model of one image becomes a pair."""
        return in_pairs(tensors, num_layers=len(model.online.fusion_encoder.layers))


class NlvrEvaluation(JudgingEvaluation):
    """Statements about two images: true or false."""

    classes: ClassVar = CLASSES
    task: ClassVar = "nlvr"
    forms: ClassVar = ("nlvr",)
    metrics: ClassVar = judging_metrics(CLASSES)
