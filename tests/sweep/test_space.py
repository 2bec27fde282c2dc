"""Parameters of a sweep: drawn, put into the experiment, and found again in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from tclx.sweep import space
from tclx.sweep.storage import quieten
from tests.sweep.toy import load

SIMPLEX = [{"keys": ["objectives.cma.weight", "objectives.imc.weight", "objectives.lmi.weight"], "total": 1.0}]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quieten()


def _drawn(sweep: Any, number: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.draw(study.ask(), sweep.spec) for _ in range(number)]


def test_every_kind_stays_in_its_range(tmp_path: Path) -> None:
    ranges = {
        "model.momentum": {"uniform": [0.9, 0.99]},
        "optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
        "model.queue_size": {"integer": [16, 64]},
        "evaluation.retrieval.top_k": {"log_integer": [1, 8]},
        "optim.schedule.name": {"choices": ["cosine", "constant"]},
    }
    sweep = load(tmp_path, space=ranges, experiment={"optim": {"learning_rate": 1e-3}, "model": _model(momentum=0.95)})
    drawn = _drawn(sweep)
    for key, (low, high) in {"model.momentum": (0.9, 0.99), "optim.learning_rate": (1e-5, 1e-2)}.items():
        values = [one[key] for one in drawn]
        assert all(low <= value <= high for value in values)
        assert len(set(values)) == len(values)
    logs = [math.log10(one["optim.learning_rate"]) for one in drawn]
    assert sum(log < -3.5 for log in logs) > len(logs) / 4  # uniform numbers would almost never be so small
    assert all(isinstance(one["model.queue_size"], int) and 16 <= one["model.queue_size"] <= 64 for one in drawn)
    assert {one["optim.schedule.name"] for one in drawn} == {"cosine", "constant"}


def _model(**changes: Any) -> dict[str, Any]:
    from tests.launch.toy import SPEC

    return {**SPEC["model"], **changes}


def test_a_key_below_a_switch_counts_only_while_it_is_on(tmp_path: Path) -> None:
    ranges = {"objectives.imc.weight": {"log_uniform": [0.1, 3.0]}, "objectives.imc": {"on_or_off": True}}
    sweep = load(tmp_path, space=ranges)
    drawn = _drawn(sweep)
    assert {one["objectives.imc"] for one in drawn} == {"on", "off"}
    assert all(("objectives.imc.weight" in one) == (one["objectives.imc"] == "on") for one in drawn)
    for one in drawn:
        (run,) = sweep.planned(one)
        imc = run.spec.objectives.imc
        assert (imc is None) == (one["objectives.imc"] == "off")
        assert imc is None or imc.weight == one["objectives.imc.weight"]


def test_a_section_that_is_off_in_the_experiment_may_be_switched_on(tmp_path: Path) -> None:
    ranges = {"objectives.imc": {"on_or_off": True}, "objectives.imc.weight": {"uniform": [0.5, 1.0]}}
    sweep = load(tmp_path, space=ranges, experiment={"objectives": {"cma": {}, "imc": None, "lmi": {"pooled_grid": 1}}})
    assert space.parameters_at(sweep.base_tree, sweep.spec) == {"objectives.imc": "off"}
    (run,) = sweep.planned({"objectives.imc": "on", "objectives.imc.weight": 0.75})
    assert run.spec.objectives.imc is not None
    assert run.spec.objectives.imc.weight == 0.75


def test_the_weights_of_a_simplex_share_its_total_and_reach_all_of_it(tmp_path: Path) -> None:
    sweep = load(tmp_path, space=None, simplex=SIMPLEX)
    shares = [list(space.values_of(one, sweep.spec).values()) for one in _drawn(sweep, 300)]
    assert all(math.isclose(sum(one), 1.0) for one in shares)
    # Uniform on the simplex: each weight has mean 1/3, and P(weight > 1/2) = 1/4.
    for column in zip(*shares, strict=True):
        assert sum(column) / len(column) == pytest.approx(1 / 3, abs=0.05)
        assert sum(value > 0.5 for value in column) / len(column) == pytest.approx(0.25, abs=0.08)


def test_a_weight_whose_section_is_off_takes_no_share(tmp_path: Path) -> None:
    sweep = load(tmp_path, space={"objectives.lmi": {"on_or_off": True}}, simplex=SIMPLEX)
    for one in _drawn(sweep):
        values = space.values_of(one, sweep.spec)
        weights = {key: value for key, value in values.items() if key.endswith(".weight")}
        assert sum(weights.values()) == pytest.approx(1.0)
        assert ("objectives.lmi.weight" in weights) == (one["objectives.lmi"] == "on")


@pytest.mark.parametrize("off", [False, True])
def test_the_experiment_is_found_again_in_the_space(tmp_path: Path, off: bool) -> None:
    objectives = {
        "cma": {"weight": 0.5},
        "imc": None if off else {"weight": 0.25},
        "lmi": {"weight": 0.25, "pooled_grid": 1},
    }
    ranges = {"objectives.imc": {"on_or_off": True}, "model.queue_size": {"choices": [16, 32]}}
    total = 0.75 if off else 1.0
    sweep = load(tmp_path, space=ranges, simplex=[{**SIMPLEX[0], "total": total}], experiment={"objectives": objectives})
    values = space.values_of(space.parameters_at(sweep.base_tree, sweep.spec), sweep.spec)
    again = space.with_values(sweep.base_tree, values)
    for key in ("cma", "lmi") if off else ("cma", "imc", "lmi"):
        assert again["objectives"][key]["weight"] == pytest.approx(sweep.base_tree["objectives"][key]["weight"])
    assert (again["objectives"]["imc"] is None) == off
    assert again["model"] == sweep.base_tree["model"]


def test_a_grid_has_both_limits_and_no_number_twice(tmp_path: Path) -> None:
    ranges = {
        "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "model.queue_size": {"integer": [31, 33]},
        "objectives.imc": {"on_or_off": True},
    }
    grid = space.grid(load(tmp_path, space=ranges).spec, 5)
    assert grid["optim.learning_rate"] == pytest.approx([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2])
    assert (grid["optim.learning_rate"][0], grid["optim.learning_rate"][-1]) == (1e-4, 1e-2)
    assert grid["model.queue_size"] == [31, 32, 33]
    assert grid["objectives.imc"] == ["on", "off"]
