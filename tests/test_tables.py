"""Whatever stands in a table has all that belongs to it: metrics, title, docs, schema, and a place in a real run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tclx.launch.backend import BACKENDS, Backend
from tclx.launch.clusters import CLUSTERS
from tclx.metrics import GPU_MEMORY_USE, GPU_POWER, GPU_USE, MFU, OF_EVERY_RUN, find_metric, is_evaluated, of_terms
from tclx.runs import Job
from tclx.spec.evaluation import EVALUATION_TASKS, EvaluationSpec
from tclx.spec.launch import LaunchSpec
from tclx.spec.objectives import TERMS, ObjectivesSpec
from tclx.spec.schema import experiment_schema
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import Term
from tclx.tasks.task import EvaluationTask
from tclx.track.jsonl import read

from .tasks.downstream import TASKS
from .tasks.grounding.data import write_refcoco
from .tasks.test_selection import WINOGROUND, written
from .train.toy import prepare, run, toy_spec

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", TERMS)
def test_a_term_has_what_belongs_to_it(name: str) -> None:
    term = TERMS[name]
    assert re.match(rf"{name}: .", term.title, re.IGNORECASE)
    assert Needs(0) != term.needs
    assert term.loss is not Term.loss
    assert f"| `{name}` |" in (DOCS / "objectives.md").read_text(encoding="utf-8")
    assert experiment_schema()["$defs"][term.__name__]["description"]
    assert ObjectivesSpec.model_fields[name].description
    assert f"loss/{name}" in {metric.name for metric in term.metrics(name)}


@pytest.mark.parametrize("name", EVALUATION_TASKS)
def test_a_task_has_what_belongs_to_it(name: str) -> None:
    task = EVALUATION_TASKS[name]
    names = [metric.name for metric in task.metrics]
    assert len(set(names)) == len(names)
    assert all(metric.title for metric in task.metrics)
    assert {*task.main, *task.columns} <= set(names)
    assert any(metric.better == "higher" and metric.chance is not None for metric in task.metrics)
    assert task.evaluate is not EvaluationTask.evaluate
    assert f"| `{name}` |" in (DOCS / "evaluation.md").read_text(encoding="utf-8")
    assert experiment_schema()["$defs"][task.__name__]["description"]
    assert EvaluationSpec.model_fields[name].description


def test_no_metric_comes_twice() -> None:
    names = [metric.name for metric in (*OF_EVERY_RUN, *of_terms())]
    assert len(set(names)) == len(names)


def test_a_run_with_everything_on_logs_what_the_tables_say_and_nothing_else(tmp_path: Path) -> None:
    terms = {f"objectives.{name}": {"pooled_grid": 2} if name == "lmi" else {} for name in TERMS}
    own = {"temperature": {"initial": 0.1}}
    scenes = {"source": "scenes", "attribute": "shape", "num_images": 4}
    regions = write_refcoco(tmp_path / "regions")
    paired = written(tmp_path, "winoground", [WINOGROUND])
    folder = run(
        prepare(
            tmp_path / "run",
            toy_spec(
                **{
                    **terms,
                    "objectives.imc": own,
                    "objectives.balance": {"name": "gradnorm"},
                    "training.steps": 3,
                    "evaluation.every_steps": 1,
                    "evaluation.classification": {"val": scenes, "test": scenes},
                    "evaluation.grounding": {"val": regions, "test": regions},
                    "evaluation.selection": {"val": paired, "test": paired},
                    "tracking": {"log_every_steps": 1, "term_gradient_norms_every_steps": 1, "term_gradients_every_steps": 1},
                },
            ),
        )
    )
    logged = {name for row in read(folder.metrics) for name in row} - {"step", "epoch"}
    trained_for = {name for name, kind in EVALUATION_TASKS.items() if kind.forms is not None and name != "retrieval"}
    assert trained_for == set(TASKS)  # whose runs are in tests/tasks
    evaluated = {
        f"{task}/val/{metric.name}"
        for task, kind in EVALUATION_TASKS.items()
        for metric in kind.metrics
        if task not in trained_for and "positives/" not in metric.name  # which test_positives.py gives a file
    }
    of_gpus = {GPU_USE, GPU_MEMORY_USE, GPU_POWER, MFU}
    of_others = {"batch/accuracy", *of_gpus, *(f"temperature/{name}" for name in ("cma", "lmi"))}
    assert logged == {metric.name for metric in (*OF_EVERY_RUN, *of_terms())} - of_others | evaluated
    assert all(find_metric(name) is not None for name in logged)
    assert {name for name in logged if is_evaluated(name)} == evaluated
    test = folder.read_evaluations()["test"].metrics
    assert test.keys() == {name.replace("/val/", "/test/") for name in evaluated}


def test_every_backend_of_a_spec_is_in_the_table_and_answers_all_that_is_asked() -> None:
    kinds = {get_args(kind.model_fields["backend"].annotation)[0] for kind in get_args(get_args(LaunchSpec)[0])}
    assert kinds == BACKENDS.keys() == set(get_args(get_type_hints(Job)["backend"]))
    asked = {part for part in (*vars(Backend), *Backend.__annotations__) if not part.startswith("_")}
    for name, backend in BACKENDS.items():
        assert asked <= set(dir(backend)), name
        assert name == "local" or CLUSTERS[name].title
        assert f"backend: {name}" in "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
