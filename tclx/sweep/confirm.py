"""Is the best of a search really better? What fresh seeds say of its best trials and of trial 0, the experiment itself.

The best of many trials is partly luck. So the best `top` of them and trial 0 are trained again, with seeds that no trial was
chosen by, and compared seed by seed (`tclx.sweep.sequential`). Their trainings are trials of a second study of Optuna's, one a
candidate and seed, which carries what it stands for in its attributes and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from tclx.sweep import space
from tclx.sweep.metrics import mean
from tclx.sweep.ranking import is_feasible, ranked
from tclx.sweep.searched import Sweep
from tclx.sweep.sequential import FEWEST, Compared, compare
from tclx.sweep.study import OF, SEED, is_search_over

Word = Literal["better", "not better", "open", "failed", "breaks a constraint"]


class Missing(NamedTuple):
    """A training that is still to begin."""

    number: int
    seed: int


class Arm(NamedTuple):
    """A candidate, or trial 0, with what its fresh seeds have come to."""

    number: int
    """Of the trial of the search."""
    values: Mapping[int, float]
    """The objective by seed."""
    runs: Mapping[int, str]
    """Run ids by seed, also of those under way."""
    margins: Mapping[str, float]
    """How far each constraint is broken in the mean; at most 0 where it is kept."""
    failure: str | None
    """Why one of its trainings failed."""

    @property
    def mean(self) -> float | None:
        return mean(list(self.values.values())) if self.values else None


class Candidate(NamedTuple):
    """An arm beside trial 0."""

    arm: Arm
    compared: Compared
    """Of the metric as it is: where less is better, a better candidate's difference is negative."""
    word: Word


class Confirmation(NamedTuple):
    """Where a confirmation stands."""

    baseline: Arm
    """Trial 0."""
    candidates: tuple[Candidate, ...]
    """The best of the search, in its order."""
    seeds: tuple[int, ...]
    """All that may be used, in order."""
    has_begun: bool
    search_is_over: bool
    completes: bool
    """Whether the best is trained with all seeds, decided or not: variants are compared by them."""
    sign: int
    """1 where more is better, -1 where less is."""

    @property
    def is_decided(self) -> bool:
        """Whether every candidate has its verdict."""
        return self.search_is_over and all(one.word != "open" for one in self.candidates)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        if not self.is_decided or not self.completes:
            return self.is_decided
        return len(self.best.values) == len(self.seeds) or self.best.failure is not None

    @property
    def best(self) -> Arm:
        """What is best by its fresh seeds: the winner, and where there is none the best mean over the seeds that all have.

        Unlike a verdict it asks no proof: it is what a variant is represented by.
        """
        if self.winner is not None:
            return self.winner.arm
        sound = [self.baseline, *(one.arm for one in self.candidates if one.word not in ("failed", "breaks a constraint"))]
        shared = [seed for seed in self.seeds if all(seed in arm.values for arm in sound)]
        if not shared:
            return self.baseline
        return max(sound, key=lambda arm: self.sign * mean([arm.values[seed] for seed in shared]))

    @property
    def winner(self) -> Candidate | None:
        """Of those better than trial 0 the one with the largest difference; None before all have verdicts, and for none."""
        better = [one for one in self.candidates if one.word == "better"] if self.is_decided else []
        return max(better, key=lambda one: self.sign * one.compared.difference, default=None)

    @property
    def num_runs(self) -> int:
        """Trainings so far, those under way included."""
        return sum(len(arm.runs) for arm in self.arms)

    @property
    def num_ended(self) -> int:
        """Of those, how many have come to a value."""
        return sum(len(arm.values) for arm in self.arms)

    @property
    def num_at_work(self) -> int:
        """Of those, how many have not ended."""
        return 0 if self.is_over else self.num_runs - self.num_ended

    @property
    def most_runs(self) -> int:
        """Trainings that it takes at most, from what is known now."""
        lasting = [len(self.seeds) if one.word == "open" else len(one.arm.runs) for one in self.candidates]
        most = sum(lasting) + max([*lasting, len(self.baseline.runs)])
        completed = len(self.seeds) - len(self.best.runs) if self.completes else 0
        return min(most + completed, len(self.arms) * len(self.seeds))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All of them, trial 0 first."""
        return (self.baseline, *(one.arm for one in self.candidates))

    def missing(self) -> Iterator[Missing]:
        """What is to be trained next for the candidates that are open, seed by seed; nothing waits for what comes before it."""
        if not self.search_is_over:
            return
        upto = {one.arm.number: self._wanted(one) for one in self.candidates if one.word == "open"}
        upto[self.baseline.number] = max(upto.values(), default=0)
        if self.completes and self.is_decided and self.best.failure is None:
            upto[self.best.number] = len(self.seeds)
        for place, seed in enumerate(self.seeds):
            for arm in self.arms:
                if place < upto.get(arm.number, 0) and seed not in arm.runs and seed not in arm.values:
                    yield Missing(arm.number, seed)

    def _wanted(self, one: Candidate) -> int:
        """So many seeds, until there is something to look at anew."""
        return min(max(FEWEST, one.compared.num_seeds + 1), len(self.seeds))


def confirmation_of(search: optuna.Study, study: optuna.Study, sweep: Sweep) -> Confirmation:
    """Put together what the search and its confirmation have come to.

    Args:
        search: the study of trials.
        study: of the trainings with fresh seeds.
        sweep: what both are made from.
    """
    over = is_search_over(search, sweep)
    begun = study.get_trials(deepcopy=False)
    baseline = _arm(0, begun)
    numbers = [trial.number for trial in _candidates(search, sweep)] if over else _begun_for(begun)
    candidates = tuple(_candidate(_arm(number, begun), baseline, sweep, len(numbers)) for number in numbers)
    sign = sweep.spec.objective[0].sign
    return Confirmation(baseline, candidates, sweep.fresh_seeds(), bool(begun), over, sweep.part is not None, sign)


def drawn_of(search: optuna.Study, sweep: Sweep, number: int) -> dict[str, Any]:
    """The parameters of a trial of the search; of trial 0 those of the experiment, however it ended."""
    if number == 0:
        return space.parameters_at(sweep.base_tree, sweep.spec)
    return next(trial.params for trial in search.get_trials(deepcopy=False) if trial.number == number)


def _candidates(search: optuna.Study, sweep: Sweep) -> list[FrozenTrial]:
    """The best trials that keep the constraints, but for trial 0, each content once."""
    best: dict[str, FrozenTrial] = {}
    taken = repr(sorted(drawn_of(search, sweep, 0).items()))
    for trial in ranked(search, sweep):
        if is_feasible(trial) and (key := repr(sorted(trial.params.items()))) != taken:
            best.setdefault(key, trial)
    return list(best.values())[: sweep.spec.confirm.top if sweep.spec.confirm else 0]


def _begun_for(begun: list[FrozenTrial]) -> list[int]:
    """Trials that were confirmed before the search went on."""
    return list(dict.fromkeys(trial.user_attrs[OF] for trial in begun if trial.user_attrs[OF] != 0))


def _arm(number: int, begun: list[FrozenTrial]) -> Arm:
    own = {trial.user_attrs[SEED]: trial for trial in begun if trial.user_attrs[OF] == number}
    complete = {seed: trial for seed, trial in own.items() if trial.state == TrialState.COMPLETE}
    margins: dict[str, list[float]] = {}
    for trial in complete.values():
        for metric, margin in trial.constraints.items():
            margins.setdefault(metric, []).append(margin)
    failed = next((trial for trial in own.values() if trial.state == TrialState.FAIL), None)
    return Arm(
        number,
        {seed: float(trial.values[0]) for seed, trial in complete.items()},
        {seed: " ".join(trial.user_attrs.get("runs", [])) for seed, trial in own.items()},
        {metric: mean(values) for metric, values in margins.items()},
        str(failed.user_attrs.get("reason", "no reason is known")) if failed is not None else None,
    )


def _candidate(arm: Arm, baseline: Arm, sweep: Sweep, num_candidates: int) -> Candidate:
    seeds = sweep.fresh_seeds()
    sign = sweep.spec.objective[0].sign
    differences = []
    for seed in seeds:  # in order and without a gap: which seeds come to be looked at must not depend on how they end
        if seed not in arm.values or seed not in baseline.values:
            break
        differences.append(sign * (arm.values[seed] - baseline.values[seed]))
    compared = compare(differences, num_candidates=num_candidates, num_seeds=len(seeds))
    if sign < 0:
        compared = compared._replace(difference=-compared.difference, low=-compared.high, high=-compared.low)
    return Candidate(arm, compared, _word(arm, baseline, compared))


def _word(arm: Arm, baseline: Arm, compared: Compared) -> Word:
    if arm.failure is not None or baseline.failure is not None:
        return "failed"
    if compared.verdict == "better" and any(margin > 0 for margin in arm.margins.values()):
        return "breaks a constraint"
    return compared.verdict
