"""How do runs happen on this machine? In a queue: each run is a process of its own, as many at once as there are slots.

The worker owns its run folder, its signals and its checkpoints. It runs in its own session, so that a Ctrl-C here reaches it
exactly once: this process passes the signal on to the one worker that decides, and waits for it to save.

One run at a time prints to the terminal. Where several train at once, or the terminal may be closed (`--detach`), each prints
into its run folder.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import psutil

import tclx
from tclx.errors import Interrupted, MachineError, RunFailed, TclxError
from tclx.files import Unreadable, beating, machine_error
from tclx.launch.ending import find_cause, tail
from tclx.launch.local import slots
from tclx.launch.local.slots import Slot
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import (
    Outcome,
    Say,
    check_beginnings,
    describe,
    hand_over,
    job_of,
    make_folder,
    new_submission,
    prepare,
    prepared,
    set_aside,
)
from tclx.launch.watch import GOING_ON, watch_runs
from tclx.printing import survive_unprintable
from tclx.runs import BEAT_SECONDS, RunFolder, RunState, is_held, read_submitted, write_submitted
from tclx.system import num_cpus
from tclx.terminal import printable
from tclx.track.notify import tell_of_run
from tclx.worker import ATTEMPT, HELD_BY_ANOTHER, INTERRUPTED_AND_SAVED, PRINT_INTO_LOG

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.05

INSISTED_SECONDS = 15.0
"""Asked a second time to stop, a run ends itself within 5 s. One that cannot, stopped by a signal perhaps, is killed then."""


def launch(
    runs: Sequence[PlannedRun],
    *,
    runs_dir: Path,
    again: bool = False,
    say: Say = lambda line: None,
    into_logs: bool = False,
    forgets_cancels: bool = True,
) -> list[Outcome]:
    """Run everything that is not finished yet, in order, several at once where there are slots.

    Args:
        runs: prerequisites before the runs that need them, as `plan_runs` returns them.
        runs_dir: where run folders are made.
        again: train from scratch what was asked for, also when it is finished; the old folder is kept as `<run id>.old-<n>`.
        say: receives a line for people at every turn.
        into_logs: the runs print into their folders, also one at a time.
        forgets_cancels: runs that were cancelled before now are asked for again.

    Returns:
        One outcome a run, in order; after an interruption those that were not started are missing.

    Raises:
        InputError: images are bad and `data.bad_images.policy` refuses them; nothing has been started.
        MachineError: the runs folder cannot be made, a run wants more GPUs or shared memory than there is, or files of the hub
            that cannot be had; nothing has been started.
    """
    for run in runs:
        slots.check_fits(run)
    make_folder(runs_dir)
    check_beginnings(runs, runs_dir=runs_dir, again=again, say=say)
    for run in runs if forgets_cancels else ():
        with suppress(OSError):  # no such folder yet; one that cannot be written is refused where it is prepared
            RunFolder(runs_dir / run.plan.run_id).cancel.unlink()
    queue = _Queue(runs, runs_dir, again, say, into_logs)
    with passing_signals(queue.interrupt):
        queue.work()
    return [queue.outcomes[run.plan.run_id] for run in runs if run.plan.run_id in queue.outcomes]


@dataclass
class _Started:
    """A run whose worker lives."""

    run: PlannedRun
    folder: RunFolder
    process: subprocess.Popen[bytes]
    slot: Slot
    attempt: str
    started_at: float
    closing: ExitStack
    asked_to_stop: bool = False
    killed_at: float = math.inf
    """When its processes are killed, should they live so long."""
    was_killed: bool = False

    def stop(self, number: int) -> None:
        """Ask it to save and stop; a second time, to end within seconds."""
        if self.asked_to_stop:
            self.killed_at = min(self.killed_at, time.monotonic() + INSISTED_SECONDS)
        self.asked_to_stop = True
        pass_on(number, self.folder, self.process.pid, since=self.started_at)

    def kill_if_overdue(self) -> None:
        """End it where it has not ended itself, for the queue waits for it."""
        if time.monotonic() > self.killed_at and self.process.poll() is None:
            self.was_killed = True
            kill_all(self.process.pid)


class _Queue:
    """Runs that wait, run and have ended."""

    def __init__(self, runs: Sequence[PlannedRun], runs_dir: Path, again: bool, say: Say, into_logs: bool) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._waiting = list(enumerate(runs, start=1))
        self._running: list[_Started] = []
        self._total = len(runs)
        self._runs_dir, self._again, self._say = runs_dir, again, say
        self._num_parallel = slots.num_parallel(runs)
        self._into_logs = into_logs or self._num_parallel > 1
        self._interrupted: int | None = None

    def work(self) -> None:
        """Until nothing waits and nothing runs."""
        while self._waiting or self._running:
            if self._interrupted is None:
                self._start_what_fits()
            else:
                self._waiting.clear()
            for started in self._running:
                started.kill_if_overdue()
            for started in [one for one in self._running if one.process.poll() is not None]:
                self._running.remove(started)
                self._ended(started)
            time.sleep(POLL_SECONDS)

    def interrupt(self, number: int) -> None:
        """Start nothing more, and ask what runs to save and stop."""
        self._interrupted = number
        for started in self._running:
            started.stop(number)

    def _start_what_fits(self) -> None:
        for place in list(self._waiting):
            number, run = place
            if len(self._running) >= self._num_parallel or self._interrupted is not None:
                return
            if any(one.run.plan.run_id == run.needs for one in self._running):
                continue
            needed = self.outcomes.get(run.needs) if run.needs else None
            if run.needs and needed is None and any(other.plan.run_id == run.needs for _, other in self._waiting):
                continue
            folder = RunFolder(self._runs_dir / run.plan.run_id)
            with self._only_this_run_fails(folder):
                outcome = self._without_training(run, folder, needed)
                slot = slots.take(run) if outcome is None else None
                if outcome is None and slot is None:
                    continue  # other runs have the GPUs
                self._waiting.remove(place)
                self._say(f"[{number}/{self._total}] {folder.run_id}")
                if slot is not None:
                    self._start(run, folder, slot)
                elif outcome is not None:
                    self._note(outcome)

    @contextmanager
    def _only_this_run_fails(self, folder: RunFolder) -> Iterator[None]:
        """A folder that cannot be read or written is its own run's end; the queue goes on with the others."""
        try:
            yield
        except OSError as error:
            self._failed(folder, machine_error(error, f"could not start {folder.run_id}"))
        except TclxError as error:
            self._failed(folder, error)

    def _failed(self, folder: RunFolder, error: TclxError) -> None:
        self._waiting = [place for place in self._waiting if place[1].plan.run_id != folder.run_id]
        self._note(Outcome(folder, "failed", str(error), error.exit_code))

    def _without_training(self, run: PlannedRun, folder: RunFolder, needed: Outcome | None) -> Outcome | None:
        """How a run ends that is not even started."""
        if needed is not None and needed.exit_code:
            why = "another process is training right now" if needed.ending == "held" else "did not finish"
            return Outcome(folder, "skipped", f"it starts from {run.needs}, which {why}", needed.exit_code)
        if not folder.path.is_dir():
            return None
        if is_held(folder):
            return Outcome(folder, "held", exit_code=RunFailed.exit_code)
        if folder.cancel.exists():
            reason = "cancelled while it waited"
            folder.write_state(replace(folder.read_state() or RunState("created"), status="interrupted", reason=reason))
            return Outcome(folder, "interrupted", reason, Interrupted.exit_code)
        job = folder.read_job()
        if job is not None and not job.is_local:
            (status,) = watch_runs([folder.path])
            if status.standing in (*GOING_ON, "unknown"):
                where = f"job {status.job_id} is {status.standing}" if status.job_id else status.reason
                return Outcome(folder, "already submitted", where, RunFailed.exit_code)
        state = folder.read_state()
        if state is not None and state.status == "finished" and not (self._again and run.asked_for):
            return Outcome(folder, "already finished")
        return None

    def _start(self, run: PlannedRun, folder: RunFolder, slot: Slot) -> None:
        if self._again and run.asked_for and folder.path.exists():
            self._say(f"the earlier run is kept as {set_aside(folder)}")
        state = folder.read_state()
        if state is not None and state.step:
            self._say(f"continuing at step {state.step} of {state.total_steps}")
        prepare(run, folder)
        if (job := folder.read_job()) is not None and not job.is_local:
            folder.job.unlink()  # over, or the run would not start here
        attempt = f"local-{secrets.token_hex(4)}"
        num_processes = run.spec.launch.num_processes
        environment = worker_environment(num_processes, self._num_parallel) | {ATTEMPT: attempt}
        if slot.gpus or self._num_parallel > 1:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        with ExitStack() as closing:
            closing.callback(slot.release)
            output = None
            if self._into_logs:
                environment[PRINT_INTO_LOG] = "1"  # each process into its own; this file gets torchrun's words, too
                folder.log(0).parent.mkdir(exist_ok=True)
                output = closing.enter_context(folder.log(0).open("ab"))
            started_at = time.time()
            process = subprocess.Popen(
                worker_command(folder, num_processes),
                env=environment,
                stdin=subprocess.DEVNULL if self._into_logs else None,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock.fileno() for lock in slot.locks],  # the GPUs stay taken should this process be killed
            )
            started = _Started(run, folder, process, slot, attempt, started_at, closing.pop_all())
        self._running.append(started)
        if self._interrupted is not None:  # the signal came while it was being started
            started.stop(self._interrupted)

    def _ended(self, started: _Started) -> None:
        started.closing.close()
        with self._only_this_run_fails(started.folder):
            outcome = outcome_of(
                started.run,
                started.folder,
                started.process.returncode,
                attempt=started.attempt,
                since=started.started_at,
                asked_to_stop=started.asked_to_stop,
                was_killed=started.was_killed,
            )
            if outcome.ending == "interrupted" and self._interrupted is None and not started.folder.cancel.exists():
                self._interrupted = signal.SIGINT  # somebody stopped the worker itself: do not go on with the next one
            self._note(outcome)
            tell_of_run(started.folder, started.run.spec.tracking.notify, say=self._say)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[outcome.folder.run_id] = outcome
        name = f"{outcome.folder.run_id}: " if self._num_parallel > 1 else ""
        self._say(f"{name}{describe(outcome)}")


def worker_command(folder: RunFolder, num_processes: int) -> list[str]:
    """The worker, through torchrun where it has several processes."""
    worker = ["tclx.worker", str(folder.path)]
    if num_processes == 1:
        return [sys.executable, "-m", *worker]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [sys.executable, "-m", *torchrun, "-m", *worker]


def worker_environment(num_processes: int, num_parallel: int = 1) -> dict[str, str]:
    """This process's environment, its code, nothing from the current directory; processes and runs share out the cores."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # `-m` would import a ./traceback.py before Python's own
    code = Path(tclx.__file__).parents[1]
    if str(code) not in sysconfig.get_paths().values():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    if num_processes * num_parallel > 1:
        share = num_cpus() // (num_processes * num_parallel)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    return environment


def pass_on(number: int, folder: RunFolder, pid: int, *, since: float) -> None:
    """Tell the process that decides: rank 0 once it trains (torchrun would kill it 30 seconds later), before that the child.

    Args:
        number: the signal.
        folder: of the run.
        pid: of the child that was started.
        since: when it was.
    """
    state = folder.read_state()
    trains = state is not None and state.status == "running" and state.updated_at >= since and state.pid
    if number == signal.SIGHUP:
        number = signal.SIGTERM  # a closed terminal is a reason to save, too, and workers know SIGTERM
    try:
        os.kill(state.pid if state is not None and trains and state.pid else pid, number)
    except ProcessLookupError:
        return  # it ended between the signal and here; wait() tells how


def kill_all(pid: int) -> None:
    """SIGKILL to a process and all that it started, in whatever sessions they are."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@contextmanager
def passing_signals(receive: Callable[[int], None], signals: Sequence[signal.Signals] = PASSED_ON) -> Iterator[None]:
    """Requests to stop go to `receive` while the block runs."""

    def handler(number: int, frame: FrameType | None) -> None:
        receive(number)

    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def outcome_of(
    run: PlannedRun,
    folder: RunFolder,
    exit_code: int,
    *,
    attempt: str,
    since: float,
    asked_to_stop: bool,
    was_killed: bool = False,
) -> Outcome:
    """How a run ended: what its processes and its state say, since torchrun replaces the worker's exit code with its own; the
    code where nothing was said.

    Args:
        run: as it was planned.
        folder: its folder.
        exit_code: of the process that was started; negative for a signal.
        attempt: this start of the run.
        since: when it was started.
        asked_to_stop: whether the process was sent a signal to stop, which ends a start-up at once.
        was_killed: whether it was killed because it did not end when it was asked a second time.
    """
    several = run.spec.launch.num_processes > 1
    if exit_code == HELD_BY_ANOTHER or (exit_code > 0 and several and _never_began(folder, attempt)):
        return Outcome(folder, "held", exit_code=RunFailed.exit_code)  # its state is the other's to write
    state = folder.read_state() or RunState("created")
    said_now = state.updated_at >= since and state.status != "created"
    if said_now and state.status == "finished":
        return Outcome(folder, "finished")
    cause = find_cause(folder, attempt, log=None, memory_key=None) if several else None
    if cause is not None and (
        cause.by_itself or cause.stood_still
    ):  # before any wish to stop: torchrun sends SIGTERM when one process has fallen
        state, said_now = replace(state, status="failed", reason=cause.reason), True
        folder.write_state(state)
    if said_now and state.status == "interrupted":
        return Outcome(folder, "interrupted", state.reason or f"saved at step {state.step}", Interrupted.exit_code)
    if said_now and state.status == "failed":
        known = exit_code in (TclxError.exit_code, 2, MachineError.exit_code)
        return Outcome(folder, "failed", state.reason, exit_code if known else RunFailed.exit_code)
    if exit_code == INTERRUPTED_AND_SAVED or (exit_code == 0 and several) or (asked_to_stop and not said_now):
        return Outcome(folder, "interrupted", "stopped before it began", Interrupted.exit_code)
    if was_killed:
        reason = "it did not end when it was asked a second time, and was killed; the newest checkpoint counts"
        folder.write_state(replace(state, status="interrupted", reason=reason))
        return Outcome(folder, "interrupted", reason, Interrupted.exit_code)
    sudden = _sudden_end(folder, attempt, exit_code)
    folder.write_state(RunState("failed", state.step, state.total_steps, sudden))
    return Outcome(folder, "failed", sudden, RunFailed.exit_code)


def _never_began(folder: RunFolder, attempt: str) -> bool:
    """Whether another attempt holds the run: torchrun does not pass on the worker's exit code."""
    try:
        newest = folder.read_attempt()
    except Unreadable:
        return False
    return newest is not None and newest.name != attempt and is_held(folder)


def _sudden_end(folder: RunFolder, attempt: str, exit_code: int) -> str:
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    _, began, printed = tail(folder.log(0)).rpartition(f"--- {attempt}, ")
    words = [line.strip() for line in printed.splitlines()[1:] if line.strip()] if began else []
    last = f", after printing: {words[-1]}" if words else ""
    return f"the worker ended without a word ({how}){last}; run the same command to continue from the newest checkpoint"


# ------------------------------------------------------------------------------------------------------------------ detached


def detach(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, say: Say) -> list[Outcome]:
    """Hand the runs to a queue of their own, which outlives this terminal; returns at once.

    Raises:
        InputError, MachineError: as `launch`; nothing has been started.
    """
    for run in runs:
        slots.check_fits(run)
    check_beginnings(runs, runs_dir=runs_dir, again=again, say=say)
    submission = new_submission(runs_dir)
    outcomes, queued = [], []
    for run in runs:
        folder = RunFolder(runs_dir.resolve() / run.plan.run_id)
        (status,) = watch_runs([folder.path]) if folder.path.is_dir() else (None,)
        if status is not None and (status.standing in GOING_ON or is_held(folder)):
            outcomes.append(Outcome(folder, "already submitted", f"it is {status.standing}"))
            continue
        if status is not None and status.standing == "finished" and not (again and run.asked_for):
            outcomes.append(Outcome(folder, "already finished"))
            continue
        if again and run.asked_for and folder.path.exists():
            say(f"the earlier run is kept as {set_aside(folder)}")
        prepare(run, folder)
        hand_over(folder, job_of(submission, "local"))
        queued.append((folder, run.needs))
        outcomes.append(Outcome(folder, "submitted", f"queued on {os.uname().nodename}"))
    write_submitted(submission, [folder for folder, _ in queued])
    (submission / "needs.json").write_text(json.dumps([needs for _, needs in queued]), encoding="utf-8")
    if queued:
        _start_queue(submission, [folder for folder, _ in queued])
    for outcome in outcomes:
        say(f"{outcome.folder.run_id}: {describe(outcome)}")
    return outcomes


def _start_queue(submission: Path, folders: Sequence[RunFolder]) -> None:
    (submission / "heartbeat").touch()
    with (submission / "queue.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tclx.launch.local.queue", str(submission)],
            env=worker_environment(1),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    for folder in folders:
        hand_over(folder, job_of(submission, "local", str(process.pid)))


def say_when(line: str) -> None:
    """A line of a log that nobody watches: with its time, to stderr."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), printable(line), file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Work off a submission that `detach` wrote; returns the worst exit code."""
    submission = Path(arguments[0])
    needs = json.loads((submission / "needs.json").read_text(encoding="utf-8"))
    folders = read_submitted(submission)
    runs = [prepared(folder, needed) for folder, needed in zip(folders, needs, strict=True)]

    with beating(submission / "heartbeat", every_seconds=BEAT_SECONDS):
        outcomes = launch(runs, runs_dir=folders[0].path.parent, say=say_when, into_logs=True, forgets_cancels=False)
    return max((outcome.exit_code for outcome in outcomes), default=0)


if __name__ == "__main__":
    survive_unprintable()
    sys.exit(main(sys.argv[1:]))
