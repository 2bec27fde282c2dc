"""The step and the evaluation of the tasks that choose among a few classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tclx.data.batch import RowBatch, normalise
from tclx.data.items import ItemBatch, ItemDataset, ItemSet, open_items
from tclx.losses.cross_entropy import soft_label_cross_entropy
from tclx.model.precision import autocast
from tclx.tasks.evaluating import evaluating, gather_parts, my_part, require_finite
from tclx.tasks.outcomes import Outcome
from tclx.tasks.step import Step
from tclx.tasks.task import Evaluation, Split, StepOutput
from tclx.tasks.thumbnails import NUM_SHOWN, jpeg, small, spaced

if TYPE_CHECKING:
    from tclx.data.forms.form import Item
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.downstream import Classifier
    from tclx.spec.experiment import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(ItemBatch):
    """Items with the number of their class."""

    labels: Tensor
    """[B] int64"""


class LabelledItems(ItemDataset):
    """Rows whose target is the number of a class."""

    def with_targets(self, common: dict[str, Any], items: Sequence[Item]) -> RowBatch:
        return LabelledBatch(**common, labels=torch.tensor([item.target for item in items]))


class JudgingStep(Step):
    """Cross-entropy of the classes, the momentum model's prediction a share of the target."""

    model: Classifier

    def forward(self, batch: LabelledBatch, *, soft_label_weight: float, draw: int = 0, measure: bool = False) -> StepOutput:
        """The loss of one batch; `soft_label_weight` is the share of the momentum model in the targets."""
        model = self.model
        images = normalise(batch.images, self.spec.data.normalization)
        logits = model.classify(model.online, images, batch.input_ids, batch.attention_mask)
        prediction = None
        if model.momentum is not None and soft_label_weight > 0:
            with torch.no_grad():
                prediction = model.classify(model.momentum, images, batch.input_ids, batch.attention_mask)
        losses = soft_label_cross_entropy(logits, batch.labels, momentum_logits=prediction, soft_label_weight=soft_label_weight)
        loss = losses.mean()
        measures = {"loss/total": loss.detach()}
        if measure:
            measures["batch/accuracy"] = 100.0 * (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {self.spec.task.name: loss}, measures)


def evaluate_classes(
    model: Classifier,
    spec: ExperimentSpec,
    split: Split,
    *,
    classes: Sequence[str],
    batch_size: int,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> Evaluation:
    """The accuracy of the most likely class; arguments and errors as `EvaluationTask.evaluate`."""
    items = open_items(spec, split)
    mine = my_part(torch.arange(items.num_items)).tolist()
    parts, done = [], 0
    with torch.no_grad(), evaluating(model), autocast(device, spec.training.precision):
        for batch in items.image_batches(mine, batch_size=batch_size) if mine else ():
            input_ids, mask = items.encode(tokenizer, mine[done : done + len(batch)])
            done += len(batch)
            images = normalise(batch.to(device), spec.data.normalization)
            parts.append(model.classify(model.online, images, input_ids.to(device), mask.to(device)).cpu())
        logits = gather_parts(torch.cat(parts) if parts else None, torch.device("cpu"))
    require_finite(logits, "logits of the classes")
    labels = torch.tensor([item.target for item in items.items])
    right = logits.argmax(dim=1) == labels
    num_of_class = labels.bincount(minlength=len(classes))
    by_class = 100.0 * labels[right].bincount(minlength=len(classes)) / num_of_class  # NaN where there is no item
    metrics = {
        "accuracy": 100.0 * float(right.float().mean()),
        "balanced_accuracy": float(by_class.nanmean()),
        "majority": 100.0 * float(num_of_class.max() / len(labels)),
        "num_items": float(len(labels)),
    }
    examples = partial(_examples, items, classes, logits.softmax(dim=1), num_of_class.tolist(), by_class.tolist())
    queries = items.queries()
    outcomes = {"accuracy": Outcome(queries, right.int().tolist()), "class": Outcome(queries, labels.tolist())}
    return Evaluation(metrics, examples, outcomes)


def _examples(
    items: ItemSet, classes: Sequence[str], shares: Tensor, num_of_class: Sequence[int], by_class: Sequence[float]
) -> dict[str, Any]:
    """Each class's accuracy in percent, and `JudgedItems`: a few items with what was answered."""
    shown = spaced(items.num_items, NUM_SHOWN)
    order = shares[shown].argsort(dim=1, descending=True)
    pictures: dict[str, str] = {}
    judged = []
    for number, best in zip(shown, order.tolist(), strict=True):
        item, seen = items.items[number], []
        for image in items.images(number):
            seen.append(len(pictures))
            pictures[str(seen[-1])] = jpeg(small(image))
        answers = [{"text": classes[one], "score": float(shares[number, one])} for one in best]
        judged.append({"images": seen, "text": item.text, "right": [classes[item.target]], "answers": answers})
    return {
        "classes": {
            name: {"num_items": count, "accuracy": accuracy if count else None}
            for name, count, accuracy in zip(classes, num_of_class, by_class, strict=True)
        },
        "score": "probability",
        "items": judged,
        "pictures": pictures,
    }
