"""Promises of outcomes: every metric follows from them, they come back as they were written, and damage is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tclx.files import Unreadable
from tclx.report.bootstrap import estimate
from tclx.runs import RunFolder
from tclx.spec.evaluation import EVALUATION_TASKS
from tclx.tasks.metric import Mean
from tclx.tasks.outcomes import Outcome, Queries, fingerprint, read_outcomes, write_outcomes
from tclx.use.saved import evaluate_saved
from tests.tasks.downstream import TASKS as DOWNSTREAM
from tests.tasks.downstream import downstream_spec
from tests.train.toy import prepare, run, toy_spec

SCENES = {"source": "scenes", "attribute": "shape", "num_images": 12}
PAIRS = {"source": "scenes", "num_items": 9}
REGIONS = {"source": "scenes", "num_expressions": 8}
TASKS = {
    "evaluation.classification": {"val": SCENES, "test": SCENES},
    "evaluation.grounding": {"val": REGIONS, "test": REGIONS},
    "evaluation.selection": {"val": PAIRS, "test": PAIRS},
}
OF_ONE_RUN = [name for name in EVALUATION_TASKS if name not in DOWNSTREAM]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(prepare(tmp_path_factory.mktemp("outcomes") / "run", toy_spec(**TASKS)))


@pytest.fixture(scope="module")
def trained_for(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """A run of each downstream task."""
    return {task: run(prepare(tmp_path_factory.mktemp(task) / "run", downstream_spec(task))) for task in DOWNSTREAM}


@pytest.mark.parametrize("task", EVALUATION_TASKS)
def test_every_metric_of_every_task_follows_from_what_the_queries_reached(
    task: str, trained: RunFolder, trained_for: dict[str, RunFolder]
) -> None:
    folder = trained_for.get(task, trained)
    metrics = folder.read_evaluations()["test"].metrics
    outcomes = read_outcomes(folder.outcomes(task, "test"))
    known = [metric for metric in EVALUATION_TASKS[task].metrics if metric.better is not None]
    aims = [metric for metric in known if "positives/" not in metric.name]  # of more positives see test_positives.py
    found = estimate(outcomes, {metric.name: metric.statistic or Mean(metric.name) for metric in aims}, num_resamples=2)
    assert found.keys() == {metric.name for metric in aims}
    for name, one in found.items():
        assert one.value == pytest.approx(metrics[f"{task}/test/{name}"], abs=1e-4), name


def test_captions_of_an_image_are_one_cluster_and_both_directions_number_images_alike(trained: RunFolder) -> None:
    outcomes = read_outcomes(trained.outcomes("retrieval", "test"))
    captions, images = (list(outcomes[name].queries.clusters) for name in ("text_to_image", "image_to_text"))
    assert images == sorted(set(captions)) == list(range(6))
    assert len(captions) == trained.read_evaluations()["test"].metrics["retrieval/test/num_captions"]
    assert outcomes["dual/text_to_image"].queries == outcomes["text_to_image"].queries


def test_evaluating_a_run_writes_the_outcomes_that_an_earlier_version_left_out(trained: RunFolder) -> None:
    path = trained.outcomes("retrieval", "test")
    written = path.read_text()
    path.unlink()
    evaluate_saved(trained.path, split="test")
    again, before = json.loads(path.read_text()), json.loads(written)
    assert (again["outcomes"], again["queries"]) == (before["outcomes"], before["queries"])


def test_queries_of_another_split_have_another_fingerprint(trained: RunFolder) -> None:
    evaluate_saved(trained.path, split="val")
    for task in OF_ONE_RUN:
        asked = [
            {one.queries.fingerprint for one in read_outcomes(trained.outcomes(task, split)).values()}
            for split in ("val", "test")
        ]
        assert not asked[0] & asked[1]


def test_a_fingerprint_tells_order_and_type_apart() -> None:
    said = [("a", "b"), ("b", "a"), ("ab",), ("a", ["b"]), (1,), ("1",), ("\ud800",)]
    assert len({fingerprint(*one) for one in said}) == len(said)
    assert fingerprint(["a"], 1) == fingerprint(["a"], 1)


def sample() -> dict[str, Outcome]:
    queries = Queries("abc", [0, 0, 1])
    return {"x": Outcome(queries, [0, 3, 1]), "y": Outcome(queries, [0.5, 1.0, 0.0])}


def test_outcomes_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_outcomes(tmp_path / "outcomes" / "x-test.json", sample(), origin={"step": 3})
    assert read_outcomes(tmp_path / "outcomes" / "x-test.json") == sample()
    assert [path.name for path in tmp_path.rglob("*.*")] == ["x-test.json"]  # no temporary file is left


DAMAGES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "queries that are not there": (("outcomes", "x", "queries"), "abd", "the queries of x are not in it"),
    "an outcome less": (("outcomes", "x", "values"), [0, 3], "x has 2 outcomes of 3 queries"),
    "a rank below 0": (("outcomes", "x", "values"), [0, 3, -1], "a number of x"),
    "a number that is none": (("outcomes", "y", "values"), [0, float("nan"), 1], "a number of y"),
    "a number without bounds": (("queries", "abc"), [0, 0, 10**30], "a number of x"),
    "words": (("outcomes", "y", "values"), ["a", 1, 2], r"outcomes\.y\.values"),
    "nothing": (("outcomes",), None, "outcomes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_with_the_file_and_what_is_wrong(damage: str, tmp_path: Path) -> None:
    (*place, key), value, message = DAMAGES[damage]
    path = tmp_path / "x-test.json"
    write_outcomes(path, sample(), origin={})
    tree = branch = json.loads(path.read_text())
    for step in place:
        branch = branch[step]
    branch[key] = value
    path.write_text(json.dumps(tree))
    with pytest.raises(Unreadable, match=rf"x-test\.json cannot be read: .*{message}"):
        read_outcomes(path)
