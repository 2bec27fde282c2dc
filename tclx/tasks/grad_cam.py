"""Grad-CAM: which patches of an image raise how well it goes with a text?

The attention weights of one layer, each multiplied by how much it raises a score (gradients that lower it count as nothing),
are averaged over heads. The score is the matching head's logit of "matched", through the fusion encoder's cross-attention, or
the cosine similarity of the embeddings, through the image encoder's own attention.

Source: Selvaraju et al. 2017, arXiv:1610.02391; Li et al. 2021, arXiv:2107.07651, section 6.5 and figure 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from tclx.model.fusion import FusionEncoder
    from tclx.model.tcl import TCL


@torch.enable_grad()
def matching_maps(
    model: TCL, fusion: FusionEncoder, states: Tensor, mask: Tensor, images: Tensor, *, layer: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """What every text token looks at, as far as it raises the matching score.

    Args:
        fusion: the model's.
        states: [R, L, D] tokens of the text encoder.
        mask: [R, L] bool, False at padding.
        images: [R, 1 + N, width] tokens of the image encoder, one image for each text.
        layer: of the fusion encoder, from 0; by default the middle one, the third of six.

    Returns:
        [R, L, N] fp32 on the CPU, not negative, [CLS] of the image left out; and [R] matching logits. Without a matching head
        the weights as they are, and None.
    """
    middle = (len(fusion.layers) - 1) // 2
    fused, weights = fusion.explained(states, mask, fusion.keys_values(images), layer=middle if layer is None else layer)
    maps, scores = weights, None
    if (head := model.head("itm")) is not None:
        scores = head(fused[:, 0])[:, 1]
        (influence,) = torch.autograd.grad(scores.sum(), weights)
        maps, scores = weights * influence.clamp(min=0), scores.detach().float().cpu()
    return maps[..., 1:].mean(dim=1).detach().float().cpu(), scores


@torch.enable_grad()
def similarity_maps(model: TCL, images: Tensor, texts: Tensor, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """What [CLS] of an image looks at, as far as it raises the cosine similarity to a text.

    The published map divides the similarity by the temperature first, which scales the map and nothing else.

    Args:
        images: [R, 3, S, S], normalised.
        texts: [R, D] embeddings.
        block: of the image encoder, from 0; by default two thirds up, the ninth of twelve.

    Returns:
        [R, N] fp32 on the CPU, not negative; and [R] similarities.

    Raises:
        InputError: the image encoder has no such attention, or the model no common space.
    """
    encoder = model.online.image_encoder
    with encoder.attention_weights(block) as seen:
        embedding = model.online.encode_image(images).embedding
        if embedding is None:
            raise InputError(Problem("evaluation.grounding", "this model has no common space", "switch on objectives.cma"))
        similarity = (embedding * texts).sum(dim=1)
        (influence,) = torch.autograd.grad(similarity.sum(), seen[0])  # inside: what is recomputed must be the same
    maps = (seen[0] * influence.clamp(min=0))[:, :, 0, encoder.layout.num_prefix_tokens :].mean(dim=1)
    return maps.detach().float().cpu(), similarity.detach().float().cpu()
