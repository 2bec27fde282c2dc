"""Which parameters mattered, and how sure is that? fANOVA over the trials, and over trials drawn again from them."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial

from tclx.report.bootstrap import Interval
from tclx.sweep.ranking import counted_complete

FEWEST_FOR_IMPORTANCE = 4
"""Complete trials; with fewer a forest of trees says nothing."""

_TREES_OF_A_DRAW = 8
_WORK = 3000
"""Trials times draws: a page takes a few seconds, and many trials need fewer draws."""


def importances_of(study: optuna.Study, objective: int) -> dict[str, float] | None:
    """How much of the variance each parameter explains, by fANOVA (Hutter et al. 2014); those that only some trials have are
    left out.

    PED-ANOVA (Watanabe et al. 2023) was tried beside it: a parameter that explains 94 % of the variance came out first in 10 to
    18 of 20 simulated studies of 12 to 60 trials, by fANOVA in all 20 (tests/sweep/test_importance.py repeats a part).

    Args:
        study: with `FEWEST_FOR_IMPORTANCE` complete trials or more.
        objective: its position.

    Returns:
        Shares by name, the largest first; None where nothing mattered.
    """
    return _shares(study, objective, num_trees=64, seed=0) if _differ(counted_complete(study), objective) else None


def importance_intervals(study: optuna.Study, objective: int) -> dict[str, Interval]:
    """Between what the shares of `importances_of` lie in 95 % of studies whose trials are drawn again from these, with
    replacement; wide where a few trials decide.

    Args:
        study: as there, with something that mattered.
        objective: its position.
    """
    import numpy as np

    trials = counted_complete(study)
    draws: dict[str, list[float]] = {}
    generator = np.random.default_rng(0)
    for number in range(max(20, min(100, _WORK // len(trials)))):
        drawn = [trials[index] for index in generator.integers(0, len(trials), len(trials))]
        if not _differ(drawn, objective):
            continue
        resampled = optuna.create_study(directions=study.directions)
        resampled.add_trials(drawn)
        for name, share in (_shares(resampled, objective, num_trees=_TREES_OF_A_DRAW, seed=number) or {}).items():
            draws.setdefault(name, []).append(share)
    return {name: Interval(*map(float, np.quantile(values, (0.025, 0.975)))) for name, values in draws.items()}


def _differ(trials: Sequence[FrozenTrial], objective: int) -> bool:
    return len({trial.values[objective] for trial in trials}) > 1


def _shares(study: optuna.Study, objective: int, *, num_trees: int, seed: int) -> dict[str, float] | None:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # brings scikit-learn

    evaluator = FanovaImportanceEvaluator(n_trees=num_trees, seed=seed)
    found = get_param_importances(study, evaluator=evaluator, target=lambda trial: float(trial.values[objective]))
    return {name: float(share) for name, share in found.items()} or None
