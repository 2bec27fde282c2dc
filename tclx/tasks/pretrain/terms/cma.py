"""CMA, cross-modal alignment. Source: Yang et al. 2022, arXiv:2202.10401."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tclx.section import Weight
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm

if TYPE_CHECKING:
    from torch import Tensor

    from tclx.tasks.pretrain.features import Features


class CmaSpec(ContrastiveTerm):
    """CMA, cross-modal alignment: image and text [CLS] against the other modality's momentum features and queue."""

    title: ClassVar = "CMA: image and text of a pair"
    parts: ClassVar = ("image_to_text", "text_to_image")
    needs: ClassVar = Needs.PROJECTIONS | Needs.MOMENTUM | Needs.QUEUE | Needs.SOFT_LABELS
    aligns: ClassVar = True
    has_bound: ClassVar = True

    weight: Weight = 1 / 3
    """Weight of the mean of image-to-text and text-to-image."""

    def loss(self, features: Features) -> dict[str, Tensor]:
        from tclx.losses.contrastive import soft_cross_entropy, soft_targets

        logits, labels = features.cross_modal_logits, features.keys.targets
        targets = [labels, labels]
        if features.soft_label_weight > 0:
            predictions = features.momentum_cross_modal_logits
            targets = [soft_targets(labels, each, weight=features.soft_label_weight) for each in predictions]
        return dict(zip(self.parts, map(soft_cross_entropy, logits, targets), strict=True))

    def bounded(self, features: Features, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        from tclx.losses.contrastive import soft_cross_entropy

        labels = features.keys.targets  # the bound holds for the true labels, not for softened ones
        return {
            part: soft_cross_entropy(logits, labels)
            for part, logits in zip(self.parts, features.cross_modal_logits, strict=True)
        }
