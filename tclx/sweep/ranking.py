"""Which trials of a search are best?"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from tclx.sweep.searched import Sweep
from tclx.sweep.study import counted


def counted_complete(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, by number."""
    return counted(study)[TrialState.COMPLETE]


def best_trials(study: optuna.Study, complete: list[FrozenTrial]) -> tuple[FrozenTrial, ...]:
    """The best of those that keep every constraint: one, or a Pareto front."""
    feasible = [trial for trial in complete if is_feasible(trial)]
    if not feasible:
        return ()
    if len(study.directions) > 1:
        return tuple(study.best_trials)
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    return (max(feasible, key=lambda trial: (sign * trial.values[0], -trial.number)),)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether it keeps the sweep's constraints."""
    return all(margin <= 0 for margin in trial.constraints.values())


def ranked(study: optuna.Study, sweep: Sweep) -> list[FrozenTrial]:
    """Complete trials, the best first; those that break a constraint last. Of several objectives the front comes first."""
    complete = counted_complete(study)
    front = {trial.number for trial in best_trials(study, complete)}
    sign = sweep.spec.objective[0].sign
    return sorted(
        complete,
        key=lambda trial: (not is_feasible(trial), trial.number not in front, -sign * trial.values[0], trial.number),
    )
