"""What happens in one trial? Its runs are trained, one a seed; their evaluations are reported; it is told how it ended.

A trial is in Optuna's storage before anything of it is on disk, and is told to Optuna after everything is. So whoever finds it
running without a living worker can go on: its parameters are in the storage, its training in the run folders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NamedTuple

import optuna
from optuna.trial import Trial, TrialState

from tclx.errors import InputError, MachineError
from tclx.launch.local.slots import Slot, take
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import Outcome, check_beginnings, prepare
from tclx.launch.watch import PRUNED
from tclx.runs import RunFolder, TrialOf, is_held
from tclx.sweep import metrics, process
from tclx.sweep.claims import Claim
from tclx.sweep.ranking import best_trials, counted_complete
from tclx.sweep.searched import Sweep
from tclx.sweep.stage import Search, Stage
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder
from tclx.track.notify import tell

POLL_SECONDS = 0.05
LOOK_SECONDS = 0.5
"""Between two looks at what a run has written."""

MOST_DEATHS = 5
"""A trial whose worker dies so often without getting on fails: what kills it kills the next worker, too."""


class Stopped(Exception):
    """The worker was asked to stop; the trial is saved and still running as Optuna sees it."""


class _Pruned(Exception):
    """The pruner has ended the trial."""


class _Failed(Exception):
    """The trial cannot go on, for this reason."""


class Worker(NamedTuple):
    """What a trial needs of the worker that runs it."""

    stage: Stage
    say: Callable[[str], None]
    stopping: Callable[[], bool]

    @property
    def study(self) -> optuna.Study:
        return self.stage.study

    @property
    def sweep(self) -> Sweep:
        return self.stage.sweep

    @property
    def folder(self) -> StudyFolder:
        return self.stage.folder


def run_trial(trial: Trial, claim: Claim, worker: Worker) -> TrialState:
    """Train a trial to one of its ends, from where it stands.

    Args:
        trial: asked for, or taken over.
        claim: this worker's on it.
        worker: who runs it.

    Raises:
        Stopped: the worker is to stop; the trial goes on later, here or elsewhere.
        MachineError: the storage is away, or a disk is full: not the trial's fault.
    """
    try:
        if claim.deaths >= MOST_DEATHS:
            raise _Failed(f"its worker died {claim.deaths + 1} times at the same step")
        runs = _planned(trial, worker)
        return _tell(trial, _train_all(trial, runs, claim, worker), worker)
    except _Pruned as pruned:
        return _end(trial, TrialState.PRUNED, str(pruned), worker)
    except _Failed as failed:
        return _end(trial, TrialState.FAIL, str(failed), worker)


def _planned(trial: Trial, worker: Worker) -> list[PlannedRun]:
    try:
        tried = worker.stage.tries(trial)
    except InputError as error:
        raise _Failed(str(error)) from error
    patiently(lambda: trial.set_user_attr("values", tried.values))
    patiently(lambda: trial.set_user_attr("runs", [run.plan.run_id for run in tried.runs]))
    for run in tried.runs:
        _note_trial(run, tried.number, worker)
    return tried.runs


def _note_trial(run: PlannedRun, number: int, worker: Worker) -> None:
    """Write into the run's folder whose trial it is, before anything else is there: tables of the experiment leave trials out.

    A run that was there before, or that the experiment's own file asks for, stays in them.
    """
    folder, sweep = RunFolder(worker.folder.runs_dir / run.plan.run_id), worker.sweep
    known = folder.read_trial()
    if known is None or known.study is None:
        also_run = sweep.is_experiment(run.spec) or (known is None and folder.spec.is_file()) or bool(known and known.also_run)
        of = worker.folder
        folder.write_json(folder.trial, asdict(TrialOf(sweep.spec.name, number, also_run, of.confirms, of.variant)))


def _train_all(trial: Trial, runs: list[PlannedRun], claim: Claim, worker: Worker) -> list[RunFolder]:
    """The finished runs of all seeds; the first one's evaluations are what the pruner sees."""
    pruner = worker.sweep.spec.pruner
    over_seeds = pruner is not None and pruner.name == "wilcoxon"
    objective = worker.sweep.spec.objective[0]
    finished: list[RunFolder] = []
    for number, run in enumerate(runs):
        folder = RunFolder(worker.folder.runs_dir / run.plan.run_id)
        reports = number == 0 and metrics.is_reported(worker.sweep.spec)

        def look(folder: RunFolder = folder, reports: bool = reports) -> None:
            if reports:
                _report(trial, list(metrics.curve(folder, objective.metric).values()), worker)

        _train(run, folder, look, claim, worker)
        finished.append(folder)
        if over_seeds:
            _report(trial, [metrics.value_of(one, objective) for one in finished], worker)
    return finished


def _report(trial: Trial, values: list[float], worker: Worker) -> None:
    """Tell Optuna what is new, and ask whether the trial is worth going on.

    Raises:
        _Pruned: it is not.
    """
    known = len(patiently(lambda: trial.storage.get_trial(trial._trial_id).intermediate_values))
    for step, value in enumerate(values[known:], known + 1):
        patiently(lambda step=step, value=value: trial.report(value, step))  # type: ignore[misc]
        if worker.sweep.spec.pruner is not None and patiently(trial.should_prune):
            raise _Pruned(f"after evaluation {step}: {worker.sweep.spec.objective[0].metric} {value:.4g}")


def _train(run: PlannedRun, folder: RunFolder, look: Callable[[], None], claim: Claim, worker: Worker) -> None:
    """One run to its end, watched.

    Raises:
        Stopped, _Pruned, _Failed, MachineError.
    """
    takes_over = claim.starts > 1
    while True:
        state = folder.read_state() if folder.path.exists() else None
        if state is not None and state.status == "finished":
            look()
            return
        if is_held(folder) and not takes_over:
            _wait(worker)  # somebody trains this very run: another trial, or a person
            continue
        outcome = _train_here(run, folder, look, worker, takes_over=takes_over)
        if outcome is not None:
            break
    look()
    if outcome.ending == "finished":
        return
    if outcome.ending == "interrupted":
        raise Stopped(outcome.reason)
    if outcome.exit_code == MachineError.exit_code:
        raise MachineError(outcome.reason or "the machine cannot go on")
    raise _Failed(outcome.reason or "failed without a word")


def _train_here(
    run: PlannedRun, folder: RunFolder, look: Callable[[], None], worker: Worker, *, takes_over: bool
) -> Outcome | None:
    """One start of a run; None when somebody else began it a moment before.

    Raises:
        Stopped, _Pruned, _Failed, MachineError.
    """
    slot = _slot(run, worker)
    try:
        check_beginnings([run], runs_dir=worker.folder.runs_dir, again=False, say=worker.say)
        prepare(run, folder)
        started = process.start(run, folder, environment=_environment(slot), takes_over=takes_over)
        exit_code = _watch(started, look, worker)
    except InputError as error:
        raise _Failed(str(error)) from error
    finally:
        slot.release()
    outcome = started.outcome(exit_code)
    return None if outcome.ending == "held" else outcome


def _watch(started: process.RunProcess, look: Callable[[], None], worker: Worker) -> int:
    """Until the run has ended, returning its exit code; a pruned one is asked to save and stop first.

    Raises:
        _Pruned: the pruner has ended it.
    """
    pruned: _Pruned | None = None
    looked_at = time.monotonic()
    while (exit_code := started.exit_code()) is None:
        time.sleep(POLL_SECONDS)
        if pruned is None and time.monotonic() - looked_at > LOOK_SECONDS:
            looked_at = time.monotonic()
            try:
                look()
            except _Pruned as decided:
                pruned = decided
        if (worker.stopping() or pruned is not None) and not started.asked_to_stop:
            started.stop()
    if pruned is not None:
        with suppress(MachineError):
            _note_pruned(started.folder, str(pruned))
        raise pruned
    return exit_code


def _note_pruned(folder: RunFolder, reason: str) -> None:
    """`tclx status` says of the run why it stopped; one that finished in the meantime keeps its word."""
    state = folder.read_state()
    if state is not None and state.status == "interrupted":
        folder.write_state(replace(state, reason=f"{PRUNED}{reason}"))


def _slot(run: PlannedRun, worker: Worker) -> Slot:
    while (slot := take(run, sharing=worker.sweep.spec.trials_per_gpu)) is None:
        _wait(worker)
    return slot


def _wait(worker: Worker) -> None:
    if worker.stopping():
        raise Stopped("stopped while it waited")
    time.sleep(LOOK_SECONDS)


def _environment(slot: Slot) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)} if slot.gpus else {}


def _tell(trial: Trial, finished: list[RunFolder], worker: Worker) -> TrialState:
    """The mean over the seeds of every objective, and how far every constraint is from being broken."""
    sweep = worker.sweep.spec
    try:
        values, margins = metrics.reached(finished, sweep)
    except KeyError as missing:
        raise _Failed(f"its runs have no {missing.args[0]}") from missing
    for metric, margin in margins.items():
        patiently(lambda metric=metric, margin=margin: trial.set_constraint(metric, margin))  # type: ignore[misc]
    patiently(lambda: worker.study.tell(trial, values, skip_if_finished=True))
    shown = ", ".join(f"{objective.metric} {value:.4g}" for objective, value in zip(sweep.objective, values, strict=True))
    worker.say(f"{worker.stage.called(trial)}: {shown}")
    notify = worker.sweep.base.tracking.notify
    if notify is not None and isinstance(worker.stage, Search):
        complete = patiently(lambda: counted_complete(worker.study))
        if len(complete) > 1 and [one.number for one in best_trials(worker.study, complete)] == [trial.number]:
            called = f"{sweep.name}: {worker.stage.called(trial)}"
            tell(
                notify, "best", title=f"tclx: {called} is the best so far", body=f"{shown}, of {len(complete)}", say=worker.say
            )
    return TrialState.COMPLETE


def give_up(trial: Trial, error: Exception, worker: Worker) -> None:
    """A bug ends the trial as failed: left running, it would take every later worker with it."""
    _end(trial, TrialState.FAIL, f"{type(error).__name__}: {error}", worker)


def _end(trial: Trial, state: TrialState, reason: str, worker: Worker) -> TrialState:
    patiently(lambda: trial.set_user_attr("reason", reason))
    patiently(lambda: worker.study.tell(trial, state=state, skip_if_finished=True))
    worker.say(f"{worker.stage.called(trial)}: {'pruned' if state == TrialState.PRUNED else 'failed'}: {reason}")
    return state
