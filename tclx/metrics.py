"""Every metric that a run writes down, once: terms of the loss and tasks bring theirs, the rest is here.

The console, the report, W&B's workspace, results, sweeps and `evaluation.best_metric` read this table.
"""

from __future__ import annotations

from collections.abc import Iterator

from tclx.spec.evaluation import EVALUATION_TASKS, EvaluationSpec
from tclx.spec.objectives import TERMS
from tclx.tasks.metric import Metric

TOTAL_LOSS = Metric("loss/total", "Total loss", "nats", "lower")
OF_EVERY_RUN = (
    TOTAL_LOSS,
    Metric("learning_rate", "Learning rate"),
    Metric("gradient_norm", "Gradient norm"),
    Metric("soft_labels/weight", "Soft-label weight"),
    Metric("temperature/shared", "Temperature"),
    Metric("health/alignment", "Alignment: distance within pairs"),
    Metric("health/uniformity_image", "Uniformity of images"),
    Metric("health/uniformity_text", "Uniformity of texts"),
    Metric("health/modality_gap", "Modality gap"),
    Metric("health/queue_fill", "Queue filled"),
    Metric("data/bad_images", "Bad images so far"),
    Metric("speed/images_per_second", "Images a second", better="higher"),
    Metric("speed/share_waiting_for_data", "Share of the time waiting for data"),
    Metric("memory/peak_gib", "Peak memory of the main process (GiB)", "GiB", "lower"),
)


def of_terms() -> Iterator[Metric]:
    """What the terms of the loss bring, those of each one together."""
    for name, term in TERMS.items():
        yield from term.metrics(name)


def of_evaluation(evaluation: EvaluationSpec, split: str) -> Iterator[Metric]:
    """What an evaluation on a split gives, by its whole name."""
    for name, task in evaluation.tasks.items():
        yield from (metric.under(f"{name}/{split}") for metric in task.metrics)


def find_metric(name: str) -> Metric | None:
    """A metric by its whole name in metrics.jsonl or in an evaluation; None for one that this version does not know."""
    task, _, rest = name.partition("/")
    if task in EVALUATION_TASKS:
        split, _, inner = rest.partition("/")
        return next((one.under(f"{task}/{split}") for one in EVALUATION_TASKS[task].metrics if one.name == inner), None)
    return next((metric for metric in (*OF_EVERY_RUN, *of_terms()) if metric.name == name), None)
