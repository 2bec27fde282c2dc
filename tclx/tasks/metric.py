"""A metric: a number that a run writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Recall:
    """Percentage of the queries whose rank, counted from 0, is below `k`."""

    outcome: str
    k: int


@dataclass(frozen=True)
class MedianRank:
    """Median of the ranks, counted from 1."""

    outcome: str


@dataclass(frozen=True)
class Mean:
    """Mean of outcomes between 0 and 1, in percent."""

    outcome: str


@dataclass(frozen=True)
class MeanOfClasses:
    """Mean over classes of each one's own mean of outcomes between 0 and 1, in percent; `classes` are outcomes, too."""

    outcome: str
    classes: str


@dataclass(frozen=True)
class MeanOf:
    """Mean of other statistics."""

    parts: tuple[Statistic, ...]


Statistic: TypeAlias = Recall | MedianRank | Mean | MeanOfClasses | MeanOf
"""How a metric follows from the outcomes of the queries (`tclx.tasks.outcomes`), by the outcomes' names."""


@dataclass(frozen=True)
class Metric:
    """What people and sweeps must know of a number to show it, compare it or aim at it."""

    name: str
    """As in metrics.jsonl; of a task's metrics what follows `<task>/<split>/`."""
    title: str
    unit: str = ""
    better: Better | None = None
    """The direction to aim at; None where there is none, or another metric is the aim."""
    chance: Callable[[Mapping[str, float]], float] | None = None
    """What guessing reaches, from the other metrics of the same evaluation; None where that is unknown."""
    statistic: Statistic | None = None
    """How it follows from the outcomes of the queries; None where there is one outcome of the metric's own name, or none."""
    about: str = ""
    """What it says, in a sentence for those who meet it first; empty where the title does."""

    def under(self, prefix: str) -> Self:
        """The same metric with `prefix` and a slash before its name."""
        return replace(self, name=f"{prefix}/{self.name}")
