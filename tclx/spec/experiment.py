"""The experiment: one fully resolved spec is one run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.section import Conflict, LocalPath, Section, text_like
from tclx.spec.data import DataSpec
from tclx.spec.evaluation import EvaluationSpec
from tclx.spec.launch import LaunchSpec, LocalLaunch
from tclx.spec.model import ModelSpec
from tclx.spec.objectives import TERMS, ObjectivesSpec
from tclx.spec.optim import OptimSpec
from tclx.spec.tracking import TrackingSpec
from tclx.spec.training import TrainingSpec
from tclx.tasks.entailment import EntailmentSpec
from tclx.tasks.nlvr import NlvrSpec
from tclx.tasks.pretrain.task import PretrainSpec
from tclx.tasks.text_assignment.task import TextAssignmentSpec
from tclx.tasks.vqa.task import VqaSpec

SafeName = Annotated[
    str,
    text_like(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$", "letters, digits and `._+-`, at most 64, the first a letter or digit"),
]
"""Letters, digits and `._+-`, at most 64: names become folders and job names."""


TaskSpec = Annotated[PretrainSpec | EntailmentSpec | TextAssignmentSpec | NlvrSpec | VqaSpec, Field(discriminator="name")]


class InitSpec(Section):
    """Initial weights, for all of the model that fits; position embeddings are interpolated to the new size."""

    experiment: LocalPath | None = None
    """An experiment file, whose best checkpoint is used. Give this or `checkpoint`."""
    variant: SafeName | None = None
    """Which of that experiment's variants."""
    checkpoint: LocalPath | None = None
    """A run folder, a checkpoint folder, or an official `.pth`."""
    resume: bool = False
    """Go on where that run stands (of a run folder the newest checkpoint): at its step, with its queue and its optimizer's
    moments. For a longer run or another number of GPUs; model and optimizer must be the same."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.experiment is None) == (self.checkpoint is None):
            raise Conflict("give exactly one of `experiment` and `checkpoint`", "experiment", "checkpoint", one_too_many=True)
        if self.variant is not None and self.experiment is None:
            raise Conflict("`variant` names a variant of `experiment`", "variant", "checkpoint")
        return self


class ExperimentSpec(Section):
    """One run, fully resolved: no `extends`, no variants, one seed."""

    name: SafeName
    """What the run is called: letters, digits and `._+-`."""
    variant: SafeName | None = None
    """Filled in from `variants`; not written by hand."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed of initial weights, data order, augmentation, masking, dropout and hard negatives."""
    compat: Literal["official"] | None = None
    """`official` reproduces the quirks of the published code; docs/official-differences.md lists them."""
    task: TaskSpec = PretrainSpec()
    """What it is trained to do; left out, it is pre-trained on images and captions."""
    model: ModelSpec
    """Model architecture."""
    objectives: ObjectivesSpec = ObjectivesSpec()
    """The terms of the loss of a pre-training; other tasks have none."""
    data: DataSpec
    """Images and captions."""
    optim: OptimSpec
    """Optimizer and learning-rate schedule."""
    training: TrainingSpec
    """Length, batch size, precision, checkpoints."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation tasks, their data and schedule."""
    init: InitSpec | None = None
    """A trained model to initialize from; null initializes from the encoders' own `weights`."""
    launch: LaunchSpec = LocalLaunch()
    """Hardware: this machine or a SLURM cluster."""
    tracking: TrackingSpec = TrackingSpec()
    """Logging: metrics.jsonl, TensorBoard, W&B."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.task.name == "pretrain" and not self.objectives.terms:
            message = f"every term is off: switch on at least one of {', '.join(TERMS)}"
            raise Conflict(message, *(f"objectives.{name}" for name in TERMS))
        return self
