"""What can a sweep aim at? The numbers that a run will have, known before it starts, and read when it has ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tclx.plan import Plan
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.sweep import ObjectiveSpec
from tclx.track.jsonl import Row, read

GPU_HOURS = "cost/gpu_hours"
"""Time in training steps times processes, whatever the processor; evaluations and waiting are left out."""

_TERMS = ("cma", "imc", "lmi", "itm", "mlm")


def metric_names(spec: ExperimentSpec) -> list[str]:
    """The metrics that every finished run of this spec has, and that may be aimed at."""
    terms = [term for term in _TERMS if getattr(spec.objectives, term) is not None]
    names = [GPU_HOURS, "speed/images_per_second", "memory/peak_gib", "loss/total", *(f"loss/{term}" for term in terms)]
    evaluation = spec.evaluation
    if evaluation.during_training is not None and evaluation.retrieval is not None:
        names += [f"retrieval/{evaluation.during_training}/{name}" for name in _retrieval_names()]
    return names


def _retrieval_names() -> list[str]:
    directions = [
        f"{direction}/{metric}"
        for direction in ("text_to_image", "image_to_text")
        for metric in ("r1", "r5", "r10", "median_rank")
    ]
    return [f"{pathway}{name}" for pathway in ("", "dual/") for name in (*directions, "r_mean")]


def curve(folder: RunFolder, metric: str) -> dict[int, float]:
    """The metric's value at every evaluation so far, by training step."""
    if not folder.metrics.exists():
        return {}
    return {row["step"]: row[metric] for row in read(folder.metrics) if isinstance(row.get(metric), int | float)}


def is_evaluated(metric: str) -> bool:
    """Whether it is measured at evaluations, and so may be pruned by."""
    return metric.startswith("retrieval/")


def figure(folder: RunFolder, objective: ObjectiveSpec) -> float:
    """What a finished run reached: the best evaluation; of what is measured at every logged step, the last.

    Raises:
        KeyError: the run does not have this metric.
    """
    if not is_evaluated(objective.metric):
        return last_figure(folder, objective.metric)
    best = max if objective.direction == "maximize" else min
    return best(_values(folder, objective.metric))


def last_figure(folder: RunFolder, metric: str) -> float:
    """As `figure`, for a constraint: the last evaluation."""
    return _values(folder, metric)[-1]


def _values(folder: RunFolder, metric: str) -> list[float]:
    if metric == GPU_HOURS:
        return [gpu_hours(read(folder.metrics), Plan.from_json(folder.read_json(folder.plan)))]
    values = list(curve(folder, metric).values())
    if not values:
        raise KeyError(metric)
    return values


def gpu_hours(rows: Iterable[Row], plan: Plan) -> float:
    """Hours in training steps times processes, from the speeds that the rows carry."""
    seconds, before = 0.0, 0
    for row in rows:
        if speed := row.get("speed/images_per_second"):
            seconds += (row["step"] - before) * plan.global_batch_size / speed
            before = row["step"]
    return seconds * plan.world_size / 3600


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_text(value: Any) -> str:
    """A parameter's value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
