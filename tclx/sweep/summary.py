"""How does a study stand? Optuna's trials -> counts, the best, an estimate of the time left. Only reads."""

from __future__ import annotations

import time
from functools import cache
from heapq import heapreplace
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from tclx.launch.watch import Standing
from tclx.report.cost import wall_seconds
from tclx.runs import RunFolder
from tclx.spec.difference import shortest_ending
from tclx.sweep.claims import is_alive, read_claim
from tclx.sweep.ranking import best_trials
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder, counted, num_begun, stopped_by


class Summary(NamedTuple):
    """A study, as of now."""

    num_trials: int
    """Asked for."""
    finished: int
    running: int
    interrupted: int
    lost: int
    """As `state_word` tells them apart; the next worker goes on with what is interrupted or lost."""
    pruned: int
    failed: int
    queued: int
    best: tuple[FrozenTrial, ...]
    """The best trial; of several objectives the Pareto front; empty before the first."""
    baseline: FrozenTrial | None
    """Trial 0, the experiment itself."""
    eta_seconds: float | None
    """None until it can be guessed."""
    stopped: str | None = None
    """Why no more trials begin although some were asked for."""

    @property
    def ended(self) -> int:
        return self.finished + self.pruned + self.failed


def summarise(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> Summary:
    """Count the study's trials.

    Args:
        study: as it is in the storage.
        sweep: what it is made from.
        folder: of the study, beside whose runs the time left is guessed from.
    """
    trials, stopped = counted(study), stopped_by(study, sweep)
    complete = trials[TrialState.COMPLETE]
    begun = [state_word(trial, folder) for trial in trials[TrialState.RUNNING]]
    return Summary(
        sweep.spec.num_trials,
        len(complete),
        begun.count("running"),
        begun.count("interrupted"),
        begun.count("lost"),
        len(trials[TrialState.PRUNED]),
        len(trials[TrialState.FAIL]),
        len(trials[TrialState.WAITING]),
        best_trials(study, complete),
        next((trial for some in trials.values() for trial in some if trial.number == 0), None),
        _eta(trials, sweep, folder, stops=stopped is not None),
        stopped,
    )


def state_word(trial: FrozenTrial, folder: StudyFolder) -> Standing:
    """Where a trial stands, in the words of its runs (`tclx.launch.watch`).

    Optuna calls one running until somebody ends it: without a living worker it is interrupted, or lost.
    """
    if trial.state == TrialState.RUNNING:
        claim = read_claim(folder, trial.number)
        if claim is not None and is_alive(folder, claim):
            return "running"
        return "interrupted" if claim is not None and claim.released else "lost"
    return STATE_WORDS[trial.state]


STATE_WORDS: dict[TrialState, Standing] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "queued",
}


def values_of_trial(trial: FrozenTrial) -> dict[str, Any]:
    """What the trial put into the experiment."""
    values: dict[str, Any] = trial.user_attrs.get("values", trial.params)
    return values


def seconds_of(trial: FrozenTrial) -> float | None:
    """From its first start to its end or until now, waiting included."""
    if trial.datetime_start is None:
        return None
    end = trial.datetime_complete.timestamp() if trial.datetime_complete is not None else time.time()
    return end - trial.datetime_start.timestamp()


def worked_seconds(trial: FrozenTrial, folder: StudyFolder) -> float | None:
    """How long its runs have trained, over all attempts: neither a night between two commands nor a run that was there already
    counts for another time than it took.
    """
    runs = [RunFolder(folder.runs_dir / run_id) for run_id in trial.user_attrs.get("runs", [])]
    read = _wall_seconds_at_last if trial.state.is_finished() else wall_seconds
    spent = [seconds for run in runs if (seconds := read(run)) is not None]
    return sum(spent) if spent else seconds_of(trial)


_wall_seconds_at_last = cache(wall_seconds)
"""Of runs that have ended: read once, although a study is looked at every few seconds."""


def _eta(trials: dict[TrialState, list[FrozenTrial]], sweep: Sweep, folder: StudyFolder, *, stops: bool) -> float | None:
    """The trials that are left, each as long as the mean of those that have ended, pruned ones as short as they were; a worker
    takes the next one when it is free.
    """
    ended = [*trials[TrialState.COMPLETE], *trials[TrialState.PRUNED]]
    durations = [seconds for trial in ended if (seconds := worked_seconds(trial, folder)) is not None]
    if not durations:
        return None
    typical = sum(durations) / len(durations)
    begun = sweep.spec.num_trials if stops else num_begun(trials)
    under_way = [typical * (1 - _share_done(trial, folder)) for trial in trials[TrialState.RUNNING]]
    free_in = [0.0] * sweep.spec.num_workers
    for seconds in [*under_way, *[typical] * max(0, sweep.spec.num_trials - begun)]:
        heapreplace(free_in, free_in[0] + seconds)
    return max(free_in)


def _share_done(trial: FrozenTrial, folder: StudyFolder) -> float:
    done, total = progress_of(trial, folder)
    return min(1.0, done / total) if total else 0.0


def as_tree(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> dict[str, Any]:
    """The study for machines."""
    summary = summarise(study, sweep, folder)
    return {
        "name": sweep.spec.name,
        "trials_asked_for": summary.num_trials,
        "finished": summary.finished,
        "running": summary.running,
        "interrupted": summary.interrupted,
        "lost": summary.lost,
        "pruned": summary.pruned,
        "failed": summary.failed,
        "queued": summary.queued,
        "eta_seconds": summary.eta_seconds,
        "stopped": summary.stopped,
        "best": [trial.number for trial in summary.best],
        "trials": [_trial_tree(trial, folder) for trial in study.get_trials(deepcopy=False)],
    }


def _trial_tree(trial: FrozenTrial, folder: StudyFolder) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": state_word(trial, folder),
        "values": trial.values,
        "changes": values_of_trial(trial),
        "runs": trial.user_attrs.get("runs", []),
        "reason": trial.user_attrs.get("reason"),
        "evaluations": {str(step): value for step, value in trial.intermediate_values.items()},
        "constraints": trial.constraints,
        "seconds": seconds_of(trial),
    }


def progress_of(trial: FrozenTrial, folder: StudyFolder) -> tuple[int, int]:
    """Training steps done and in all, over the trial's runs; zeros before it has any."""
    states = [RunFolder(folder.runs_dir / run_id).read_state() for run_id in trial.user_attrs.get("runs", [])]
    done = [state.total_steps if state.status == "finished" else state.step for state in states if state is not None]
    total = max((state.total_steps for state in states if state is not None), default=0)
    return sum(done), total * len(states)


def short_key(key: str, sweep: Sweep) -> str:
    """A key's shortest ending in its sweep."""
    return shortest_ending(key, sweep.spec.varied)
