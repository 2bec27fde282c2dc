"""Where do a sampler's first trials go when somebody knows something? From the priors of the space, then as the sampler will.

Only its random trials are drawn from the priors: a right one finds with ten trials what takes thirty without, a wrong one is
made good once the model is asked. Drawing later trials from them, too, was tried: a little better where they are right, and
four times as far from the best after forty trials where they are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tclx.spec.sweep import PriorSpec

REACH = 0.1
"""Of a range: so far on each side of its best guess is "there"."""


class WithPriors(BaseSampler):
    """A sampler whose first trials are drawn from priors.

    Args:
        sampler: that draws everything else.
        priors: by parameter.
        startup_trials: how many are random; None for all.
        seed: of these draws.
    """

    def __init__(self, sampler: BaseSampler, priors: Mapping[str, PriorSpec], *, startup_trials: int | None, seed: int) -> None:
        self._sampler, self._priors, self._startup_trials = sampler, dict(priors), startup_trials
        self._generator = np.random.default_rng(seed)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()
        self._generator = np.random.default_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._priors and self._is_random(study):
            return draw(self._priors[param_name], param_distribution, self._generator)
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def _is_random(self, study: optuna.Study) -> bool:
        if self._startup_trials is None:
            return True
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return len(ended) < self._startup_trials


def draw(prior: PriorSpec, distribution: BaseDistribution, generator: np.random.Generator) -> Any:
    """A value: from where the prior says with its confidence, from everywhere otherwise."""
    is_there = generator.random() < prior.confidence
    if isinstance(distribution, CategoricalDistribution):
        value = _choice(prior.value, distribution)
        others = [one for one in distribution.choices if one != value or type(one) is not type(value)]
        return value if is_there else others[generator.integers(len(others))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    ends = _region(prior, low, high, is_log=distribution.log) if is_there else (low, high)
    if isinstance(distribution, IntDistribution):
        least, most = max(distribution.low, math.ceil(ends[0])), min(distribution.high, math.floor(ends[1]))
        ends = (least - 0.5, most + 0.5) if least <= most else (round(sum(ends) / 2) - 0.5, round(sum(ends) / 2) + 0.5)
        drawn = _between(*ends, is_log=distribution.log, generator=generator)
        return min(max(round(drawn), distribution.low), distribution.high)
    return min(max(_between(*ends, is_log=distribution.log, generator=generator), low), high)


def _choice(value: Any, distribution: CategoricalDistribution) -> Any:
    """What a switch calls it."""
    if isinstance(value, bool) and value not in [one for one in distribution.choices if isinstance(one, bool)]:
        return "on" if value else "off"
    return value


def _region(prior: PriorSpec, low: float, high: float, *, is_log: bool) -> tuple[float, float]:
    if prior.between is not None:
        return prior.between
    guess = float(prior.value)  # type: ignore[arg-type]  # checked: a range's is a number
    if is_log:
        reach = (high / low) ** REACH
        return max(low, guess / reach), min(high, guess * reach)
    reach = REACH * (high - low)
    return max(low, guess - reach), min(high, guess + reach)


def _between(low: float, high: float, *, is_log: bool, generator: np.random.Generator) -> float:
    return float(math.exp(generator.uniform(math.log(low), math.log(high))) if is_log else generator.uniform(low, high))
