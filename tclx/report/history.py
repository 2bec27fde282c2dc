"""How did the numbers of a group of runs move? metrics.jsonl of several seeds -> one curve with a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tclx.report.results import RunResult
from tclx.runs import RunFolder
from tclx.track.jsonl import Row, read

MAX_POINTS = 300
"""Of a curve: about as many as a figure has pixels; more would only make the page heavy."""
AXES = ("step", "epoch")


class Series(NamedTuple):
    """One metric of one run, where it is finite."""

    steps: list[int]
    values: list[float]


class History(NamedTuple):
    """What a run logged, by metric."""

    series: dict[str, Series]
    num_not_finite: int
    """Rows in which some number was NaN or infinite."""


class Curve(NamedTuple):
    """One metric of one group: at each step the mean, smallest and largest over the runs that logged it."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    rows_per_point: int
    """How many logged rows of a run each point averages."""
    each: tuple[tuple[float | None, ...], ...] = ()
    """Of every run that logged it its own values at these steps, None where it has none."""


def read_history(run: RunResult) -> History:
    """The run's logged rows; none where it has not logged.

    Raises:
        InputError: the file was edited.
    """
    path = RunFolder(run.folder).metrics
    return history_of(read(path) if path.exists() else [])


def history_of(rows: Sequence[Row]) -> History:
    """Rows by metric."""
    series: dict[str, Series] = {}
    for row in rows:
        for name, value in row.items():
            if name not in AXES and is_number(value):
                steps, values = series.setdefault(name, Series([], []))
                steps.append(row["step"])
                values.append(float(value))
    return History(series, sum(bool(row.get("nonfinite")) for row in rows))


def is_number(value: object) -> bool:
    """Whether it can be drawn: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(histories: Sequence[History], metric: str, *, max_points: int = MAX_POINTS) -> Curve | None:
    """The metric over the steps of all runs; None where no run has it.

    Args:
        histories: one a run.
        metric: its name in metrics.jsonl.
        max_points: where more steps were logged, neighbours are averaged, for each run by itself.
    """
    runs = [dict(zip(*history.series[metric], strict=True)) for history in histories if metric in history.series]
    steps = sorted({step for values in runs for step in values})
    if not steps:
        return None
    width = math.ceil(len(steps) / max_points)
    bins = [steps[start : start + width] for start in range(0, len(steps), width)]
    each = tuple(tuple(_mean([run[step] for step in one if step in run]) for one in bins) for run in runs)
    there = [[value for value in values if value is not None] for values in zip(*each, strict=True)]
    return Curve(
        steps=[one[-1] for one in bins],
        mean=[sum(values) / len(values) for values in there],
        low=[min(values) for values in there],
        high=[max(values) for values in there],
        rows_per_point=width,
        each=each,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
