"""Toy runs of downstream tasks on generated scenes."""

from __future__ import annotations

from typing import Any

from tclx.spec.experiment import ExperimentSpec
from tests.train.toy import toy_spec

TASKS = ("entailment", "nlvr", "vqa")


def scenes(form: str, split: str, num_images: int) -> dict[str, Any]:
    return {"source": "scenes", "split": split, "num_images": num_images, "form": form}


def downstream_spec(task: str, /, **changes: Any) -> ExperimentSpec:
    """A run of a task that takes a second, evaluated on what it is trained for."""
    form = "captions" if task == "text_assignment" else task
    evaluation = {} if task == "text_assignment" else {task: {}, "during_training": "val", "every_steps": 6, "at_end": "test"}
    return toy_spec(
        **{
            "objectives": {},
            "task": {"name": task},
            "data.train": scenes(form, "train", 32),
            "data.val": scenes(form, "val", 6),
            "data.test": scenes(form, "test", 7),
            "evaluation": evaluation,
            **changes,
        }
    )
