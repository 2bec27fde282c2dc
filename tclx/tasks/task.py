"""What every task that a model is evaluated on declares, and what its evaluation gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from tclx.errors import Problem
from tclx.section import Section
from tclx.tasks.metric import Metric

if TYPE_CHECKING:
    import torch

    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec

Split = Literal["val", "test"]


class Evaluation(NamedTuple):
    """What a model reaches on one split of a task."""

    metrics: dict[str, float]
    """By the names of the task's `metrics`."""
    examples: Callable[[], dict[str, Any]]
    """JSON for people to look at, with small images; it is computed when it is called, by one process."""


class EvaluationTask(Section):
    """A task of the evaluation: its settings are the fields, the rest is the same whatever they are."""

    metrics: ClassVar[tuple[Metric, ...]]
    """All that an evaluation gives; the rows of a run have them under `<task>/<split>/`."""
    main: ClassVar[tuple[str, ...]]
    """Names of those that are shown where there is room for a few, the first ones first."""

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        """Why this task cannot be evaluated with such a spec, without looking at any file."""
        return iter(())

    def has(self, split: Split) -> bool:
        """Whether there is anything to evaluate on this split."""
        return True

    def missing(self) -> Iterator[Problem]:
        """Files and folders that it needs and this machine does not have."""
        return iter(())

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
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
