"""How do runs happen on this machine? One after the other, each a process of its own that is followed until it ends.

The worker owns its run folder, its signals and its checkpoints. It runs in its own session, so that a Ctrl-C here reaches it
exactly once: this process passes the signal on to the one worker that decides, and waits for it to save.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

import tclx
from tclx.data.facts import refuse_bad_images
from tclx.errors import Interrupted, MachineError, RunFailed, TclxError
from tclx.launch.order import PlannedRun
from tclx.runs import RunFolder, RunState, machine_error

Ending = Literal["finished", "already finished", "interrupted", "failed", "held", "skipped"]
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


class Outcome(NamedTuple):
    """How one run ended."""

    folder: RunFolder
    ending: Ending
    reason: str | None = None
    exit_code: int = 0


def launch(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool = False, say: Say = lambda line: None) -> list[Outcome]:
    """Run everything that is not finished yet, in order.

    Args:
        runs: prerequisites before the runs that need them, as `plan_runs` returns them.
        runs_dir: where run folders are made.
        again: train from scratch what was asked for, also when it is finished; the old folder is kept as `<run id>.old-<n>`.
        say: receives a line for people at every turn.

    Returns:
        One outcome a run, in order; after an interruption the remaining ones are missing.

    Raises:
        InputError: pictures are bad and `data.bad_images.policy` refuses them; nothing has been started.
        MachineError: a run folder cannot be made.
    """
    check_pictures(runs, runs_dir=runs_dir, again=again, say=say)
    outcomes: dict[str, Outcome] = {}
    for number, run in enumerate(runs, start=1):
        folder = RunFolder(runs_dir / run.plan.run_id)
        say(f"[{number}/{len(runs)}] {folder.run_id}")
        needed = outcomes.get(run.needs) if run.needs else None
        if needed is not None and needed.exit_code:
            outcome = Outcome(folder, "skipped", f"it starts from {run.needs}, which did not finish", needed.exit_code)
        else:
            outcome = _run_one(run, folder, again=again and run.asked_for, say=say)
        outcomes[folder.run_id] = outcome
        say(describe(outcome))
        if outcome.ending == "interrupted":
            break
    return list(outcomes.values())


def check_pictures(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, say: Say) -> None:
    """Open the pictures of every run that is about to take its first step, as its policy asks; each data set once.

    Raises:
        InputError: with the bad pictures.
    """
    beginning = []
    for run in runs:
        state = RunFolder(runs_dir / run.plan.run_id).read_state()
        if state is None or (state.step == 0 and state.status != "finished") or (again and run.asked_for):
            beginning.append(run.spec.data)
    for data in dict.fromkeys(beginning):
        found = refuse_bad_images(data)
        if found.num_pictures:
            say(found.summary())


def describe(outcome: Outcome) -> str:
    """One line for people."""
    reason = f": {outcome.reason}" if outcome.reason else ""
    return {
        "finished": f"finished: {outcome.folder.path}",
        "already finished": f"finished earlier, nothing to do (--again trains it from scratch): {outcome.folder.path}",
        "interrupted": f"interrupted{reason}; run the same command to continue",
        "failed": f"failed{reason}",
        "held": f"another process is training it right now: {outcome.folder.path}",
        "skipped": f"skipped{reason}",
    }[outcome.ending]


def _run_one(run: PlannedRun, folder: RunFolder, *, again: bool, say: Say) -> Outcome:
    if folder.path.is_dir() and _is_held(folder):
        return Outcome(folder, "held", exit_code=RunFailed.exit_code)
    if again and folder.path.exists():
        say(f"the earlier run is kept as {_set_aside(folder)}")
    state = folder.read_state()
    if state is not None and state.status == "finished":
        return Outcome(folder, "already finished")
    if state is not None and state.step:
        say(f"continuing at step {state.step} of {state.total_steps}")
    prepare(run, folder)
    started_at = time.time()
    exit_code = _follow(folder, run.spec.launch.num_processes, started_at)
    return _outcome(folder, exit_code, started_at)


def prepare(run: PlannedRun, folder: RunFolder) -> None:
    """Make the run folder and write what was asked and what will happen.

    Raises:
        MachineError: the folder cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, f"could not make {folder.path}") from error
    folder.write_json(folder.spec, run.spec.model_dump(mode="json"))
    folder.write_json(folder.plan, run.plan.to_json())
    if folder.read_state() is None:
        folder.write_state(RunState("created", total_steps=run.plan.total_steps))


def worker_command(folder: RunFolder, num_processes: int) -> list[str]:
    """The worker, through torchrun where it has several processes."""
    worker = ["tclx.worker", str(folder.path)]
    if num_processes == 1:
        return [sys.executable, "-m", *worker]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [sys.executable, "-m", *torchrun, "-m", *worker]


def worker_environment(num_processes: int) -> dict[str, str]:
    """This process's environment, its code, nothing from the current directory; several processes share out the cores."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # `-m` would import a ./traceback.py before Python's own
    code = Path(tclx.__file__).parents[1]
    if str(code) not in sysconfig.get_paths().values():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    if num_processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    return environment


def _follow(folder: RunFolder, num_processes: int, started_at: float) -> int:
    command, environment = worker_command(folder, num_processes), worker_environment(num_processes)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    with _passing_signals(lambda number: _pass_on(number, process, folder, started_at)):
        return process.wait()


def _pass_on(number: int, process: subprocess.Popen[bytes], folder: RunFolder, started_at: float) -> None:
    """Tell the process that decides: rank 0 once it trains (torchrun would kill it 30 seconds later), before that the child."""
    state = folder.read_state()
    trains = state is not None and state.status == "running" and state.updated_at >= started_at and state.pid
    if number == signal.SIGHUP:
        number = signal.SIGTERM  # a closed terminal is a reason to save, too, and workers know SIGTERM
    try:
        os.kill(state.pid if state is not None and trains and state.pid else process.pid, number)
    except ProcessLookupError:
        return  # it ended between the signal and here; wait() tells how


@contextmanager
def _passing_signals(receive: Callable[[int], None]) -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        receive(number)

    before = {number: signal.signal(number, handler) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _outcome(folder: RunFolder, exit_code: int, started_at: float) -> Outcome:
    """What the state says, since torchrun replaces the worker's exit code with its own; the code where no state was written."""
    state = folder.read_state()
    if state is None or state.updated_at < started_at or state.status in ("created", "running"):
        return Outcome(folder, "failed", _sudden_end(exit_code), RunFailed.exit_code)
    if state.status == "finished":
        return Outcome(folder, "finished")
    if state.status == "interrupted":
        return Outcome(folder, "interrupted", state.reason or f"saved at step {state.step}", Interrupted.exit_code)
    known = exit_code in (TclxError.exit_code, 2, MachineError.exit_code)
    return Outcome(folder, "failed", state.reason, exit_code if known else RunFailed.exit_code)


def _sudden_end(exit_code: int) -> str:
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"the worker ended without a word ({how}); run the same command to continue from the newest checkpoint"


def _is_held(folder: RunFolder) -> bool:
    try:
        with folder.lock() as free:
            return not free
    except OSError as error:
        raise machine_error(error, f"could not lock {folder.path}") from error


def _set_aside(folder: RunFolder) -> Path:
    number = 1
    while (kept := folder.path.with_name(f"{folder.run_id}.old-{number}")).exists():
        number += 1
    try:
        return folder.path.rename(kept)
    except OSError as error:
        raise machine_error(error, f"could not set {folder.path} aside") from error
