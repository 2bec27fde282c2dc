"""Statements about two images: true or false?

Source: Suhr et al. 2019, arXiv:1811.00491 (NLVR2); the two-image model and the loss are the published code's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tclx.tasks.finetuning import Judging, JudgingEvaluation, judging_metrics

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("false", "true")

_LAYER = re.compile(r"(online|momentum)\.fusion_encoder\.layers\.(\d+)\.(.+)")


class NlvrSpec(Judging):
    """Training to judge statements about a left and a right image."""

    name: Literal["nlvr"]
    """Which task."""

    classes: ClassVar = CLASSES
    forms: ClassVar = ("nlvr",)
    num_images: ClassVar = 2

    def initial_weights(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Each fusion layer of a model of one image becomes a pair."""
        layers = {name: found for name in tensors if (found := _LAYER.fullmatch(name))}
        if max((int(found[2]) + 1 for found in layers.values()), default=0) == len(model.online.fusion_encoder.layers):
            return dict(tensors)  # of a model of two images
        doubled = {name: tensor for name, tensor in tensors.items() if name not in layers}
        for name, found in layers.items():
            for side in (0, 1):
                if side and found[3].startswith(("cross_attention.key.", "cross_attention.value.")):
                    continue  # both look through the first one's
                doubled[f"{found[1]}.fusion_encoder.layers.{2 * int(found[2]) + side}.{found[3]}"] = tensors[name]
        return doubled


class NlvrEvaluation(JudgingEvaluation):
    """Statements about two images: true or false."""

    classes: ClassVar = CLASSES
    task: ClassVar = "nlvr"
    forms: ClassVar = ("nlvr",)
    metrics: ClassVar = judging_metrics(CLASSES)
