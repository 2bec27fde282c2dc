"""Promises of `tclx results --where --sort`: the runs that are meant, in the order that is meant, a thousand in a moment."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.found import find
from tclx.report import results
from tclx.report.conditions import chosen, condition, ordered
from tclx.report.results import RunResult, summarise
from tclx.runs import RunState
from tests.report.test_results import make_run


def read(folder: Path) -> list[RunResult]:
    return results.read_runs(find([], runs_dir=folder).selection)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    make_run(tmp_path, name="low", learning_rate=1e-4, r_mean=30.0, dual__r_mean=20.0)
    make_run(tmp_path, name="high", learning_rate=1e-2, r_mean=50.0)
    make_run(tmp_path, name="middle", variant="cma+imc", learning_rate=1e-3, init="/x", r_mean=40.0)
    make_run(tmp_path, name="going", learning_rate=1e-3, state=RunState("interrupted", step=5, total_steps=10))
    return read(tmp_path)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["optim.learning_rate > 0.0005"], ["going", "high", "middle"]),
        (["optim.learning_rate>=1e-3", "r_mean < 45"], ["middle"]),
        (["optim.learning_rate = 0.01"], ["high"]),
        (["optim.learning_rate != 0.01"], ["going", "low", "middle"]),
        (["variant = cma+imc"], ["middle"]),
        (["variant == 'cma+imc'"], ["middle"]),
        (["variant = null"], ["going", "high", "low"]),
        (["init.checkpoint != null"], ["middle"]),
        (["init.checkpoint = null"], ["going", "high", "low"]),
        (["status = finished", "r_mean <= 40"], ["low", "middle"]),
        (["step < 10"], ["going"]),
        (["dual/r_mean > 0"], ["low"]),
        (["name != low", "name != high"], ["going", "middle"]),
        (["optim.weight_decay = 0.02"], ["going", "high", "low", "middle"]),  # its default: the spec does not say it
        (["variant > 3"], []),
    ],
)
def test_runs_are_chosen_by_keys_metrics_and_where_they_stand(
    runs: list[RunResult], asked: list[str], found: list[str]
) -> None:
    assert sorted(run.name for run in chosen(runs, [condition(text) for text in asked])) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("optim.learning_rat > 1", "no run has `optim.learning_rat` (did you mean `optim.learning_rate`?)"),
        ("r_men > 1", "did you mean `r_mean`?"),
        ("learning rate", '`learning rate` is no comparison (as in "objectives.lmi.weight > 0.1")'),
        ("optim.learning_rate > large", "compares with large, which is no number"),
        ("r_mean ~ 3", "is no comparison"),
    ],
)
def test_what_means_nothing_is_said_with_what_would(runs: list[RunResult], asked: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        chosen(runs, [condition(asked)])
    assert said in str(refused.value)


def test_rows_stand_by_a_metric_the_best_first_or_by_a_key(runs: list[RunResult]) -> None:
    table = summarise(runs)

    def names(key: str) -> list[str]:
        return [row.runs[0].name for row in ordered(table, key).rows]

    assert names("r_mean") == ["high", "middle", "low"]
    assert names("dual/r_mean")[0] == "low"  # the others have none
    assert names("optim.learning_rate") == ["low", "middle", "high"]
    assert names("variant")[0] == "middle"
    with pytest.raises(InputError, match="--sort"):
        ordered(table, "nothing")


def test_a_thousand_runs_take_no_half_second_of_the_processor(tmp_path: Path) -> None:
    for number in range(1000):
        make_run(tmp_path, name=f"a{number % 250}", seed=number // 250, learning_rate=1e-4 * (1 + number), r_mean=float(number))
    found = read(tmp_path)
    before = time.process_time()
    kept = chosen(found, [condition("optim.learning_rate > 0.05"), condition("r_mean > 600")])
    ordered(summarise(kept, intervals=False), "r_mean")
    assert len(kept) == 399
    assert time.process_time() - before < 0.5 * 2  # twice what is promised: other tests run beside
