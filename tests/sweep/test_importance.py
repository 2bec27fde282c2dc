"""Which parameters mattered, and how sure that is, on studies whose answer is known."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest

from tclx.sweep.importance import importance_intervals, importances_of

NAMES = ("much", "some", "none", "nothing")


def study_of(num_trials: int, seed: int, *, noise: float = 0.05) -> optuna.Study:
    """`much` explains 94 % of the variance, `some` the rest."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    generator = np.random.default_rng(seed)

    def value(trial: optuna.Trial) -> float:
        much, some, *_ = (trial.suggest_float(name, 0, 1) for name in NAMES)
        return float(-4 * (much - 0.3) ** 2 - (some - 0.6) ** 2 + noise * generator.standard_normal())

    study.optimize(value, num_trials)
    return study


def first_of(shares: dict[str, float]) -> str:
    return max(shares, key=lambda name: shares[name])


def by_ped_anova(study: optuna.Study) -> dict[str, float]:
    quantile = min(0.5, max(0.1, 5 / len(study.trials)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluator.evaluate(study, list(NAMES), target=lambda trial: -float(trial.value or 0))


def test_what_mattered_most_is_found_more_often_than_by_ped_anova() -> None:
    studies = [study_of(20, seed) for seed in range(8)]
    assert [first_of(importances_of(study, 0) or {}) for study in studies] == ["much"] * 8
    assert sum(first_of(by_ped_anova(study)) == "much" for study in studies) < 8


def test_intervals_hold_the_truth_and_shrink_with_more_trials() -> None:
    few, many = importance_intervals(study_of(10, 0), 0), importance_intervals(study_of(120, 0), 0)
    assert set(few) == set(many) == set(NAMES)
    assert all(0 <= one.low <= one.high <= 1 for one in (*few.values(), *many.values()))
    assert many["much"].low > many["some"].high
    assert few["much"].high - few["much"].low > 3 * (many["much"].high - many["much"].low)
    assert few["much"].low < 0.94 < few["much"].high


def test_nothing_mattered_where_all_values_are_equal() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: 0.0 * trial.suggest_float("much", 0, 1), 6)
    assert importances_of(study, 0) is None


@pytest.mark.parametrize("objective", [0, 1])
def test_of_several_objectives_each_has_its_own(objective: int) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: (trial.suggest_float("first", 0, 1), trial.suggest_float("second", 0, 1)), 30)
    shares = importances_of(study, objective)
    assert shares is not None
    assert first_of(shares) == ("first", "second")[objective]
    assert importance_intervals(study, objective)[("first", "second")[objective]].low > 0.5
