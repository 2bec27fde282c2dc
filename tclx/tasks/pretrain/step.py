"""One training step: the terms that are on, each computed from the features that it asks for, and their weighted sum.

Source: Yang et al. 2022, arXiv:2202.10401, and the order of operations of the published code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tclx.data.batch import Batch, longest_batch
from tclx.losses.contrastive import alignment, modality_gap, mutual_information_bound, uniformity
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.features import Features, HardNegatives
from tclx.tasks.pretrain.terms.term import Term
from tclx.tasks.step import Step
from tclx.tasks.task import StepOutput

if TYPE_CHECKING:
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec


class TrainingStep(Step):
    """The whole objective as one module, so that DDP sees a single forward call.

    The forward pass changes no parameter and no buffer: its caller enqueues the returned keys and moves the momentum encoders.

    Args:
        model: encoders, momentum encoders, heads, temperatures and queue.
        spec: which terms are on, their weights, and `compat`.
    """

    model: TCL

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
            draw: number of this draw of hard negatives, the same on all processes and different at every forward pass.
            measure: also compute what tells whether training is healthy.
            negatives: use these instead of drawing.
        """
        features = Features(
            batch, model=self.model, spec=self.spec, soft_label_weight=soft_label_weight, draw=draw, negatives=negatives
        )
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        measures: dict[str, Tensor] = {}
        for name, term in self.spec.objectives.terms.items():
            parts = term.loss(features)
            terms[name] = torch.stack(list(parts.values())).mean()
            weighted.append(term.weight * terms[name])
            measures |= {f"loss/{name}_{part}": value.detach() for part, value in parts.items() if part}
            if measure and term.has_bound:
                measures |= _bounds(name, term, features, parts)
            if measure and term.judges:
                measures |= _accuracies(name, term, features)
        balance = self.model.balance
        loss = torch.stack(weighted).sum() if balance is None else balance.total(torch.stack(weighted))
        measures |= {f"loss/{name}": value.detach() for name, value in (*terms.items(), ("total", loss))}
        if measure and self.spec.objectives.need(Needs.PROJECTIONS):
            measures |= self._health(features)
        return StepOutput(loss, terms, measures, features.queue_keys if self.model.queue is not None else None)

    @torch.no_grad()
    def _health(self, features: Features) -> dict[str, Tensor]:
        """How the embeddings lie."""
        image, text = features.embeddings
        measures = {
            "health/alignment": alignment(image, text),
            "health/uniformity_image": uniformity(image),
            "health/uniformity_text": uniformity(text),
            "health/modality_gap": modality_gap(image, text),
        }
        if (queue := self.model.queue) is not None:
            measures["health/queue_fill"] = queue.filled / queue.size
            measures["health/queue_age_gap"] = features.queue_age_gap(queue)
        return measures


@torch.no_grad()
def _bounds(name: str, term: Term, features: Features, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each part, how much its two sides tell of each other at least."""
    keys = features.keys
    num_keys = keys.valid.sum() if keys.valid is not None else torch.tensor(len(keys.image), device=keys.image.device)
    true = term.bounded(features, losses)
    return {f"mi_bound/{name}_{part}": mutual_information_bound(value, num_keys.float()) for part, value in true.items()}


@torch.no_grad()
def _accuracies(name: str, term: Term, features: Features) -> dict[str, Tensor]:
    """In percent; 0 of nothing, such as hidden words where a batch has none."""
    names = term.accuracies(name)
    return {names[kind]: 100 * right.float().sum() / max(len(right), 1) for kind, right in term.judged(features).items()}


def act_out(model: TCL, spec: ExperimentSpec) -> StepOutput:
    """One micro-batch on the meta device, every caption as long as the spec allows."""
    batch, soft_labels = longest_batch(spec), spec.objectives.soft_labels
    weight = soft_labels.weight if soft_labels is not None else 0.0
    # Which negatives are drawn depends on values, which the meta device does not have.
    negatives = HardNegatives(batch.row, batch.row)
    output: StepOutput = TrainingStep(model, spec)(batch, soft_label_weight=weight, draw=0, negatives=negatives)
    return output
