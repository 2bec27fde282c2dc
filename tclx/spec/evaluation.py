"""Evaluation tasks, their data and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from tclx.section import Conflict, Count, Section, members
from tclx.tasks.classification import ClassificationSpec
from tclx.tasks.entailment import EntailmentEvaluation
from tclx.tasks.grounding.task import GroundingSpec
from tclx.tasks.nlvr import NlvrEvaluation
from tclx.tasks.retrieval.task import RetrievalSpec
from tclx.tasks.selection import SelectionSpec
from tclx.tasks.task import EvaluationTask, Split
from tclx.tasks.vqa.task import VqaEvaluation

if TYPE_CHECKING:
    from tclx.spec.data import DataSpec

RETRIEVALS_BEST = "r_mean"


class EvaluationSpec(Section):
    """Evaluation during training and at its end."""

    retrieval: RetrievalSpec | None = None
    """Image-text retrieval; null measures nothing."""
    classification: ClassificationSpec | None = None
    """Zero-shot classification by prompts."""
    selection: SelectionSpec | None = None
    """Image-text selection: the right caption against a hard wrong one."""
    entailment: EntailmentEvaluation | None = None
    """Visual entailment, of a model that was trained for it."""
    nlvr: NlvrEvaluation | None = None
    """Statements about two images, of a model that was trained for it."""
    vqa: VqaEvaluation | None = None
    """Questions about images, of a model that was trained for it."""
    grounding: GroundingSpec | None = None
    """Visual grounding by Grad-CAM."""
    during_training: Split | None = None
    """Split evaluated on a schedule; also selects the best checkpoint. null evaluates at the end only."""
    every_epochs: Count | None = None
    """Evaluate after this many epochs (default 1 when `during_training` is set). Give this or `every_steps`."""
    every_steps: Count | None = None
    """Evaluate after this many optimizer steps."""
    at_end: Split | None = None
    """Split evaluated once with the best checkpoint, or the last one when nothing was evaluated during training."""
    best_metric: str = RETRIEVALS_BEST
    """Metric on `during_training` that selects the best checkpoint; higher is better. Retrieval's by their own names, others
    after their task: `classification/accuracy`. Where retrieval is off, the default stands for the first task's first main
    metric."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.every_epochs is not None and self.every_steps is not None:
            message = "give at most one of `every_epochs` and `every_steps`"
            raise Conflict(message, "every_epochs", "every_steps", one_too_many=True)
        if self.during_training is None and (self.every_epochs or self.every_steps):
            message = "`every_epochs` and `every_steps` need `during_training`: which split is evaluated?"
            raise Conflict(message, "every_epochs", "every_steps", "during_training")
        if (self.during_training or self.at_end) and not self.tasks:
            message = "name a task to evaluate, for instance `retrieval: {}`"
            raise Conflict(message, "during_training", "at_end", *EVALUATION_TASKS)
        return self

    @property
    def tasks(self) -> dict[str, EvaluationTask]:
        """What is evaluated, by name, in the order of the table."""
        return {name: task for name in EVALUATION_TASKS if (task := getattr(self, name)) is not None}

    def images(self) -> dict[str, list[Path]]:
        """Image files of the tasks' own data on the splits that are evaluated, by key path.

        Raises:
            InputError: the data of a task are not what they should be.
        """
        splits = dict.fromkeys(split for split in (self.during_training, self.at_end) if split is not None)
        found = {f"evaluation.{name}.{split}": task.images(split) for name, task in self.tasks.items() for split in splits}
        return {key: paths for key, paths in found.items() if paths}

    def check(self, data: DataSpec) -> None:
        """What the tasks have beside the rows of `data`, on the splits that are evaluated.

        Raises:
            InputError: it does not belong to them.
        """
        for split in dict.fromkeys(split for split in (self.during_training, self.at_end) if split is not None):
            for task in self.tasks.values():
                task.check(data, split)

    @property
    def best_metrics(self) -> list[str]:
        """What `best_metric` may be: metrics of which more is better, a task other than retrieval named before them."""
        return [
            metric.name if name == "retrieval" else f"{name}/{metric.name}"
            for name, task in self.tasks.items()
            for metric in task.metrics
            if metric.better == "higher"
        ]

    @property
    def chosen_metric(self) -> str:
        """`best_metric`, or what its default stands for."""
        if self.best_metric == RETRIEVALS_BEST and self.retrieval is None and self.tasks:
            name, task = next(iter(self.tasks.items()))
            return f"{name}/{task.main[0]}"
        return self.best_metric

    @property
    def best_row_metric(self) -> str:
        """The name of `chosen_metric` in the rows of a run."""
        task, _, rest = self.chosen_metric.partition("/")
        if task not in EVALUATION_TASKS:
            task, rest = "retrieval", self.chosen_metric
        return f"{task}/{self.during_training}/{rest}"


EVALUATION_TASKS: dict[str, type[EvaluationTask]] = members(EvaluationSpec, EvaluationTask)
"""Every task of the evaluation, by its key above."""
