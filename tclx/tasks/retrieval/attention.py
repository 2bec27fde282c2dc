"""Where in the image does the fusion encoder look for a word? Grad-CAM on one layer's cross-attention, as ALBEF shows it.

The weights of one layer, each multiplied by how much it raises the matching head's logit of "matched" (gradients that lower it
count as nothing), are averaged over heads and over a word's tokens. Without a matching head the weights are averaged as they
are.

Source: Selvaraju et al. 2017, arXiv:1610.02391; Li et al. 2021, arXiv:2107.07651, figure 4, from the third of six layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tclx.data.batch import normalise
from tclx.model.fusion import FusionEncoder
from tclx.model.precision import autocast
from tclx.tasks.evaluating import evaluating

if TYPE_CHECKING:
    from tclx.data.dataset import EvaluationSet
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec


class WordMap(NamedTuple):
    """What a word looks at."""

    text: str
    map: Tensor
    """[rows, columns] fp32 on the CPU, not negative; of the image encoder's grid of patches."""


class AttentionMaps(NamedTuple):
    """What the words of one caption look at in its image."""

    caption: int
    """Its number in the evaluation set."""
    score: float | None
    """The ITM logit of "matched"; None without a matching head."""
    words: tuple[WordMap, ...]


def attention_maps(
    model: TCL, spec: ExperimentSpec, source: EvaluationSet, captions: Sequence[int], *, tokenizer: CaptionTokenizer
) -> list[AttentionMaps]:
    """What the words of captions look at, each in its own image.

    Args:
        model: on the device that computes; its modes, its gradients and the random state are left as they are.
        captions: numbers; all go through the model at once.

    Returns:
        One for each caption; none at all where the model has no fusion encoder.

    Raises:
        RunFailed: an image cannot be read.
    """
    fusion = model.online.fusion_encoder
    if not isinstance(fusion, FusionEncoder) or not captions:
        return []
    device = next(model.parameters()).device
    numbers = [int(source.image_of_caption[caption]) for caption in captions]
    (images,) = source.image_batches(numbers, batch_size=len(numbers))
    input_ids, mask = (tensor.to(device) for tensor in source.encode_captions(tokenizer, captions))
    with evaluating(model), autocast(device, spec.training.precision):
        with torch.no_grad():
            patches = model.online.encode_image(normalise(images.to(device), spec.data.normalization)).tokens
            states = model.online.encode_text(input_ids, mask).tokens
        maps, scores = _grad_cam(model, fusion, states, mask, patches)
    grid = model.online.image_encoder.grid
    return [
        AttentionMaps(
            caption,
            None if scores is None else float(scores[row]),
            tuple(
                WordMap(word.text, maps[row, list(word.places)].mean(dim=0).view(grid))
                for word in tokenizer.words(source.captions[caption], max_tokens=spec.data.max_caption_tokens)
            ),
        )
        for row, caption in enumerate(captions)
    ]


@torch.enable_grad()
def _grad_cam(model: TCL, fusion: FusionEncoder, states: Tensor, mask: Tensor, patches: Tensor) -> tuple[Tensor, Tensor | None]:
    """[R, L, N] what every token looks at, [CLS] of the image left out, and [R] matching logits."""
    fused, weights = fusion.explained(states, mask, fusion.keys_values(patches), layer=(len(fusion.layers) - 1) // 2)
    maps, scores = weights, None
    if (head := model.head("itm")) is not None:
        scores = head(fused[:, 0])[:, 1]
        (influence,) = torch.autograd.grad(scores.sum(), weights)
        maps, scores = weights * influence.clamp(min=0), scores.detach().float().cpu()
    return maps[..., 1:].mean(dim=1).detach().float().cpu(), scores
