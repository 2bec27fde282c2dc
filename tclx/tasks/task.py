"""What every task declares: one that a model is trained on, one that it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from tclx.errors import InputError, Problem
from tclx.section import Fraction, NamedPath, Section, Sensible
from tclx.tasks.metric import Metric
from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tclx.data.batch import RowBatch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import MomentumModel
    from tclx.plan import Plan
    from tclx.spec.data import DataSpec
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.outcomes import Outcomes

Split = Literal["val", "test"]

CAPTION_FORMS = ("captions", "pretrain", "retrieval")
"""Forms of data whose rows are images with captions."""


class SoftLabelSpec(Section):
    """Momentum distillation: the weight of the momentum model's prediction in the targets."""

    weight: Fraction = 0.4
    """Weight after the ramp; the ground truth has 1 - weight."""
    ramp_epochs: Annotated[float, Field(ge=0), Sensible(at_most=1_000_000)] = 1.0
    """Epochs over which the weight rises linearly from 0."""


class StepOutput(NamedTuple):
    """The loss of a forward pass and everything worth writing down about it."""

    loss: Tensor
    """Scalar: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """The unweighted terms that are on, with their graphs."""
    measures: dict[str, Tensor]
    """Detached scalars by metric name."""
    keys: Any = None
    """What `after_update` gets of this pass; None for nothing."""


class HealthWarning(NamedTuple):
    """Training goes on, and hardly for what was meant."""

    kind: str
    message: str
    """With what has helped, without a full stop."""


class TrainingTask(Section):
    """A task of the training: its settings are the fields, the rest is the same whatever they are."""

    forms: ClassVar[tuple[str, ...]]
    """Of which `data.train` may be."""

    def needs(self, spec: ExperimentSpec) -> Needs:
        """Which parts it builds."""
        raise NotImplementedError

    def distillation(self, spec: ExperimentSpec) -> SoftLabelSpec | None:
        """The share of the momentum model in its targets; None trains on the truth alone."""
        raise NotImplementedError

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        """Why this task cannot be trained with such a spec, without looking at any file."""
        return iter(())

    def build_model(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> MomentumModel:
        """What is trained, on the CPU, from the spec's seed; nothing is allocated under `torch.device("meta")`."""
        raise NotImplementedError

    def build_step(self, model: Any, spec: ExperimentSpec) -> nn.Module:
        """The loss as one module, a `tclx.tasks.step.Step`, so that DDP sees a single forward call.

        It is called with a batch, `draw` (the number of this forward pass, the same on all processes), `measure` (also compute
        what tells whether training is healthy) and `inputs`; returns a StepOutput; and changes no parameter and no buffer.
        """
        raise NotImplementedError

    def batches(
        self, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int, world_size: int, start_micro_step: int
    ) -> Iterator[RowBatch]:
        """This process's batches from one forward pass on; the same ones at every start."""
        raise NotImplementedError

    def inputs(self, step: int, spec: ExperimentSpec, plan: Plan) -> dict[str, Any]:
        """What the step's forward pass needs that changes with the number of updates done, by keyword."""
        weight = soft_label_weight(step, soft_labels=self.distillation(spec), ramp_steps=plan.soft_label_ramp_steps)
        return {"soft_label_weight": weight}

    def initial_weights(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """The tensors of another model under the names of this one, where this task gives them another place, too."""
        return dict(tensors)

    def before_update(self, model: Any, spec: ExperimentSpec) -> None:
        """Called before the forward passes of an optimizer step."""
        if spec.compat == "official":  # the published code clamps, and moves the momentum encoders, before the forward pass
            model.follow(spec.model.momentum)

    def after_update(self, model: Any, spec: ExperimentSpec, keys: Sequence[Any]) -> None:
        """Called after an optimizer step; `keys` are those of its forward passes that had any."""
        if spec.compat != "official":
            model.follow(spec.model.momentum)

    def warnings(self, rows: Sequence[Mapping[str, Any]], spec: ExperimentSpec, plan: Plan) -> Iterator[HealthWarning]:
        """What the rows that steps have written so far show to go wrong; each kind is said once a run."""
        return iter(())

    def row(self, model: Any, inputs: dict[str, Any]) -> dict[str, float]:
        """What the row of a step has beside the step's own measures."""
        return {"soft_labels/weight": inputs["soft_label_weight"]}

    def act_out(self, model: Any, spec: ExperimentSpec) -> StepOutput:
        """Of one micro-batch on the meta device, where it costs what it would cost and computes nothing."""
        raise NotImplementedError


def soft_label_weight(step: int, *, soft_labels: SoftLabelSpec | None, ramp_steps: float) -> float:
    """Share of the momentum model in the targets of an update, from 0 to `soft_labels.weight` over the ramp; 0 without them.

    Args:
        step: updates done.
        ramp_steps: `soft_labels.ramp_epochs` in steps.

    Source: Yang et al. 2022, arXiv:2202.10401; the published code ramps over the first epoch.
    """
    if soft_labels is None:
        return 0.0
    return soft_labels.weight * min(1.0, step / ramp_steps) if ramp_steps else soft_labels.weight


class Evaluation(NamedTuple):
    """What a model reaches on one split of a task."""

    metrics: dict[str, float]
    """By the names of the task's `metrics`."""
    examples: Callable[[], dict[str, Any]]
    """JSON for people to look at, with small images; it is computed when it is called, by one process."""
    outcomes: Outcomes | None = None
    """What each query reached, from which the metrics follow (`Metric.statistic`); without them no metric has an interval."""
    predictions: list[dict[str, Any]] | None = None
    """What a server that keeps the truth wants to see, an entry each item; None where there is no such server."""


class EvaluationTask(Section):
    """A task of the evaluation: its settings are the fields, the rest is the same whatever they are."""

    metrics: ClassVar[tuple[Metric, ...]]
    """All that an evaluation gives; the rows of a run have them under `<task>/<split>/`."""
    main: ClassVar[tuple[str, ...]]
    """Names of those that are shown where there is room for a few, the first ones first."""
    columns: ClassVar[tuple[str, ...]]
    """Names of those that a table of runs has unless others are asked for."""

    forms: ClassVar[tuple[str, ...] | None] = None
    """Of which `data.val` and `data.test` may be; None for a task with data of its own."""

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        """Why this task cannot be evaluated with such a spec, without looking at any file."""
        return iter(())

    def has(self, split: Split) -> bool:
        """Whether there is anything to evaluate on this split."""
        return True

    def paths(self) -> Iterator[NamedPath]:
        """Files and folders of its own data that must be there."""
        return iter(())

    def check(self, data: DataSpec, split: Split) -> None:
        """Read what it has beside the rows of `data`, before training begins.

        Raises:
            InputError: it does not belong to the rows of this split.
        """

    def images(self, split: Split) -> list[Path]:
        """Image files of its own data, which are opened before training like those of `data`.

        Raises:
            InputError: the data are not what they should be.
        """
        return []

    def evaluate(
        self, model: Any, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        """What a model reaches; every process of a run calls this and gets the same.

        Args:
            model: on `device`; its train/eval modes and the random state are put back afterwards.
            spec: of the run.
            split: which data.
            tokenizer: the one that the model was trained with.

        Raises:
            InputError: there is no such split, its files are wrong, or the model lacks a part that this task needs.
            RunFailed: an image cannot be read, or the model's output is not finite.
        """
        raise NotImplementedError


class OwnDataTask(EvaluationTask):
    """A task whose data are its own, under `val` and `test`; null where there are none."""

    key: ClassVar[str]
    """Its name under `evaluation`."""

    def has(self, split: Split) -> bool:
        return getattr(self, split) is not None

    def data_of(self, split: Split) -> Any:
        """The section of a split.

        Raises:
            InputError: there is none.
        """
        if (data := getattr(self, split)) is None:
            raise InputError(Problem(f"evaluation.{self.key}.{split}", "is not set, and the evaluation asks for it"))
        return data

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        evaluated = {spec.evaluation.during_training, spec.evaluation.at_end}
        splits: tuple[Split, ...] = ("val", "test")
        if unused := [split for split in splits if self.has(split) and split not in evaluated]:
            key, hint = f"evaluation.{self.key}.{unused[0]}", f"evaluation.at_end: {unused[0]}, or during_training"
            yield Problem(key, "is never evaluated", hint, others=("evaluation.at_end", "evaluation.during_training"))

    def paths(self) -> Iterator[NamedPath]:
        for split in ("val", "test"):
            if (data := getattr(self, split)) is not None:
                yield from (each._replace(key=f"{split}.{each.key}") for each in data.paths())
