"""The step of text assignment: two images a caption, and a choice among left, right and neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tclx.data.batch import Batch, longest_batch, normalise
from tclx.losses.precision import full_precision
from tclx.tasks.step import Step
from tclx.tasks.task import StepOutput

if TYPE_CHECKING:
    from tclx.model.downstream import TextAssigner
    from tclx.spec.experiment import ExperimentSpec

LEFT, RIGHT, NEITHER = range(3)
SHARE_OF_NEITHER = 1 / 3
TEMPERATURE = 0.07
"""Of the similarity of images by which the wrong ones are drawn, as in the published code."""


class Assignment(NamedTuple):
    """Which images stand beside B captions, and what is right."""

    left: Tensor
    """[B] int64, rows of the batch."""
    right: Tensor
    """[B] int64"""
    labels: Tensor
    """[B] int64: LEFT, RIGHT or NEITHER."""


def draw_assignment(embeddings: Tensor, image_index: Tensor) -> Assignment:
    """Draw wrong images, the more similar the likelier, and who stands where, from torch's random state.

    Args:
        embeddings: [B, D] of the images, L2-normalised.
        image_index: [B] int64, equal for equal images, which are never each other's wrong one.
    """
    num = len(embeddings)
    similar = full_precision(embeddings) @ full_precision(embeddings).T / TEMPERATURE
    same = image_index[:, None] == image_index
    share = similar.masked_fill(same, -torch.inf).softmax(dim=1).nan_to_num()  # NaN where all show the same image
    # A floor keeps two drawable where one takes all; a row without any other image draws from its own.
    share = torch.where(same, 0.0, share + 1e-6)
    share = torch.where((share > 0).sum(dim=1, keepdim=True) < 2, torch.ones_like(share), share)
    wrong = share.multinomial(2)
    own = torch.arange(num, device=embeddings.device)
    chance = torch.rand(2, num, device=embeddings.device)
    labels = torch.where(chance[0] < SHARE_OF_NEITHER, NEITHER, torch.where(chance[1] < 0.5, LEFT, RIGHT))
    left = torch.where(labels == LEFT, own, wrong[:, 0])
    right = torch.where(labels == RIGHT, own, torch.where(labels == LEFT, wrong[:, 0], wrong[:, 1]))
    return Assignment(left, right, labels)


class TextAssignmentStep(Step):
    """Cross-entropy of left, right and neither."""

    model: TextAssigner

    def forward(
        self,
        batch: Batch,
        *,
        soft_label_weight: float = 0.0,
        draw: int = 0,
        measure: bool = False,
        assignment: Assignment | None = None,
    ) -> StepOutput:
        """The loss of one batch; `assignment` stands in for what would be drawn."""
        online = self.model.online
        tokens = online.image_encoder(normalise(batch.images, self.spec.data.normalization))
        if assignment is None:
            with torch.no_grad():
                embeddings = online.project_image(tokens).embedding
            if embeddings is None:
                raise TypeError("text assignment without projections")
            assignment = draw_assignment(embeddings, batch.image_index)
        text = online.text_encoder(batch.input_ids, batch.attention_mask)
        pairs = torch.stack([tokens[assignment.left], tokens[assignment.right]], dim=1)
        logits = self.model.assign(text, batch.attention_mask, pairs)
        loss = functional.cross_entropy(logits, assignment.labels)
        measures = {"loss/total": loss.detach()}
        if measure:
            measures["batch/accuracy"] = 100.0 * (logits.detach().argmax(dim=1) == assignment.labels).float().mean()
        return StepOutput(loss, {"text_assignment": loss}, measures)


def act_out(model: TextAssigner, spec: ExperimentSpec) -> StepOutput:
    """One micro-batch on the meta device, every caption as long as the spec allows."""
    batch = longest_batch(spec)
    assignment = Assignment(batch.row, batch.row, batch.row)
    output: StepOutput = TextAssignmentStep(model, spec)(batch, assignment=assignment)
    return output
