"""How did the numbers of a group of runs move? metrics.jsonl of several seeds -> one curve with a band."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tclx.eval.results import RunResult
from tclx.runs import RunFolder
from tclx.track.jsonl import Row, read

MAX_POINTS = 400
"""Of a curve: more than a figure has pixels would only make the page heavy."""
AXES = ("step", "epoch")

History = Sequence[Row]


class Curve(NamedTuple):
    """One metric of one group: at each step the mean, smallest and largest over the runs that logged it."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    rows_per_point: int
    """How many logged rows of a run each point averages."""


def read_history(run: RunResult) -> History:
    """The run's logged rows; none where it has not logged.

    Raises:
        InputError: the file was edited.
    """
    path = RunFolder(run.folder).metrics
    return read(path) if path.exists() else []


def metric_names(histories: Iterable[History]) -> list[str]:
    """All that was logged and has a number somewhere, without the axes, sorted."""
    names = {name for history in histories for row in history for name, value in row.items() if is_number(value)}
    return sorted(names - set(AXES))


def is_number(value: object) -> bool:
    """Whether it can be drawn: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def num_not_finite(histories: Iterable[History]) -> int:
    """Rows in which some number was NaN or infinite."""
    return sum(bool(row.get("nonfinite")) for history in histories for row in history)


def curve(histories: Sequence[History], metric: str, *, max_points: int = MAX_POINTS) -> Curve | None:
    """The metric over the steps of all runs; None where no run has it.

    Args:
        histories: one a run.
        metric: its name in metrics.jsonl.
        max_points: where more steps were logged, neighbours are averaged, for each run by itself.
    """
    runs = [{row["step"]: float(row[metric]) for row in history if is_number(row.get(metric))} for history in histories]
    steps = sorted({step for values in runs for step in values})
    if not steps:
        return None
    width = math.ceil(len(steps) / max_points)
    made = Curve([], [], [], [], width)
    for start in range(0, len(steps), width):
        bin_steps = steps[start : start + width]
        values = [mean for run in runs if (mean := _mean([run[step] for step in bin_steps if step in run])) is not None]
        made.steps.append(bin_steps[-1])
        made.mean.append(sum(values) / len(values))
        made.low.append(min(values))
        made.high.append(max(values))
    return made


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
