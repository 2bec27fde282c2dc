"""A prior moves the first trials and nothing else: what it saves where it is right, and what it costs where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tclx.errors import InputError
from tclx.spec.sweep import PriorSpec
from tclx.sweep.prior import WithPriors, draw
from tclx.sweep.study import StudyFolder, build_sampler
from tests.sweep.test_begin import create_study, folder_of
from tests.sweep.toy import load

RATE = {"log_uniform": [1e-5, 1e-1]}


def spec(**changes: Any) -> PriorSpec:
    return PriorSpec.model_validate({key: tuple(one) if isinstance(one, list) else one for key, one in changes.items()})


# -------------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(
    ("prior", "distribution", "there"),
    [
        (spec(value=0.5), FloatDistribution(0.0, 2.0), (0.3, 0.7)),
        (spec(value=0.0), FloatDistribution(0.0, 2.0), (0.0, 0.2)),
        (spec(value=1e-3), FloatDistribution(1e-5, 1e-1, log=True), (1e-3 / 10**0.4, 1e-3 * 10**0.4)),
        (spec(between=[0.2, 0.4], confidence=0.5), FloatDistribution(0.0, 2.0), (0.2, 0.4)),
        (spec(between=[1e-4, 1e-3], confidence=0.9), FloatDistribution(1e-5, 1e-1, log=True), (1e-4, 1e-3)),
        (spec(between=[3, 5]), IntDistribution(0, 50), (3, 5)),
        (spec(value=7), IntDistribution(7, 12), (7, 7)),
        (spec(value=8), IntDistribution(1, 64, log=True), (6, 12)),
        (spec(value=32), CategoricalDistribution([16, 32, 64]), (32, 32)),
        (spec(value=True), CategoricalDistribution(["on", "off"]), ("on", "on")),
        (spec(value=False), CategoricalDistribution([True, False]), (False, False)),
        (spec(value=None), CategoricalDistribution(["a", None]), (None, None)),
    ],
)
def test_its_share_of_draws_lies_where_it_says_and_all_lie_in_the_range(
    prior: PriorSpec, distribution: BaseDistribution, there: tuple[Any, Any]
) -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(prior, distribution, generator) for _ in range(4000)]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in drawn)
    if isinstance(distribution, CategoricalDistribution):
        share, elsewhere = np.mean([value is there[0] or value == there[0] for value in drawn]), 0.0
    else:
        share = np.mean([there[0] <= value <= there[1] for value in drawn])
        low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
        if isinstance(distribution, IntDistribution):
            everything = set(drawn)
            assert {distribution.low, distribution.high} <= everything
            low, high, there = low - 0.5, high + 0.5, (there[0] - 0.5, there[1] + 0.5)
        scale = np.log if distribution.log else float  # type: ignore[attr-defined]
        elsewhere = float((scale(there[1]) - scale(there[0])) / (scale(high) - scale(low)))
    expected = prior.confidence + (1 - prior.confidence) * elsewhere
    assert share == pytest.approx(expected, abs=0.03)


# ------------------------------------------------------------------------------------------------------------------- search


def reached(prior: str, seed: int, *, num_trials: int, startup: int = 10) -> np.ndarray:
    """The best so far of a bowl in five dimensions, of which three have a prior."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best = np.random.default_rng(1000 + seed).uniform(0.1, 0.9, 5)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
    if prior != "none":
        guess = best if prior == "right" else (best + 0.5) % 1
        priors = {f"x{index}": spec(value=float(guess[index])) for index in range(3)}
        sampler = WithPriors(sampler, priors, startup_trials=startup, seed=seed)
    study = optuna.create_study(sampler=sampler)

    def value(trial: optuna.Trial) -> float:
        drawn = np.array([trial.suggest_float(f"x{index}", 0, 1) for index in range(5)])
        return float(((drawn - best) ** 2) @ np.array([4, 2, 1, 1, 0.5]))

    study.optimize(value, num_trials)
    return np.minimum.accumulate([trial.value for trial in study.trials])


@pytest.mark.slow
def test_a_right_one_saves_most_trials_and_a_wrong_one_is_made_good(recwarn: pytest.WarningsRecorder) -> None:
    curves = {
        prior: np.median([reached(prior, seed, num_trials=40) for seed in range(16)], axis=0)
        for prior in ("none", "right", "wrong")
    }
    recwarn.clear()
    assert curves["right"][9] < curves["none"][9] / 3  # after ten trials
    assert curves["right"][9] < 1.5 * curves["none"][29]  # what thirty find without
    assert curves["wrong"][9] > 2 * curves["none"][9]
    assert curves["wrong"][39] < 2 * curves["none"][39]  # and what it costs is gone


def test_only_the_first_trials_are_drawn_from_it(tmp_path: Path) -> None:
    prior = {"between": [2e-3, 3e-3], "confidence": 0.99}
    sweep = load(tmp_path, space={"optim.learning_rate": {**RATE, "prior": prior}}, sampler={"startup_trials": 6})
    study = optuna.create_study(direction="minimize", sampler=build_sampler(sweep, seed=0))
    for _ in range(20):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("optim.learning_rate", 1e-5, 1e-1, log=True))  # less is better
    rates = [trial.params["optim.learning_rate"] for trial in study.trials]
    assert all(2e-3 <= rate <= 3e-3 for rate in rates[:6])
    assert min(rates[6:]) < 1e-3


def test_random_search_stays_with_it(tmp_path: Path) -> None:
    prior = {"value": 1e-3, "confidence": 0.99}
    sweep = load(tmp_path, space={"optim.learning_rate": {**RATE, "prior": prior}}, sampler={"name": "random"})
    study = optuna.create_study(sampler=build_sampler(sweep, seed=0))
    drawn = []
    for _ in range(30):
        trial = study.ask()
        drawn.append(trial.suggest_float("optim.learning_rate", 1e-5, 1e-1, log=True))
        study.tell(trial, 0.0)
    assert sum(3e-4 < rate < 3e-3 for rate in drawn) >= 28


def test_workers_draw_different_trials_and_the_same_worker_the_same(tmp_path: Path) -> None:
    sweep = load(tmp_path, space={"optim.learning_rate": {**RATE, "prior": {"value": 1e-3}}})

    def first(seed: int) -> float:
        trial = optuna.create_study(sampler=build_sampler(sweep, seed=seed)).ask()
        return trial.suggest_float("optim.learning_rate", 1e-5, 1e-1, log=True)

    assert first(0) == first(0) != first(1)


def test_a_study_goes_on_when_its_prior_changes(tmp_path: Path) -> None:
    create_study(load(tmp_path), folder_of(tmp_path))
    later = load(tmp_path, space={"optim.learning_rate": {**RATE, "prior": {"value": 1e-3}}})
    create_study(later, folder_of(tmp_path))  # refused if it were another search
    read = StudyFolder.of("toy-sweep", tmp_path / "runs").read_sweep()
    assert read.spec.space["optim.learning_rate"].prior == PriorSpec(value=1e-3)


# -------------------------------------------------------------------------------------------------------------------- asked


@pytest.mark.parametrize(
    ("parameter", "key", "words"),
    [
        ({**RATE, "prior": {}}, "prior", "exactly one of `value` and `between`"),
        ({**RATE, "prior": {"value": 1e-3, "between": [1e-4, 1e-3]}}, "prior", "exactly one of `value` and `between`"),
        ({**RATE, "prior": {"value": 1.0}}, "prior.value", "lies not within [1e-05, 0.1]"),
        ({**RATE, "prior": {"value": "small"}}, "prior.value", "is a number"),
        ({**RATE, "prior": {"between": [1e-3, 1e-4]}}, "prior.between", "the smaller one first"),
        ({**RATE, "prior": {"between": [1e-3, 1e-3]}}, "prior.between", "the smaller one first"),
        ({**RATE, "prior": {"value": 1e-3, "confidence": 1.0}}, "prior.confidence", "less than 1"),
        ({"choices": [1e-3, 1e-2], "prior": {"value": 0.5}}, "prior.value", "none of 0.001, 0.01"),
        ({"choices": [1e-3, 1e-2], "prior": {"between": [1e-3, 1e-2]}}, "prior.between", "give the `value`"),
    ],
)
def test_a_prior_that_means_nothing_is_refused(tmp_path: Path, parameter: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, space={"optim.learning_rate": parameter})
    (problem,) = caught.value.problems
    assert problem.key == f"space.optim.learning_rate.{key}"
    assert words in str(problem)
    assert problem.where is not None


@pytest.mark.parametrize("name", ["cmaes", "qmc", "grid"])
def test_a_sampler_without_random_trials_takes_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` has no such trials .`tpe`, `gp` or `random`"):
        load(tmp_path, space={"optim.learning_rate": {**RATE, "prior": {"value": 1e-3}}}, sampler={"name": name})
