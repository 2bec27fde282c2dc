"""What of a run's final evaluation has an interval? Its outcomes, read, compared with its metrics, resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tclx.files import Unreadable
from tclx.metrics import of_one_split, task_of
from tclx.runs import RunFolder
from tclx.tasks.metric import Mean, Statistic
from tclx.tasks.outcomes import read_outcomes

if TYPE_CHECKING:  # numpy is loaded where there is something to resample
    from tclx.report.bootstrap import Estimate

TOLERANCE = 1e-3
"""Metrics that were computed in fp32 may differ from those of the outcomes by so much."""


class Estimates(NamedTuple):
    """Of one run on one split."""

    found: dict[str, Estimate]
    """By names `without_split`."""
    missing: tuple[str, ...] = ()
    """Why others are not there, in words."""


def read_estimates(folder: Path, split: str, metrics: Mapping[str, float], wanted: Sequence[str]) -> Estimates:
    """The metrics of a run with their resampled values.

    Args:
        folder: of the run.
        split: that was evaluated.
        metrics: what its evaluation wrote, by names `without_split`.
        wanted: which of them; those that follow from no outcomes are passed over.
    """
    by_task: dict[str, dict[str, Statistic]] = {}
    for name in wanted:
        if name in metrics and (statistic := _statistic(name)) is not None:
            by_task.setdefault(task_of(name), {})[name] = statistic
    found: dict[str, Estimate] = {}
    missing: list[str] = []
    for task, statistics in by_task.items():
        path = RunFolder(folder).outcomes(task, split)
        if not path.exists():
            missing.append("no outcomes of its queries were kept")
            continue
        try:
            outcomes = read_outcomes(path)
        except Unreadable as error:
            missing.append(str(error))
            continue
        from tclx.report.bootstrap import estimate

        estimates = estimate(outcomes, statistics)
        if any(not math.isclose(one.value, metrics[name], abs_tol=TOLERANCE) for name, one in estimates.items()):
            missing.append(f"{path} is of another evaluation than the metrics beside it")
            continue
        found |= estimates
    return Estimates(found, tuple(dict.fromkeys(missing)))


def _statistic(name: str) -> Statistic | None:
    """How a metric follows from outcomes; an outcome of its own name is averaged."""
    metric = of_one_split().get(name)
    if metric is None or metric.better is None:
        return None
    return metric.statistic or Mean(metric.name)
