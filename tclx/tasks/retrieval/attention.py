"""Where in the image does the fusion encoder look for a word? Grad-CAM on one layer's cross-attention, as ALBEF shows it.

The maps of `tclx.tasks.grad_cam`, averaged over a word's tokens. Without a matching head the weights are averaged as they are.
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
from tclx.tasks.grad_cam import matching_maps

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
        maps, scores = matching_maps(model, fusion, states, mask, patches)
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
