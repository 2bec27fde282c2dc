"""Promises of the table of metrics."""

from __future__ import annotations

from itertools import combinations

import pytest

from tclx.metrics import (
    OF_EVERY_RUN,
    columns,
    find_metric,
    is_evaluated,
    main_metrics,
    of_one_split,
    of_terms,
    task_of,
    without_split,
)
from tclx.spec.evaluation import EVALUATION_TASKS
from tclx.spec.objectives import TERMS

COUNTS = {"num_images": 4.0, "num_captions": 8.0}


def by_chance(name: str) -> float:
    metric = find_metric(f"retrieval/test/{name}")
    assert metric is not None
    assert metric.chance is not None
    return metric.chance(COUNTS)


@pytest.mark.parametrize("k", [1, 5])
def test_the_chance_of_a_recall_is_its_share_of_all_shortlists(k: int) -> None:
    """Four images with two captions each: every choice of k keys is as likely as the next."""
    images = list(combinations(range(4), min(k, 4)))
    captions = list(combinations(range(8), k))
    assert by_chance(f"text_to_image/r{k}") == pytest.approx(100 * sum(0 in chosen for chosen in images) / len(images))
    right = sum(0 in chosen or 1 in chosen for chosen in captions)
    assert by_chance(f"image_to_text/r{k}") == pytest.approx(100 * right / len(captions))
    assert by_chance(f"dual/text_to_image/r{k}") == by_chance(f"text_to_image/r{k}")


def test_the_chance_of_the_mean_recall_is_the_mean() -> None:
    recalls = [by_chance(f"{direction}/r{k}") for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert by_chance("r_mean") == pytest.approx(sum(recalls) / 6)
    assert by_chance("image_to_text/r10") == 100.0


def test_names_without_a_split_keep_their_task_unless_it_is_retrieval() -> None:
    assert without_split("retrieval/test/dual/r_mean") == "dual/r_mean"
    assert without_split("classification/val/accuracy") == "classification/accuracy"
    assert without_split("loss/cma") == "loss/cma"
    assert without_split("r_mean") == "r_mean"
    assert task_of("r_mean") == task_of("dual/r_mean") == "retrieval"
    assert task_of("classification/accuracy") == "classification"


def test_what_is_shown_is_known() -> None:
    known = of_one_split()
    assert set(columns()) | set(main_metrics()) <= known.keys()
    assert main_metrics(1) == ["r_mean", *(f"{task}/accuracy" for task in EVALUATION_TASKS if task != "retrieval")]
    assert known["text_to_image/median_rank"].better == "lower"


def test_what_has_a_direction_or_is_of_the_training_alone_is_explained_in_a_sentence() -> None:
    plain = {"learning_rate", "batch/accuracy", "data/bad_images", "speed/gpu_watts", "memory/gpu_percent"}
    every = [*OF_EVERY_RUN, *of_terms(), *of_one_split().values()]
    wanted = [
        one for one in every if one.better or one.name.startswith(("loss/", "health/", "mi_bound/", "gradient_", "speed/"))
    ]
    parts = {f"loss/{name}_{part}" for name, term in TERMS.items() for part in term.parts}  # their titles say it
    for metric in wanted:
        assert metric.name in plain | parts or metric.about.endswith("."), metric.name
        assert len(metric.about) < 160


def test_a_metric_is_found_by_its_whole_name_alone() -> None:
    assert find_metric("loss/sigmoid") is not None
    assert find_metric("loss/unknown") is None
    assert find_metric("retrieval/test/unknown") is None
    assert [is_evaluated(name) for name in ("retrieval/val/r_mean", "loss/total")] == [True, False]
    for task, kind in EVALUATION_TASKS.items():
        for metric in kind.metrics:
            found = find_metric(f"{task}/val/{metric.name}")
            assert found is not None
            assert (found.name, found.title) == (f"{task}/val/{metric.name}", metric.title)
