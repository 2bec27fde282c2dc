"""What does a sweep's worker do? `python -m tclx.sweep.worker STUDY_FOLDER`: a trial after the other, until none is left.

Workers are equals, without a coordinator. Each first looks for a trial whose worker is gone, and goes on with it; else it asks
Optuna for the next one, as long as there are some to try; then it helps to confirm what the search found, and waits where the
trainings of others decide what comes next. The last one brings the study's run on W&B up to date.

| exit code | why |
|---|---|
| 0 | nothing is left to try that nobody works on |
| 75 | asked to stop; the trial is saved |
| 1, 2, 3 | a `TclxError`'s own code |
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from optuna.trial import FrozenTrial, Trial, TrialState

from tclx.errors import MachineError, TclxError
from tclx.launch.local.queue import passing_signals, say_when, worker_environment
from tclx.printing import survive_unprintable
from tclx.runs import RunFolder
from tclx.sweep import claims, process, tracking
from tclx.sweep.claims import Claim
from tclx.sweep.searched import Sweep
from tclx.sweep.stage import Search, Stage, most_at_once, stages_of
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder, counted
from tclx.sweep.trial import Stopped, Worker, give_up, run_trial
from tclx.worker import INTERRUPTED_AND_SAVED

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)

WAIT_SECONDS = 2.0
POLL_SECONDS = 0.1


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
    sweep, *_ = (part.read_sweep() for part in folder.parts())
    _share_cores(sweep)
    process.start_server()
    name = claims.new_worker()
    asked: list[int] = []  # the signals that told this worker to stop
    with passing_signals(asked.append, STOPPING), claims.living(folder, name):
        # Its own seed: workers, and a worker that was started again, must not draw the same trials.
        seed = int.from_bytes(os.urandom(4)) if sweep.spec.num_workers > 1 else _num_trials(folder)
        stages = patiently(lambda: stages_of(folder, seed=seed), say=say_when)
        while not asked:
            found = _next(stages, folder, name)
            if found is None:
                for stage in stages:
                    if isinstance(stage, Search):
                        tracking.publish(stage.study, stage.sweep, stage.folder, say=say_when, stopping=lambda: bool(asked))
                return 0
            if found == "wait":
                _wait(asked)
                continue
            exit_code = _run(found, asked)
            if exit_code is not None:
                return exit_code
        return INTERRUPTED_AND_SAVED


class Chosen(NamedTuple):
    """A trial that is this worker's."""

    stage: Stage
    trial: Trial
    claim: Claim


def _run(chosen: Chosen, asked: list[int]) -> int | None:
    """Train a trial; returns the exit code where the worker is to end."""
    stage, trial, claim = chosen
    say_when(f"{stage.called(trial)}: {'taken over' if claim.starts > 1 else 'begins'}")
    worker = Worker(stage, say_when, lambda: bool(asked))
    try:
        run_trial(trial, claim, worker)
    except Stopped:
        claims.release(stage.folder, trial.number)
        return INTERRUPTED_AND_SAVED
    except MachineError:
        claims.release(stage.folder, trial.number)
        raise
    except Exception as error:
        give_up(trial, error, worker)
        raise
    return None


def _wait(asked: list[int]) -> None:
    until = time.monotonic() + WAIT_SECONDS * random.uniform(0.5, 1.5)  # many workers do not ask at once
    while not asked and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _num_trials(folder: StudyFolder) -> int:
    """How far the study is: a single worker that is started again goes on with other draws, the same ones every time."""
    return sum(len(list(part.claims.glob("*.json"))) for part in folder.parts())


def _share_cores(sweep: Sweep) -> None:
    """Before the server that trials are forked from is started: torch reads it when it is imported."""
    workers = sweep.spec.num_workers if sweep.base.launch.backend == "local" else 1
    os.environ.update(worker_environment(sweep.base.launch.num_processes, workers))


def _next(stages: Sequence[Stage], folder: StudyFolder, name: str) -> Chosen | Literal["wait"] | None:
    """A trial whose worker is gone, else a new one, made this worker's; None where there is nothing to do.

    `wait` where what others work on decides whether there is.
    """
    with folder.lock():
        # All of it anew when the storage fails: a trial may have begun there without an answer, and is an orphan then.
        return patiently(lambda: _choose(stages, folder, name), say=say_when)


def _choose(stages: Sequence[Stage], folder: StudyFolder, name: str) -> Chosen | Literal["wait"] | None:
    for stage in stages:
        orphan = next(_orphans(counted(stage.study)[TrialState.RUNNING], stage.folder), None)
        if orphan is not None:
            trial = Trial(stage.study, orphan._trial_id)
            step = _saved_step(orphan, stage.folder)
            return Chosen(stage, trial, claims.take(stage.folder, orphan.number, name, step=step))
    for stage in stages:
        begun = stage.begin(say=say_when)
        if begun is not None:
            return Chosen(stage, begun, claims.take(stage.folder, begun.number, name, step=0))
    if not any(stage.is_waiting() for stage in stages):
        return None
    # Of many workers only so many can come to be needed again; the others leave their GPUs to somebody else.
    return "wait" if name in sorted(claims.living_workers(folder))[: most_at_once(stages)] else None


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


if __name__ == "__main__":
    survive_unprintable()
    sys.exit(main(sys.argv[1:]))
