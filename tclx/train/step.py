"""One training step: where the paper meets the code.

A batch goes through the online encoders (view 1) and the momentum encoders (view 2); CMA, IMC and LMI compare their features, ITM
and MLM look at the fused pair. Sizes: B pairs in this process, G pairs over all processes, Q queue slots, D embedding width,
N patches, L tokens, M masked tokens.

The forward pass changes no buffer: the caller enqueues the returned keys and moves the momentum encoders after the optimizer step.

Source: Yang et al. 2022, arXiv:2202.10401; the published code's order of operations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.data.batch import Batch, normalise
from tclx.losses.contrastive import (
    alignment,
    modality_gap,
    mutual_information_bound,
    similarity_logits,
    soft_cross_entropy,
    soft_targets,
    target_distribution,
    uniformity,
)
from tclx.losses.local_mi import local_mutual_information_loss, pool_patches
from tclx.losses.masked_lm import masked_language_modeling_loss
from tclx.losses.matching import draw_hard_negatives, image_text_matching_loss
from tclx.model.tcl import TCL, Encoded
from tclx.plan import needs_second_view
from tclx.spec.experiment import ExperimentSpec


class QueueKeys(NamedTuple):
    """Momentum features of all processes, ready for the queue."""

    image: Tensor
    """[G, D]"""
    text: Tensor
    """[G, D]"""
    image_index: Tensor
    """[G] which picture each belongs to"""


class HardNegatives(NamedTuple):
    """For every pair of this process, a row of the global batch."""

    image: Tensor
    """[B] a picture that the caption might belong to"""
    text: Tensor
    """[B] a caption that the picture might have"""


class StepOutput(NamedTuple):
    """The loss and everything worth writing down about it."""

    loss: Tensor
    """Scalar: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """Unweighted terms that are on, by name, with their graphs."""
    measures: dict[str, Tensor]
    """Detached scalars by metric name."""
    keys: QueueKeys | None
    """For the queue; None without momentum encoders."""


class Momentum(NamedTuple):
    """What the momentum encoders say of this process's batch."""

    image: Encoded
    text: Encoded


class Keys(NamedTuple):
    """What queries are compared with: K = G + Q columns, the batch first."""

    image: Tensor
    """[K, D]"""
    text: Tensor
    """[K, D]"""
    targets: Tensor
    """[B, K] rows sum to 1: the keys of the same picture."""
    valid: Tensor | None
    """[K] False at queue slots never filled; None without a queue."""


class TrainingStep(nn.Module):
    """The objective as one module, so that DDP sees one forward call.

    Args:
        model: the online and momentum encoders, heads, temperatures and queue.
        spec: which terms are on, their weights, and `compat`.
    """

    def __init__(self, model: TCL, spec: ExperimentSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.objectives = spec.objectives
        self.official = spec.compat == "official"
        # The published pre-training knows no picture identity: a picture met again in the queue counts as a negative there.
        self.ignores_identity = self.official and not (spec.data.train.source == "files" and spec.data.train.form == "retrieval")

    def forward(
        self,
        batch: Batch,
        *,
        soft_label_weight: float,
        draw: int,
        measure: bool = False,
        negatives: HardNegatives | None = None,
    ) -> StepOutput:
        """The loss of one batch.

        Args:
            batch: B pairs on the model's device.
            soft_label_weight: share of the momentum model in the targets of CMA and MLM, 0 to 1.
            draw: number of the draw of hard negatives, different at every forward pass, equal on all processes.
            measure: also compute what tells whether training is healthy.
            negatives: use these instead of drawing.
        """
        objectives, online = self.objectives, self.model.online
        views = self._views(batch)
        image = online.encode_image(views[0])
        text, masked_tokens = self._encode_texts(batch)
        momentum = self._momentum_features(batch, views[1])

        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        keys = self._keys(batch, momentum) if momentum is not None and self._compares else None
        if keys is not None and momentum is not None:
            if objectives.cma:
                terms["cma"] = self._cma(image, text, momentum, keys, soft_label_weight, measures)
            if objectives.imc:
                terms["imc"] = self._imc(image, text, keys, measures)
            if objectives.lmi:
                terms["lmi"] = self._lmi(batch, image, text, momentum, measures)
            if measure:
                measures |= self._health(image, text, keys)
        if objectives.itm or objectives.mlm:
            if objectives.itm and negatives is None:
                negatives = self._draw_negatives(batch, image, text, keys, draw)
            fused = self._fuse(batch, image, text, masked_tokens, negatives)
            if objectives.itm:
                terms["itm"] = self._itm(fused)
            if objectives.mlm:
                terms["mlm"] = self._mlm(batch, fused, momentum, soft_label_weight)

        loss = torch.stack([getattr(objectives, name).weight * term for name, term in terms.items()]).sum()
        measures |= {f"loss/{name}": term.detach() for name, term in terms.items()}
        measures["loss/total"] = loss.detach()
        return StepOutput(loss, terms, measures, self._queue_keys(batch, momentum))

    @property
    def _compares(self) -> bool:
        return bool(self.objectives.cma or self.objectives.imc or self.objectives.lmi)
