"""IMC, intra-modal contrast. Source: Yang et al. 2022, arXiv:2202.10401."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tclx.section import Weight
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm

if TYPE_CHECKING:
    from torch import Tensor

    from tclx.tasks.pretrain.features import Features


class ImcSpec(ContrastiveTerm):
    """IMC, intra-modal contrast: two augmented views of an image, two dropout views of a text."""

    title: ClassVar = "IMC: two views of one modality"
    parts: ClassVar = ("image", "text")
    needs: ClassVar = Needs.PROJECTIONS | Needs.MOMENTUM | Needs.QUEUE | Needs.SECOND_VIEW
    has_bound: ClassVar = True

    weight: Weight = 1 / 3
    """Weight of the mean of image-to-image and text-to-text."""

    def loss(self, features: Features) -> dict[str, Tensor]:
        """Each [CLS] against the other view of its own modality; no soft labels."""
        from tclx.losses.contrastive import soft_cross_entropy

        (image, text), keys = features.embeddings, features.keys
        temperature = features.model.temperature("imc")
        to_images = features.logits(image, keys.image, temperature=temperature)
        to_texts = features.logits(text, keys.text, temperature=temperature)
        return {"image": soft_cross_entropy(to_images, keys.targets), "text": soft_cross_entropy(to_texts, keys.targets)}
