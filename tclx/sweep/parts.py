"""A study as it is opened: of each search in it the trials, and what confirms them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import optuna

from tclx.sweep.confirm import Confirmation, confirmation_of
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder, is_search_over, open_confirmation, open_study


class Part(NamedTuple):
    """One search: the whole study, or a variant's."""

    folder: StudyFolder
    sweep: Sweep
    search: optuna.Study
    confirming: optuna.Study | None
    """Trainings with fresh seeds; None where no confirmation is asked for."""

    def confirmation(self) -> Confirmation | None:
        """Where it stands by now."""
        return confirmation_of(self.search, self.confirming, self.sweep) if self.confirming is not None else None


def open_parts(folder: StudyFolder, *, seed: int | None = None) -> list[Part]:
    """Every search of a study.

    Args:
        folder: of the study, or of one variant.
        seed: of the samplers; None to read only.

    Raises:
        InputError: there is no study here, or another version of tclx wrote it.
        MachineError: its storage cannot be reached.
    """
    found = []
    for part in folder.parts():
        sweep = part.read_sweep()
        found.append(Part(part, sweep, open_study(part, sweep, seed=seed), open_confirmation(part, sweep)))
    return found


def num_ended(parts: Sequence[Part]) -> int:
    """Trials that have ended, those that confirm included."""
    studies = [study for part in parts for study in (part.search, part.confirming) if study is not None]
    return sum(trial.state.is_finished() for study in studies for trial in study.get_trials(deepcopy=False))


def num_left(parts: Sequence[Part]) -> int:
    """Trials that are to end or to begin, as far as is known: a confirmation may come to need more."""
    left = 0
    for part in parts:
        ended = sum(trial.state.is_finished() for trial in part.search.get_trials(deepcopy=False))
        left += 0 if is_search_over(part.search, part.sweep) else part.sweep.spec.num_trials - ended
        if (confirmation := part.confirmation()) is not None:
            left += confirmation.num_at_work + len(list(confirmation.missing()))
    return left
