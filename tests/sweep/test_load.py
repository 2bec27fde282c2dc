# ruff: noqa: E501  (a table of mistakes, one a line)
"""What is wrong with a sweep is said before trial 1, at its line, with what would be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError
from tclx.spec.schema import sweep_schema
from tclx.spec.yaml import read_yaml
from tclx.sweep.load import load_sweep
from tclx.sweep.planning import plan_of
from tests.launch.toy import SPEC
from tests.sweep.toy import load, write_sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"space": {"objectives.icm.weight": {"uniform": [0, 1]}}}, "space.objectives.icm.weight", "known here: temperature, soft_labels, cma, imc"),
        ({"space": {"learning_rate": {"uniform": [0, 1]}}}, "space.learning_rate", "did you mean `optim.learning_rate`"),
        ({"space": {"optim.learning_rate": {"uniform": [1.0, 0.1]}}}, "space.optim.learning_rate.uniform", "first limit must be below"),
        ({"space": {"optim.learning_rate": {"uniform": [-1.0, 0.1]}}}, "space.optim.learning_rate", "greater than 0"),
        ({"space": {"optim.learning_rate": {"unifrom": [0.1, 1.0]}}}, "space.optim.learning_rate.unifrom", "did you mean `uniform`"),
        ({"space": {"optim.learning_rate": {}}}, "space.optim.learning_rate", "exactly one of"),
        ({"space": {"model.queue_size": {"uniform": [16.0, 64.0]}}}, "space.model.queue_size", "whole number"),
        ({"space": {"model.embed_dim": {"choices": [4]}}}, "space.model.embed_dim.choices", "at least 2"),
        ({"space": {"model.queue_size": {"choices": [16, 64]}}}, "space.model.queue_size", "own value 32 is not among the choices"),
        ({"space": {"optim.learning_rate": {"uniform": [0.1, 0.2]}}}, "space.optim.learning_rate", "own value 0.001 is outside [0.1, 0.2]"),
        ({"space": {"training.batch_size_per_gpu": {"integer": [2, 4096]}}}, "space.training.batch_size_per_gpu", "with 4096"),
        ({"space": {"launch.num_processes": {"integer": [1, 2]}}}, "space.launch.num_processes", "leave it out"),
        ({"space": {"objectives.imc.temperature.initial": {"uniform": [0.01, 0.1]}}}, "space.objectives.imc.temperature.initial",
         "`objectives.imc.temperature` is off"),
        ({"space": None}, "", "a sweep needs a `space`"),
        ({"objective": {"metric": "retrieval/val/rmean", "direction": "maximize"}}, "objective[0].metric", "did you mean `retrieval/val/r_mean`"),
        ({"objective": {"metric": "retrieval/test/r_mean", "direction": "maximize"}}, "objective[0].metric", "no run of this experiment has"),
        ({"objective": {"metric": "loss/total", "direction": "lower"}}, "objective[0].direction", "maximize, minimize"),
        ({"objective": {"metric": "loss/total", "direction": "minimize"}, "pruner": {"name": "median"}}, "pruner", "at the end only"),
        ({"sampler": {"name": "tpee"}}, "sampler.name", "did you mean `tpe`"),
        ({"pruner": {"name": "wilcoxon"}}, "pruner", "at least two `seeds`"),
        ({"pruner": {"name": "hyperband"}, "objective": [{"metric": "loss/total", "direction": way} for way in ("minimize", "maximize")]}, "pruner", "single objective"),
        ({"storage": "postgresql://me:secret@db/sweeps"}, "storage", "a password never stands in a spec"),
        ({"storage": "mysql://db/sweeps"}, "storage", "postgresql://USER@HOST/DATABASE"),
        ({"num_trials": 0}, "num_trials", "at least 1"),
        ({"trials": 3}, "trials", "unknown key"),
        ({"constraints": [{"metric": "loss/total"}]}, "constraints[0]", "exactly one of `at_most` and `at_least`"),
        ({"constraints": [{"metric": "memory", "at_most": 1.0}]}, "constraints[0].metric", "no run of this experiment has `memory`"),
        ({"variant": "nope"}, "variant", "has no variant `nope`"),
        ({"changes": {"optim.learning_rat": 1.0}}, "changes.optim.learning_rat", "did you mean `optim.learning_rate`"),
        ({"changes": {"optim.learning_rate": -1.0}}, "changes.optim.learning_rate", "greater than 0"),
        ({"points": [{"optim.learning_rates": 0.1}]}, "points[0].optim.learning_rates", "did you mean `optim.learning_rate`"),
        ({"points": [{"optim.learning_rate": 7.0}]}, "points[0]", "outside"),
        ({"simplex": [{"keys": ["objectives.cma.weight", "objectives.imc.weight"]}]}, "simplex", "own weights sum to 0.666667, not to 1"),
        ({"simplex": [{"keys": ["optim.learning_rate", "objectives.imc.weight"], "total": 0.334333}]}, "simplex", "drawn twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_and_what_would_be_right(
    tmp_path: Path, changes: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **changes)
    assert words in str(caught.value)
    assert key in [problem.key for problem in caught.value.problems]
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_stands_at_its_line(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    path.write_text(path.read_text().replace("optim.learning_rate", "optim.learning_rat"))
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "learning_rat:" in text)
    with pytest.raises(InputError) as caught:
        load_sweep(path, runs_dir=tmp_path / "runs")
    where = caught.value.problems[0].where
    assert where is not None
    assert (where.path, where.line) == (path, line)


def test_what_makes_the_figures_of_trials_doubtful_is_said(tmp_path: Path) -> None:
    model = {**SPEC["model"], "queue_size": 320}
    path = write_sweep(tmp_path, experiment={"model": model})
    (warning,) = load_sweep(path, runs_dir=tmp_path / "runs").warnings
    assert warning.startswith("model.queue_size: the queue of 320 holds more than an epoch")
    printed = CliRunner().invoke(app, ["sweep", "plan", str(path), "--runs-dir", str(tmp_path / "runs"), "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["warnings"] == [warning]
    assert f"warning: {warning}" in printed.stderr


def test_trials_are_one_group_on_wandb(tmp_path: Path) -> None:
    named = {"log_every_steps": 1, "wandb": {"project": "p", "mode": "offline"}}
    sweep = load(tmp_path, experiment={"tracking": named})
    (run,) = sweep.planned({"optim.learning_rate": 1e-3})
    assert run.spec.tracking.wandb is not None
    assert run.spec.tracking.wandb.group == "toy-sweep"
    plain = load(tmp_path).planned({"optim.learning_rate": 1e-3})[0]
    assert plain.plan.run_id == run.plan.run_id


def test_an_experiment_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    path.write_text(path.read_text().replace("toy.yaml", "tou.yaml"))
    with pytest.raises(InputError, match=r"tou\.yaml \(did you mean .*toy\.yaml"):
        load_sweep(path, runs_dir=tmp_path / "runs")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    ranges = {"optim.learning_rat": {"uniform": [0.1, 1.0]}, "model.queue": {"integer": [1, 2]}}
    with pytest.raises(InputError) as caught:
        load(tmp_path, space=ranges, objective={"metric": "nothing", "direction": "maximize"})
    assert {problem.key for problem in caught.value.problems} == {
        "space.optim.learning_rat",
        "space.model.queue",
        "objective[0].metric",
    }


def test_keys_of_the_sweep_are_set_from_the_command_line(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path), ["num_trials=7", "sampler={name: random}"], runs_dir=tmp_path / "runs")
    assert (sweep.spec.num_trials, sweep.spec.sampler.name) == (7, "random")
    with pytest.raises(InputError, match="did you mean `num_trials`"):
        load_sweep(write_sweep(tmp_path), ["num_trial=7"], runs_dir=tmp_path / "runs")


def test_a_loss_that_the_sweep_switches_off_is_no_objective(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing where the sweep switches that term off"):
        load(
            tmp_path,
            space={"objectives.imc": {"on_or_off": True}},
            objective={"metric": "loss/imc", "direction": "minimize"},
        )


def test_editors_accept_what_is_shipped_and_mark_what_is_unknown(tmp_path: Path) -> None:
    schema = jsonschema.Draft202012Validator(sweep_schema())
    for path in (ROOT / "sweeps").glob("*.yaml"):
        assert not list(schema.iter_errors(read_yaml(path).plain())), path
    wrong = {**read_yaml(write_sweep(tmp_path)).plain(), "num_trails": 3}
    assert list(schema.iter_errors(wrong))


def test_the_shipped_schema_is_the_present_one() -> None:
    shipped = json.loads((ROOT / "sweeps/schema.json").read_text())
    assert shipped == sweep_schema(), "tclx schema sweep -o sweeps/schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_can_be_planned(path: Path, tmp_path: Path) -> None:
    plan = plan_of(load_sweep(path, runs_dir=tmp_path))
    assert plan["trials"] > 0
    assert plan["space"]


def test_a_rule_between_keys_stands_at_the_files_line(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, pruner={"name": "wilcoxon"})
    with pytest.raises(InputError) as caught:
        load_sweep(path, runs_dir=tmp_path)
    line = next(number for number, text in enumerate(path.read_text().splitlines(), start=1) if "pruner" in text)
    assert str(caught.value).startswith(f"{path}:{line}:")


def test_an_experiment_is_no_sweep_and_is_told_so_in_one_line(tmp_path: Path) -> None:
    path = write_sweep(tmp_path).with_name("toy.yaml")
    with pytest.raises(InputError) as caught:
        load_sweep(path, runs_dir=tmp_path)
    assert str(caught.value) == f"{path}:1:1: this is an experiment, not a sweep (tclx run {path} trains it)"


def test_a_trial_is_the_experiment_where_nothing_but_the_seed_differs(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    (same,), (other,) = sweep.planned({"optim.learning_rate": 1e-3}), sweep.planned({"optim.learning_rate": 2e-3})
    assert sweep.is_experiment(same.spec.model_copy(update={"seed": 9}))
    assert not sweep.is_experiment(other.spec)
    assert not replace(sweep, experiment=None).is_experiment(same.spec)
