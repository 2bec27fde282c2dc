"""Which trial is next? A study has stages: the search, and where it is asked for, the confirmation of what the search found.

Each is a study of Optuna's in the same storage. Workers ask one stage after the other, under the study's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from tclx.errors import MachineError
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import Say
from tclx.sweep import space
from tclx.sweep.confirm import Confirmation, confirmation_of, drawn_of
from tclx.sweep.parts import open_parts
from tclx.sweep.searched import Sweep
from tclx.sweep.stopping import why_stop
from tclx.sweep.storage import patiently
from tclx.sweep.study import OF, SEED, StudyFolder, counted, has_begun_all, is_search_over, note_stopped

MOST_FAILURES = 5
"""So many failed trials and not a single good one: it is not the parameters."""


class Tried(NamedTuple):
    """What a trial trains."""

    number: int
    """Of the trial of the search."""
    values: dict[str, Any]
    """What it puts into the experiment, as the sweep file would say it."""
    runs: list[PlannedRun]


class Stage(Protocol):
    """Trials of one kind."""

    @property
    def study(self) -> optuna.Study: ...

    @property
    def sweep(self) -> Sweep: ...

    @property
    def folder(self) -> StudyFolder: ...

    def begin(self, *, say: Say) -> Trial | None:
        """The next trial; None where none is to begin at this moment. The caller holds the study's lock.

        Raises:
            MachineError: nothing succeeds, so it is not the parameters.
        """

    def is_waiting(self) -> bool:
        """Whether trials may be to begin once others have ended, on which somebody works. The caller holds the study's lock."""

    def tries(self, trial: Trial) -> Tried:
        """What a trial that has begun trains.

        Raises:
            InputError: its parameters make no experiment that can run.
        """

    def called(self, trial: Trial | FrozenTrial) -> str:
        """What people read: `trial 7`."""


@dataclass(frozen=True)
class Search:
    """Trials that Optuna's sampler draws."""

    study: optuna.Study
    sweep: Sweep
    folder: StudyFolder

    def begin(self, *, say: Say) -> Trial | None:
        if has_begun_all(self.study, self.sweep):
            return None
        if _time_is_up(self.sweep, self.folder, say):
            return None
        if (reason := why_stop(self.study, self.sweep, self.folder)) is not None:
            note_stopped(self.study, self.sweep, reason)
            say(f"{self.folder.prefix}the search ends: {reason}")
            return None
        trials = counted(self.study)
        if len(trials[TrialState.FAIL]) >= MOST_FAILURES and not trials[TrialState.COMPLETE]:
            raise MachineError(_all_failed(trials[TrialState.FAIL]))
        return self.study.ask()

    def is_waiting(self) -> bool:
        return False  # what runs here decides nothing about how many there are

    def tries(self, trial: Trial) -> Tried:
        drawn = self._draw(trial)
        return Tried(trial.number, self.sweep.values(drawn), self.sweep.planned(drawn))

    def _draw(self, trial: Trial) -> dict[str, Any]:
        """The trial's parameters. After a failure from what the storage has: it may have kept a draw, against a second one."""
        tried = False

        def draw() -> dict[str, Any]:
            nonlocal tried
            source = Trial(self.study, trial._trial_id) if tried else trial
            tried = True
            return space.draw(source, self.sweep.spec)

        return patiently(draw)

    def called(self, trial: Trial | FrozenTrial) -> str:
        return f"{self.folder.prefix}trial {trial.number}"


@dataclass(frozen=True)
class Confirm:
    """The best trials and the experiment itself, one seed each: `tclx.sweep.confirm` says which are still to be trained."""

    search: optuna.Study
    study: optuna.Study
    sweep: Sweep
    folder: StudyFolder

    def begin(self, *, say: Say) -> Trial | None:
        if not is_search_over(self.search, self.sweep) or _time_is_up(self.sweep, self.folder, say):
            return None
        if not counted(self.study)[TrialState.WAITING]:  # else the storage kept one that was begun without an answer
            missing = next(self._now().missing(), None)
            if missing is None:
                return None
            self.study.enqueue_trial({}, user_attrs={OF: missing.number, SEED: missing.seed})
        return self.study.ask()

    def is_waiting(self) -> bool:
        if _time_is_up(self.sweep, self.folder):
            return False
        if not is_search_over(self.search, self.sweep):
            return bool(counted(self.search)[TrialState.RUNNING])
        return bool(counted(self.study)[TrialState.RUNNING]) and not self._now().is_over

    def _now(self) -> Confirmation:
        return confirmation_of(self.search, self.study, self.sweep)

    def tries(self, trial: Trial) -> Tried:
        number, seed = trial.user_attrs[OF], trial.user_attrs[SEED]
        drawn = drawn_of(self.search, self.sweep, number)
        return Tried(number, self.sweep.values(drawn), [self.sweep.confirmed(drawn, seed)])

    def called(self, trial: Trial | FrozenTrial) -> str:
        return f"{self.folder.prefix}confirmation of trial {trial.user_attrs.get(OF)}, seed {trial.user_attrs.get(SEED)}"


def stages_of(folder: StudyFolder, *, seed: int) -> list[Stage]:
    """Every stage of a study, in the order in which workers look for something to do.

    Args:
        folder: of the study.
        seed: of the sampler.

    Raises:
        InputError, MachineError: the study cannot be read.
    """
    stages: list[Stage] = []
    for part, sweep, search, confirming in open_parts(folder, seed=seed):
        stages.append(Search(search, sweep, part))
        if confirming is not None:
            stages.append(Confirm(search, confirming, sweep.for_confirming(), part.confirming()))
    return stages


def most_at_once(stages: Sequence[Stage]) -> int:
    """Trials that confirmations can have under way at the same time."""
    arms = [stage.sweep.spec.confirm.top + 1 for stage in stages if isinstance(stage, Confirm) and stage.sweep.spec.confirm]
    return 2 * sum(arms)


def _time_is_up(sweep: Sweep, folder: StudyFolder, say: Say = lambda line: None) -> bool:
    limit = sweep.spec.max_hours
    if limit is None or folder.hours_since_start() < limit:
        return False
    say("max_hours have passed: no further trial begins")
    return True


def _all_failed(failed: list[FrozenTrial]) -> str:
    last = failed[-1].user_attrs.get("reason", "no reason is known")
    return f"the first {len(failed)} trials have failed, so the sweep stops; the last one: {last}"
