"""MLM, masked language modelling. Source: Devlin et al. 2019, arXiv:1810.04805; Li et al. 2021, arXiv:2107.07651."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tclx.section import Sensible
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import Pair, Term

if TYPE_CHECKING:
    from torch import Tensor

    from tclx.tasks.pretrain.features import Features


class MlmSpec(Term):
    """MLM, masked language modelling: name the hidden words from the rest of the caption and the image."""

    title: ClassVar = "MLM: masked words"
    needs: ClassVar = Needs.FUSION | Needs.MASKED_WORDS | Needs.SOFT_LABELS
    judges: ClassVar = {"": ""}

    mask_probability: Annotated[float, Field(gt=0, lt=1), Sensible(at_least=0.001)] = 0.15
    """Probability that a token is selected for prediction: of these 80 % are masked, 10 % replaced, 10 % kept."""

    def pairs(self, features: Features) -> list[Pair]:
        """Each caption with words hidden, beside its own image."""
        return [Pair(features.masked_tokens, features.batch.attention_mask)]

    def loss(self, features: Features) -> dict[str, Tensor]:
        """The hidden words, from the caption's rest and view 1; the momentum model reads view 2."""
        from tclx.losses.masked_lm import masked_language_modeling_loss

        positions, labels = features.masked_words
        (fused,) = features.fused("mlm")
        logits = features.model.online.name_words(fused, positions)
        weight = features.soft_label_weight
        momentum_logits = self._momentum_logits(features, positions) if weight > 0 else None
        loss = masked_language_modeling_loss(logits, labels, momentum_logits=momentum_logits, soft_label_weight=weight)
        return {"": loss}

    def judged(self, features: Features) -> dict[str, Tensor]:
        """Whether the likeliest word is the hidden one."""
        positions, labels = features.masked_words
        (fused,) = features.fused("mlm")
        return {"": features.model.online.name_words(fused, positions).argmax(dim=1) == labels}

    def _momentum_logits(self, features: Features, positions: Tensor) -> Tensor:
        """[M, V] logits of the momentum model at the hidden words."""
        import torch

        encoders, batch = features.momentum_encoders, features.batch
        with torch.no_grad():
            tokens = encoders.text_encoder(batch.masked_input_ids, batch.attention_mask)
            return encoders.name_words(encoders.fuse(tokens, batch.attention_mask, features.momentum.image.tokens), positions)
