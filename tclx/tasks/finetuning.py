"""What the downstream tasks have in common as tasks of the training, and those of them that choose among a few classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from tclx.errors import InputError, Problem
from tclx.section import BatchSize
from tclx.tasks.metric import MeanOfClasses, Metric
from tclx.tasks.needs import Needs
from tclx.tasks.task import Evaluation, EvaluationTask, SoftLabelSpec, Split, StepOutput, TrainingTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tclx.data.batch import RowBatch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.downstream import Classifier
    from tclx.spec.experiment import ExperimentSpec


class FineTuning(TrainingTask):
    """A downstream task: encoders and fusion encoder of a pre-training, what the task adds, and momentum distillation."""

    soft_labels: SoftLabelSpec | None = SoftLabelSpec()
    """Momentum soft labels; null trains on the ground truth alone and builds no momentum encoders."""

    def needs(self, spec: ExperimentSpec) -> Needs:
        return Needs.FUSION | (Needs.MOMENTUM | Needs.SOFT_LABELS if self.soft_labels is not None else Needs(0))

    def distillation(self, spec: ExperimentSpec) -> SoftLabelSpec | None:
        return self.soft_labels


def act_out_items(spec: ExperimentSpec, *, num_images: int) -> dict[str, Any]:
    """The fields of an `ItemBatch` on the meta device, every text as long as the spec allows."""
    import torch

    size, side, length = spec.training.batch_size_per_gpu, spec.model.image_encoder.image_size, spec.data.max_caption_tokens
    return {
        "row": torch.zeros(size, dtype=torch.int64),
        "num_bad_images": 0,
        "images": torch.empty((size, num_images, 3, side, side), dtype=torch.uint8),
        "input_ids": torch.zeros(size, length, dtype=torch.int64),
        "attention_mask": torch.ones(size, length, dtype=torch.bool),
    }


# ------------------------------------------------------------------------------------------------------------- a few classes


class Judging(FineTuning):
    """Which of a few classes is a text, seen with its image or images?"""

    classes: ClassVar[tuple[str, ...]]
    """By their numbers in the rows."""
    num_images: ClassVar[int] = 1

    def build_model(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> Classifier:
        from tclx.model.downstream import Classifier

        return Classifier(
            spec,
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            with_momentum=self.soft_labels is not None,
            num_classes=len(self.classes),
            num_images=self.num_images,
        )

    def build_step(self, model: Classifier, spec: ExperimentSpec) -> nn.Module:
        from tclx.tasks.judging import JudgingStep

        return JudgingStep(model, spec)

    def batches(
        self, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int, world_size: int, start_micro_step: int
    ) -> Iterator[RowBatch]:
        from tclx.data.dataset import batches_of
        from tclx.tasks.judging import LabelledItems

        dataset = partial(LabelledItems, spec=spec, tokenizer=tokenizer)
        return batches_of(dataset, spec, rank=rank, world_size=world_size, start_micro_step=start_micro_step)

    def act_out(self, model: Classifier, spec: ExperimentSpec) -> StepOutput:
        import torch

        from tclx.tasks.judging import JudgingStep, LabelledBatch

        common = act_out_items(spec, num_images=self.num_images)
        batch = LabelledBatch(**common, labels=torch.zeros(len(common["row"]), dtype=torch.int64))
        weight = self.soft_labels.weight if self.soft_labels is not None else 0.0
        output: StepOutput = JudgingStep(model, spec)(batch, soft_label_weight=weight, draw=0)
        return output


class JudgingEvaluation(EvaluationTask):
    """How often is the most likely class the right one?"""

    classes: ClassVar[tuple[str, ...]]
    task: ClassVar[str]
    """The name of the task that trains models for it."""
    main: ClassVar = ("accuracy",)
    columns: ClassVar = ("accuracy",)

    batch_size: BatchSize = 64
    """Items per forward pass."""

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        yield from trained_otherwise(self.task, spec)

    def evaluate(
        self, model: Classifier, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        if problems := list(trained_otherwise(self.task, spec)):
            raise InputError(*problems)
        from tclx.tasks.judging import evaluate_classes

        return evaluate_classes(
            model, spec, split, classes=self.classes, batch_size=self.batch_size, tokenizer=tokenizer, device=device
        )


def judging_metrics(classes: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of a choice among a few classes."""
    chance = 100.0 / len(classes)
    return (
        Metric("accuracy", "accuracy", "%", "higher", lambda _: chance, about="Items whose own class scores highest."),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            "%",
            "higher",
            lambda _: chance,
            MeanOfClasses("accuracy", "class"),
            about="Mean over classes of each one's accuracy, so that frequent ones do not count more.",
        ),
        Metric("majority", "share of the most frequent class", "%"),
        Metric("num_items", "items"),
    )


def trained_otherwise(task: str, spec: ExperimentSpec) -> Iterator[Problem]:
    """Why a task cannot be evaluated: a model of another has no head for it."""
    if spec.task.name != task:
        message = f"a model of task {spec.task.name} has no head for it"
        yield Problem(f"evaluation.{task}", message, f"task: {{name: {task}}}, or set null", others=("task.name",))
