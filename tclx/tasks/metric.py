"""A metric: a number that a run writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

Better = Literal["higher", "lower"]


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

    def under(self, prefix: str) -> Self:
        """The same metric with `prefix` and a slash before its name."""
        return replace(self, name=f"{prefix}/{self.name}")
