"""What can a sweep aim at? The numbers that a run will have, known before it starts, and read when it has ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tclx.files import read_as
from tclx.metrics import OF_EVERY_RUN, TOTAL_LOSS, is_evaluated, of_evaluation
from tclx.plan import Plan
from tclx.report.cost import process_hours
from tclx.report.history import history_of
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.sweep import ObjectiveSpec, SweepSpec
from tclx.track.jsonl import read

PROCESS_HOURS = "cost/process_hours"
"""Time in training steps times processes: GPU-hours where each process has a GPU (`tclx.report.cost.process_hours`)."""

GPU_HOURS = "cost/gpu_hours"
"""The same, by the name that it had at first, which studies are made of."""


def metric_names(spec: ExperimentSpec) -> list[str]:
    """The metrics that every finished run of this spec has, and that may be aimed at."""
    logged = [metric for metric in OF_EVERY_RUN if metric is not TOTAL_LOSS]
    logged += [TOTAL_LOSS, *(metric for name, term in spec.objectives.terms.items() for metric in term.metrics(name))]
    if (split := spec.evaluation.during_training) is not None:
        logged += of_evaluation(spec.evaluation, split)
    return [PROCESS_HOURS, GPU_HOURS, *(metric.name for metric in logged if metric.better is not None)]


def curve(folder: RunFolder, metric: str) -> dict[int, float]:
    """The metric's value at every evaluation so far, by training step."""
    if not folder.metrics.exists():
        return {}
    return {row["step"]: row[metric] for row in read(folder.metrics) if isinstance(row.get(metric), int | float)}


def is_reported(sweep: SweepSpec) -> bool:
    """Whether evaluations of a trial's first run are told to Optuna as they come, which is what a pruner sees."""
    over_seeds = sweep.pruner is not None and sweep.pruner.name == "wilcoxon"
    return len(sweep.objective) == 1 and is_evaluated(sweep.objective[0].metric) and not over_seeds


class Reached(NamedTuple):
    """What a trial's finished runs have come to."""

    values: list[float]
    """Of each objective: the mean over the runs."""
    margins: dict[str, float]
    """Of each constraint, by metric: how far it is broken; at most 0 where it is kept."""


def reached(folders: Sequence[RunFolder], sweep: SweepSpec) -> Reached:
    """The objectives and constraints of a trial.

    Raises:
        KeyError: a run does not have one of the metrics.
    """
    values = [mean([value_of(folder, objective) for folder in folders]) for objective in sweep.objective]
    margins = {}
    for one in sweep.constraints:
        last = mean([last_figure(folder, one.metric) for folder in folders])
        margins[one.metric] = last - one.at_most if one.at_most is not None else (one.at_least or 0.0) - last
    return Reached(values, margins)


def value_of(folder: RunFolder, objective: ObjectiveSpec) -> float:
    """What a finished run reached: the best evaluation; of what is measured at every logged step, the last.

    Raises:
        KeyError: the run does not have this metric.
    """
    if not is_evaluated(objective.metric):
        return last_figure(folder, objective.metric)
    best = max if objective.direction == "maximize" else min
    return best(_values(folder, objective.metric))


def last_figure(folder: RunFolder, metric: str) -> float:
    """As `value_of`, for a constraint: the last evaluation."""
    return _values(folder, metric)[-1]


def _values(folder: RunFolder, metric: str) -> list[float]:
    if metric in (PROCESS_HOURS, GPU_HOURS):
        return [hours_of(folder)]
    values = list(curve(folder, metric).values())
    if not values:
        raise KeyError(metric)
    return values


def hours_of(folder: RunFolder) -> float:
    """The run's hours in training steps times processes."""
    plan = read_as(folder.plan, Plan)
    history = history_of(read(folder.metrics))
    return process_hours(history, global_batch_size=plan.global_batch_size, num_processes=plan.world_size)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_text(value: Any) -> str:
    """A parameter's value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
