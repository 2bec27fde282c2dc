"""Promises of warnings: a collapse is named with its cure, once; what only looks like one at the beginning is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tclx.plan import DataFacts, make_plan
from tclx.runs import RunFolder
from tclx.tasks.pretrain.health import SHORTEST_STEPS, warnings
from tests.cli.test_cli import run_process
from tests.launch.toy import write_spec
from tests.train.toy import toy_spec

FACTS = DataFacts(num_train_rows=5000, num_train_images=5000, num_val_images=64, num_val_captions=320)
SPEC = toy_spec()
PLAN = make_plan(SPEC, FACTS)
HEALTHY = {"health/uniformity_image": -1.5, "health/uniformity_text": -1.5, "health/queue_age_gap": 0.2}


def rows(*, first: int = 1, last: int = 400, every: int = 10, **changes: float) -> list[dict[str, Any]]:
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    return [{"step": step, **HEALTHY, **changed} for step in range(first, last + 1, every)]


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [one.kind for one in warnings(found, SPEC, PLAN)]


def test_a_healthy_run_is_not_warned_of() -> None:
    assert kinds(rows()) == []
    assert kinds(rows(health__queue_age_gap=6.0)) == []  # as the quickstart's, whose images spread all the same


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"health__uniformity_image": -0.02}, "collapse_image", "all images lie almost at one point"),
        ({"health__uniformity_text": -0.05}, "collapse_text", "all texts lie almost at one point"),
        (
            {"health__queue_age_gap": 4.0, "health__uniformity_image": -0.3},
            "queue_age",
            "keys of the queue are told from the batch's by their age",
        ),
    ],
)
def test_what_held_for_long_is_named_with_what_helps(changes: dict[str, float], kind: str, word: str) -> None:
    (found,) = warnings(rows(**changes), SPEC, PLAN)
    assert found.kind == kind
    assert word in found.message
    assert "What helps: " in found.message
    assert "model.queue_size" in found.message


def test_itm_that_knows_no_more_than_how_many_pairs_match_is_named() -> None:
    (found,) = warnings(rows(loss__itm=0.6365), SPEC, PLAN)
    assert found.kind == "itm_undecided"
    assert "0.6365, the entropy of its labels, for 150 steps" in found.message
    assert kinds(rows(loss__itm=0.60)) == []  # it has begun to tell
    assert kinds(rows(loss__itm=0.69)) == []  # worse than that is something else
    assert kinds(rows(last=290, loss__itm=0.6365)) == []  # every run begins so
    long = make_plan(toy_spec(**{"training.steps": 3000}), FACTS)
    assert [*warnings(rows(last=1900, loss__itm=0.6365), SPEC, long)] == []
    assert [one.kind for one in warnings(rows(last=2001, loss__itm=0.6365), SPEC, long)] == ["itm_undecided"]
    without = toy_spec(**{"objectives.itm": None})
    assert [*warnings(rows(loss__itm=0.6365), without, PLAN)] == []


def test_what_passed_or_has_just_begun_is_not() -> None:
    early, late = rows(last=200, health__uniformity_image=0.0), rows(first=201)
    assert kinds([*early, *late]) == []
    assert kinds([*rows(last=300), *rows(first=301, health__uniformity_image=0.0)]) == []
    assert kinds(rows(last=SHORTEST_STEPS - 10, health__uniformity_image=0.0)) == []


def test_within_the_warm_up_nothing_is_said() -> None:
    plan = make_plan(toy_spec(**{"optim.schedule": {"name": "cosine", "warmup_steps": 300}, "training.steps": 2000}), FACTS)
    assert plan.warmup_steps == 300
    assert not list(warnings(rows(last=590, health__uniformity_image=0.0), SPEC, plan))
    assert list(warnings(rows(last=610, health__uniformity_image=0.0), SPEC, plan))


def test_two_rows_are_no_evidence() -> None:
    assert kinds(rows(every=400, last=401, health__uniformity_image=0.0)) == []


def test_a_term_without_a_queue_is_not_told_to_shorten_it() -> None:
    spec = toy_spec(**{"model.queue_size": 0})
    (found,) = warnings(rows(health__uniformity_image=0.0), spec, PLAN)
    assert "queue" not in found.message


def test_a_collapse_is_provoked_and_named_everywhere(tmp_path: Path) -> None:
    """CMA alone with a queue of eight batches at a learning rate at which its keys drift; through the command line."""
    scenes = {"source": "scenes", "num_images": 600, "picture_size": 32}
    spec = write_spec(
        tmp_path,
        "collapse",
        model={
            "image_encoder": {
                "name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "num_heads": 4,
                "stem": "conv",
            },
            "text_encoder": {
                "sizes": {"width": 64, "num_heads": 4, "intermediate_size": 256, "max_positions": 32, "initializer_range": 0.1},
                "num_layers": 2,
            },
            "embed_dim": 64, "momentum": 0.98, "queue_size": 256,
        },
        objectives={"soft_labels": None, "cma": {}},
        data={
            "train": {**scenes, "split": "train"}, "val": {**scenes, "split": "val", "num_images": 16}, "num_workers": 0,
            "augmentation": {
                "crop_scale": [0.9, 1.0], "color_jitter": 0, "grayscale": 0, "blur": 0, "flip": 0, "random_ops": 0
            },
        },
        optim={"learning_rate": 3e-3, "schedule": {"name": "cosine", "warmup_steps": 5}},
        training={"steps": 170, "batch_size_per_gpu": 32, "device": "cpu", "checkpoints": {"every_steps": 170}},
        evaluation={"retrieval": {"top_k": 4}, "during_training": None, "at_end": "val"},
        tracking={"log_every_steps": 15},
    )  # fmt: skip
    ended = run_process("run", spec, "--runs-dir", tmp_path / "runs")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("warning: keys of the queue are told from the batch's by their age") == 1
    (path,) = (tmp_path / "runs").glob("collapse-*")
    events = [event for event in RunFolder(path).read_events() if event["event"] == "warning"]
    assert "queue_age" in {event["kind"] for event in events}
    assert all(event["step"] > SHORTEST_STEPS for event in events)
    said = run_process("status", path, "--runs-dir", tmp_path / "runs")
    assert "keys of the queue are told" in said.stdout + said.stderr
