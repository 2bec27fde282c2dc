"""ITM, image-text matching. Source: Yang et al. 2022, arXiv:2202.10401; Li et al. 2021, arXiv:2107.07651."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import Pair, Term

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tclx.tasks.pretrain.features import Features


class ItmSpec(Term):
    """ITM, image-text matching: is this pair real, against one hard negative image and one hard negative text each."""

    title: ClassVar = "ITM: does the pair match?"
    needs: ClassVar = Needs.FUSION | Needs.OTHER_PAIRS | Needs.HARD_NEGATIVES
    aligns: ClassVar = True
    judges: ClassVar = {"pairs": "true pairs", "hard_images": "hard negative images", "hard_texts": "hard negative texts"}

    def build_head(self, *, text_width: int) -> nn.Module:
        """[CLS] of the fusion encoder -> (no match, match)."""
        from torch import nn

        return nn.Linear(text_width, 2)

    def pairs(self, features: Features) -> list[Pair]:
        """The true pairs, the wrong images, the wrong captions; with a single pair there are no wrong ones."""
        text, mask = features.online.text.tokens, features.batch.attention_mask
        true = Pair(text, mask)
        if features.num_candidates == 1:
            return [true]
        negatives, images = features.negatives, features.online.image.tokens
        wrong_image = Pair(text, mask, negatives.image)
        if features.num_candidates > len(text):  # only the images asked for come, and get keys and values
            (theirs,) = features.fetched(images, rows=negatives.image, for_products=True)
            wrong_image = Pair(text, mask, images=theirs)
        wrong_words, wrong_mask = features.fetched(text, mask, rows=negatives.text)
        wrong_text = Pair(wrong_words, wrong_mask)
        return [true, wrong_image, wrong_text]

    def loss(self, features: Features) -> dict[str, Tensor]:
        import torch

        from tclx.losses.matching import image_text_matching_loss

        fused = features.fused("itm")
        summary = torch.cat([tokens[:, 0] for tokens in fused])
        labels = (torch.arange(len(summary), device=summary.device) < len(fused[0])).long()
        return {"": image_text_matching_loss(features.head("itm")(summary), labels)}

    def judged(self, features: Features) -> dict[str, Tensor]:
        """Whether the likelier of no match and match is right, of each of the three sets of pairs."""
        head, fused = features.head("itm"), features.fused("itm")
        matches = [head(tokens[:, 0]).argmax(dim=1) == 1 for tokens in fused]
        return {kind: match if kind == "pairs" else ~match for kind, match in zip(self.judges, matches, strict=False)}
