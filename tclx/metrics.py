"""Every metric that a run writes down, once: terms of the loss and tasks bring theirs, the rest is here.

The console, the report, W&B's workspace, results, sweeps and `evaluation.best_metric` read this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations

from tclx.spec.evaluation import EVALUATION_TASKS, EvaluationSpec
from tclx.spec.objectives import TERMS
from tclx.tasks.metric import Metric

_SPREAD = "spread over the sphere: 0 where all are at one point, a collapse; about -4 where they are even."
CPU_USE, MEMORY_USE = "speed/cpu_percent", "memory/machine_percent"
GPU_USE, GPU_MEMORY_USE, GPU_POWER = "speed/gpu_percent", "memory/gpu_percent", "speed/gpu_watts"
MFU = "speed/mfu_percent"
TOTAL_LOSS = Metric(
    "loss/total",
    "Total loss",
    "nats",
    "lower",
    about="Weighted sum of the terms; a queue that fills raises it.",
)
OF_EVERY_RUN = (
    TOTAL_LOSS,
    Metric("learning_rate", "Learning rate"),
    Metric(
        "gradient_norm",
        "Gradient norm",
        about="Length of the whole gradient before clipping; spikes precede runs that diverge.",
    ),
    Metric("soft_labels/weight", "Soft-label weight", about="How much the momentum model's opinion counts in the labels."),
    Metric("batch/accuracy", "Accuracy on training batches", "%"),
    Metric(
        "temperature/shared",
        "Temperature",
        about="What similarities are divided by; the lower, the more the nearest negatives count. At its lower bound something "
        "is wrong.",
    ),
    Metric(
        "health/alignment",
        "Alignment: distance within pairs",
        about="Mean squared distance of an image and its caption: 0 equal, 2 at right angles.",
    ),
    Metric("health/uniformity_image", "Uniformity of images", about=f"Images {_SPREAD}"),
    Metric("health/uniformity_text", "Uniformity of texts", about=f"Texts {_SPREAD}"),
    Metric(
        "health/modality_gap",
        "Modality gap",
        about="Distance between the centres of images and of texts: 0 where they share a region, 2 where they live apart.",
    ),
    Metric("health/queue_fill", "Queue filled", about="Share of the queue that holds features already; 1 from then on."),
    Metric(
        "health/queue_age_gap",
        "Queue's age gap (temperatures)",
        about="How much less similar the queue's oldest negatives are than the batch's own: above 2 or so, telling "
        "old from new lowers the loss and teaches nothing.",
    ),
    Metric("data/bad_images", "Bad images so far"),
    Metric("speed/images_per_second", "Images a second", better="higher", about="Of all processes, in training steps alone."),
    Metric(
        "speed/share_waiting_for_data",
        "Share of the time waiting for data",
        about="Above a few percent more `data.num_workers`, smaller images or shards make training faster.",
    ),
    Metric(
        MFU,
        "Model FLOPs utilisation (%)",
        "%",
        "higher",
        about="Of the GPUs' peak by their data sheet, so much goes into the model's own operations.",
    ),
    Metric("memory/peak_gib", "Peak memory of the main process (GiB)", "GiB", "lower", about="On its GPU where it has one."),
    Metric(CPU_USE, "Use of the CPUs (%)", "%", about="Since the last row, of the cores that the run may use."),
    Metric(MEMORY_USE, "Memory in use on the machine (%)", "%", about="By all programs, of the main process's machine."),
    Metric(GPU_USE, "Use of the GPU (%)", "%", about="Share of the last second or less in which it computed anything."),
    Metric(GPU_MEMORY_USE, "Memory in use on the GPU (%)", "%", about="By all programs, of the main process's GPU."),
    Metric(GPU_POWER, "Power of the GPU (W)", "W"),
)


def of_terms() -> Iterator[Metric]:
    """What the terms of the loss bring, those of each one together."""
    for name, term in TERMS.items():
        yield from term.metrics(name)
    for first, second in combinations(TERMS, 2):
        title = f"Cosine of the gradients of {first.upper()} and {second.upper()}"
        about = "Near -1 one undoes what the other does, near 0 they do not meet."
        yield Metric(f"gradient_cosine/{first}_{second}", title, about=about)


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


def is_evaluated(name: str) -> bool:
    """Whether it is a metric of a task, by its whole name."""
    return name.partition("/")[0] in EVALUATION_TASKS


# Where one split is shown, names are shorter: retrieval, which was there first, goes without its name.


def without_split(name: str) -> str:
    """`retrieval/test/r_mean` -> `r_mean`, `classification/test/accuracy` -> `classification/accuracy`; others stay."""
    task, _, rest = name.partition("/")
    if not is_evaluated(name) or "/" not in rest:
        return name
    inner = rest.partition("/")[2]
    return inner if task == "retrieval" else f"{task}/{inner}"


def task_of(name: str) -> str:
    """Which task a metric is of, by its name `without_split`."""
    task = name.partition("/")[0]
    return task if task in EVALUATION_TASKS else "retrieval"


@cache
def of_one_split() -> Mapping[str, Metric]:
    """What evaluations give, by names `without_split`."""
    return {
        without_split(f"{task}/split/{metric.name}"): metric
        for task, kind in EVALUATION_TASKS.items()
        for metric in kind.metrics
    }


def chance_of(name: str, metrics: Mapping[str, float]) -> float | None:
    """What guessing reaches, or None where that is unknown.

    Args:
        name: of the metric `without_split`.
        metrics: of the same evaluation, by such names.
    """
    metric, task = of_one_split().get(name), task_of(name)
    if metric is None or metric.chance is None:
        return None
    own = {key.removeprefix(f"{task}/"): value for key, value in metrics.items() if task_of(key) == task}
    try:
        return metric.chance(own)
    except (KeyError, ValueError, ArithmeticError):  # it does not say how many there were, or no number that there can be
        return None


def columns() -> list[str]:
    """The metrics of a table of runs, by names `without_split`."""
    return [without_split(f"{task}/split/{name}") for task, kind in EVALUATION_TASKS.items() for name in kind.columns]


def main_metrics(most: int | None = None) -> list[str]:
    """The metrics that stand out, at most so many of each task, by names `without_split`."""
    return [without_split(f"{task}/split/{name}") for task, kind in EVALUATION_TASKS.items() for name in kind.main[:most]]
