"""LMI, local mutual information. Source: Yang et al. 2022, arXiv:2202.10401."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tclx.section import Sensible, Weight
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm

if TYPE_CHECKING:
    from torch import Tensor

    from tclx.tasks.pretrain.features import Features


class LmiSpec(ContrastiveTerm):
    """LMI, local mutual information: the [CLS] of one view against the patches or tokens of the other."""

    title: ClassVar = "LMI: whole and parts"
    parts: ClassVar = ("image", "text")
    needs: ClassVar = Needs.PROJECTIONS | Needs.MOMENTUM | Needs.OTHER_PAIRS | Needs.SECOND_VIEW

    weight: Weight = 1 / 3
    """Weight of the mean of the image and the text part."""
    pooled_grid: Annotated[int, Field(ge=1), Sensible(at_most=2048)] | None = 4
    """Patches are average-pooled to this many rows and columns (4: 16 locals, as the paper); null keeps every patch."""

    def loss(self, features: Features) -> dict[str, Tensor]:
        """Each [CLS] against the momentum patches or tokens of its own modality's other view."""
        from tclx.losses.local_mi import local_mutual_information_loss

        image, text = features.embeddings
        patches, tokens = self._locals(features)
        temperature, neighbours = features.model.temperature("lmi"), features.neighbours
        excluded = None if features.official else neighbours.same_image
        return {
            "image": local_mutual_information_loss(
                image, features.gathered(patches), temperature=temperature, own_row=neighbours.own, excluded=excluded
            ),
            "text": local_mutual_information_loss(
                text,
                features.gathered(tokens),
                temperature=temperature,
                own_row=neighbours.own,
                excluded=excluded,
                valid=features.gathered(features.batch.attention_mask[:, 1:]),
            ),
        }

    def _locals(self, features: Features) -> tuple[Tensor, Tensor]:
        """Projected patches, pooled [B, pooled N, D], and tokens [B, L - 1, D]: only the online [CLS] learns from LMI."""
        import torch

        from tclx.losses.local_mi import pool_patches

        encoders, momentum = features.momentum_encoders, features.momentum
        with torch.no_grad():
            patches = encoders.project_image_locals(momentum.image.tokens)
            if self.pooled_grid is not None:
                patches = pool_patches(patches, grid=encoders.image_encoder.grid, pooled_grid=self.pooled_grid)
            return patches, encoders.project_text_locals(momentum.text.tokens)

    def num_locals(self, grid: int | None) -> int | None:
        """Local features of an image; None where only timm knows.

        Args:
            grid: rows and columns of patches; None where only timm knows.
        """
        side = self.pooled_grid or grid
        return side**2 if side else None

    def num_negatives(self, *, others: int, queue_size: int, grid: int | None) -> int | None:
        num_locals = self.num_locals(grid)
        return others * num_locals if num_locals else None
