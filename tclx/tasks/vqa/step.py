"""The step of answering: batches of questions with their answers, and the likelihood of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tclx.data.batch import RowBatch, normalise
from tclx.data.forms.vqa import answers_of
from tclx.data.items import ItemBatch, ItemDataset
from tclx.losses.answering import answer_losses
from tclx.tasks.step import Step
from tclx.tasks.task import StepOutput

if TYPE_CHECKING:
    from tclx.data.forms.form import Item
    from tclx.data.sources.source import ItemRows
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.downstream import Answerer
    from tclx.spec.experiment import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class AnsweredBatch(ItemBatch):
    """B questions with R answers in all."""

    answer_ids: Tensor
    """[R, L'] int64: `[CLS] answer [SEP]`, then padding."""
    answer_mask: Tensor
    """[R, L'] bool: False at padding."""
    answer_rows: Tensor
    """[R] int64: which question each belongs to, 0 to B - 1."""
    answer_weights: Tensor
    """[R] fp32"""


class AnsweredItems(ItemDataset):
    """Questions with all their different answers."""

    def __init__(self, rows: ItemRows, spec: ExperimentSpec, tokenizer: CaptionTokenizer, *, max_answer_tokens: int) -> None:
        super().__init__(rows, spec, tokenizer)
        self._max_answer_tokens = max_answer_tokens

    def with_targets(self, common: dict[str, Any], items: Sequence[Item]) -> RowBatch:
        answers = [answers_of(item.target) for item in items]
        encoded = self.tokenizer.encode_answers(
            [text for one in answers for text in one.weights], max_tokens=self._max_answer_tokens
        )
        return AnsweredBatch(
            **common,
            answer_ids=torch.from_numpy(encoded.input_ids),
            answer_mask=torch.from_numpy(encoded.attention_mask),
            answer_rows=torch.from_numpy(np.repeat(np.arange(len(answers)), [len(one.weights) for one in answers])),
            answer_weights=torch.tensor([weight for one in answers for weight in one.weights.values()]),
        )


class AnsweringStep(Step):
    """The weighted negative log-likelihood of the answers, the momentum model's prediction a share of the target."""

    model: Answerer

    def forward(self, batch: AnsweredBatch, *, soft_label_weight: float, draw: int = 0, measure: bool = False) -> StepOutput:
        """The loss of one batch; `soft_label_weight` is the share of the momentum model in the targets."""
        model = self.model
        images = normalise(batch.images, self.spec.data.normalization)

        def logits_of(encoders: Any) -> Tensor:
            questions = model.read(encoders, images, batch.input_ids, batch.attention_mask)
            answers = batch.answer_ids, batch.answer_mask
            return model.write(encoders, *answers, questions, batch.attention_mask, batch.answer_rows)

        logits, prediction = logits_of(model.online), None
        # The published code computes the momentum model's prediction and leaves it out of the loss.
        if model.momentum is not None and soft_label_weight > 0 and self.spec.compat != "official":
            with torch.no_grad():
                prediction = logits_of(model.momentum)
        losses = answer_losses(
            logits,
            batch.answer_ids,
            batch.answer_mask,
            momentum_logits=prediction,
            soft_label_weight=soft_label_weight,
        )
        loss = (batch.answer_weights * losses).sum() / len(batch.input_ids)
        return StepOutput(loss, {"vqa": loss}, {"loss/total": loss.detach()})
