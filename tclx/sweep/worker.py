"""What does a sweep's worker do? `python -m tclx.sweep.worker STUDY_FOLDER`: a trial after the other, until none is left.

Workers are equals, without a coordinator. Each first looks for a trial whose worker is gone, and goes on with it; else it asks
Optuna for the next one, as long as there are some to try. The last one brings the study's run on W&B up to date.

| exit code | why |
|---|---|
| 0 | nothing is left to try that nobody works on |
| 75 | asked to stop; the trial is saved |
| 1, 2, 3 | a `TclxError`'s own code |
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from tclx.errors import MachineError, TclxError
from tclx.launch.local.queue import passing_signals, say_when, worker_environment
from tclx.printing import survive_unprintable
from tclx.runs import RunFolder
from tclx.sweep import claims, process, tracking
from tclx.sweep.claims import Claim
from tclx.sweep.load import Sweep
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder, counted, open_study
from tclx.sweep.trial import Stopped, Worker, give_up, run_trial
from tclx.worker import INTERRUPTED_AND_SAVED

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)

MOST_FAILURES = 5
"""So many failed trials and not a single good one: it is not the parameters."""


def main(arguments: list[str]) -> int:
    """Work on a study; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m tclx.sweep.worker STUDY_FOLDER", file=sys.stderr)
        return 2
    try:
        return work(StudyFolder(Path(arguments[0])))
    except TclxError as error:
        say_when(f"error: {error}")
        return error.exit_code


def work(folder: StudyFolder) -> int:
    """Trial after trial; returns the exit code.

    Raises:
        InputError, MachineError: the study cannot be read, its storage is away, a disk is full.
    """
    sweep = folder.read_sweep()
    _share_cores(sweep)
    process.start_server()
    name = claims.new_worker()
    asked: list[int] = []  # the signals that told this worker to stop
    with passing_signals(asked.append, STOPPING), claims.living(folder, name):
        # Its own seed: workers, and a worker that was started again, must not draw the same trials.
        seed = int.from_bytes(os.urandom(4)) if sweep.spec.num_workers > 1 else _num_trials(folder)
        study = patiently(lambda: open_study(folder, sweep, seed=seed), say=say_when)
        worker = Worker(study, sweep, folder, say_when, lambda: bool(asked))
        while not asked:
            found = _next(worker, name)
            if found is None:
                tracking.publish(study, sweep, folder, say=say_when, stopping=worker.stopping)
                return 0
            trial, claim = found
            say_when(f"trial {trial.number}: {'taken over' if claim.starts > 1 else 'begins'}")
            try:
                run_trial(trial, claim, worker)
            except Stopped:
                claims.release(folder, trial.number)
                return INTERRUPTED_AND_SAVED
            except MachineError:
                claims.release(folder, trial.number)
                raise
            except Exception as error:
                give_up(trial, error, worker)
                raise
        return INTERRUPTED_AND_SAVED


def _num_trials(folder: StudyFolder) -> int:
    """How far the study is: a single worker that is started again goes on with other draws, the same ones every time."""
    return len(list(folder.claim(0).parent.glob("*.json")))


def _share_cores(sweep: Sweep) -> None:
    """Before the server that trials are forked from is started: torch reads it when it is imported."""
    workers = sweep.spec.num_workers if sweep.base.launch.backend == "local" else 1
    os.environ.update(worker_environment(sweep.base.launch.num_processes, workers))


def _next(worker: Worker, name: str) -> tuple[Trial, Claim] | None:
    """A trial whose worker is gone, else a new one, made this worker's; None where there is nothing to do."""
    with worker.folder.lock():
        # All of it anew when the storage fails: a trial may have begun there without an answer, and is an orphan then.
        return patiently(lambda: _choose(worker, name), say=say_when)


def _choose(worker: Worker, name: str) -> tuple[Trial, Claim] | None:
    trials = counted(worker.study)
    orphan = next(_orphans(trials[TrialState.RUNNING], worker.folder), None)
    if orphan is not None:
        trial = Trial(worker.study, orphan._trial_id)
        return trial, claims.take(worker.folder, orphan.number, name, step=_saved_step(orphan, worker.folder))
    begun = sum(len(some) for state, some in trials.items() if state != TrialState.WAITING)
    if begun >= worker.sweep.spec.num_trials or _is_exhausted(worker.study):
        return None
    if _time_is_up(worker):
        say_when("max_hours have passed: no further trial begins")
        return None
    if len(trials[TrialState.FAIL]) >= MOST_FAILURES and not trials[TrialState.COMPLETE]:
        raise MachineError(_all_failed(trials[TrialState.FAIL]))
    trial = worker.study.ask()
    return trial, claims.take(worker.folder, trial.number, name, step=0)


def _orphans(running: list[FrozenTrial], folder: StudyFolder) -> Iterator[FrozenTrial]:
    """Trials whose worker is gone, or that nobody claims: they are begun and claimed under the study's lock, which we hold."""
    for trial in running:
        claim = claims.read_claim(folder, trial.number)
        if claim is None or not claims.is_alive(folder, claim):
            yield trial


def _saved_step(trial: FrozenTrial, folder: StudyFolder) -> int:
    """Steps that the trial's runs have saved, all seeds together."""
    states = [RunFolder(folder.runs_dir / run_id).read_state() for run_id in trial.user_attrs.get("runs", [])]
    return sum(state.step for state in states if state is not None)


def _is_exhausted(study: optuna.Study) -> bool:
    return isinstance(study.sampler, optuna.samplers.GridSampler) and study.sampler.is_exhausted(study)


def _time_is_up(worker: Worker) -> bool:
    limit = worker.sweep.spec.max_hours
    return limit is not None and worker.folder.hours_since_start() >= limit


def _all_failed(failed: list[FrozenTrial]) -> str:
    last = failed[-1].user_attrs.get("reason", "no reason is known")
    return f"the first {len(failed)} trials have failed, so the sweep stops; the last one: {last}"


if __name__ == "__main__":
    survive_unprintable()
    sys.exit(main(sys.argv[1:]))
