"""The pairwise sigmoid loss. Source: Zhai et al. 2023, arXiv:2303.15343 (SigLIP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from tclx.section import Sensible
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm, TemperatureSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tclx.tasks.pretrain.features import Features


class SigmoidSpec(ContrastiveTerm):
    """SigLIP's loss: does each image match each caption of the batch, a binary classification. No queue, no momentum."""

    title: ClassVar = "Sigmoid: is this a pair?"
    needs: ClassVar = Needs.PROJECTIONS | Needs.OTHER_PAIRS
    aligns: ClassVar = True

    temperature: TemperatureSpec = TemperatureSpec(initial=0.1)
    """Temperature of its own, which the similarity is divided by before the bias is added."""
    bias: Annotated[float, Sensible(at_least=-100, at_most=100)] = -10.0
    """Initial value of the bias; negative, since most pairs of the batch do not match."""
    learned_bias: bool = True
    """Whether the bias is trained."""

    def build_head(self, *, text_width: int) -> nn.Module:
        """The bias, 0-D."""
        import torch
        from torch import nn

        return nn.ParameterDict({"bias": nn.Parameter(torch.tensor(self.bias), requires_grad=self.learned_bias)})

    def loss(self, features: Features) -> dict[str, Tensor]:
        """The sum over the captions of the batch, mean over the images; captions of one image are all its own."""
        import torch
        from torch.nn import functional

        from tclx.losses.contrastive import similarity_logits

        image, text = features.embeddings
        logits = similarity_logits(image, features.across(text), temperature=features.model.temperature("sigmoid"))
        logits = logits + features.head("sigmoid").get_parameter("bias")
        is_pair = features.neighbours.same_image
        return {"": functional.softplus(torch.where(is_pair, -logits, logits)).sum(dim=1).mean()}
