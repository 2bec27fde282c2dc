"""What does a SLURM job do around a run? `python -m tclx.launch.task rank|after SUBMISSION [CODE]`.

`rank` is started once per training process by srun. It finds its run, refuses one that was handed to a newer job, prints into
the run folder, tells torch.distributed who it is, and becomes the worker.

`after` is started once by the batch script's shell when all ranks have ended, whichever way. It says in the run folder why the
run ended, and decides: finished; stopped at SLURM's request, so requeue; killed without a word, so requeue unless that happened
twice at the same step; stood still, so requeue unless that happened four times at the same step; failed by itself, so leave it
failed. A node on which runs of this kind ended twice is left out from then on. A cancelled job is never brought back.

This module's name stands in the scripts of jobs that wait in a queue, so it stays where it is.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from tclx.errors import InputError, MachineError, Problem, RunFailed, TclxError
from tclx.launch.ending import find_cause, last_lines
from tclx.launch.slurm import commands as slurm
from tclx.launch.snapshot import check_running_copy
from tclx.printing import survive_unprintable
from tclx.runs import MEETING_FILE, MEETING_HOST, Attempt, RunFolder, RunState, read_submitted
from tclx.spec.launch import SlurmLaunch
from tclx.spec.load import load_spec_json
from tclx.terminal import printable
from tclx.track.notify import tell_of_run
from tclx.train.stopping import ignore_requests
from tclx.worker import INTERRUPTED_AND_SAVED, print_into_run, work

WAIT_TO_BE_ENDED_SECONDS = 300
"""SLURM ends a requeued job within seconds; to exit before would make it a completed one."""

SIGNALLED = 128
"""A shell's exit code of a program that a signal ended is this and the signal's number."""

STILL_OURS = ("RUNNING", "SUSPENDED", None)
"""States of a job that nobody has ended: not scancel, not an administrator. None is unknown."""

_REQUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD")

_SAME_STEP_LIMIT = 2
"""Ends without a word at the same step: the second is no accident."""

_STILL_LIMIT = 4
"""Ends at the same step because nothing moved: after two on a bad node, which is left out then, two more are no accident."""

_BAD_NODE_LIMIT = 2
"""So many ends of a run on a node, killed without a word or standing still: it is left out."""

_LEAVE_OUT_SECONDS = 20.0
"""A requeued job's processes are ended after KillWait, 30 s by default: until then it can be changed."""

_NO_PROGRESS_LIMIT = 3
"""Stops in a row at the same step: an allocation is too short for even one."""


def main(arguments: list[str]) -> int:
    """Do the part that is asked for; returns the exit code."""
    if (len(arguments), *arguments[:1]) not in ((2, "rank"), (3, "after")):
        print("usage: python -m tclx.launch.task rank|after SUBMISSION [CODE]", file=sys.stderr)
        return InputError.exit_code
    submission = Path(arguments[1])
    try:
        folder = run_of_task(submission, os.environ)
        if arguments[0] == "rank":
            return run_rank(folder, submission)
        return look_after(folder, submission, exit_code=int(arguments[2]))
    except TclxError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code


def run_of_task(submission: Path, environment: Mapping[str, str]) -> RunFolder:
    """The run of this task of the array.

    Raises:
        InputError: the run was handed to a newer job since; this one has nothing to do.
    """
    folder = read_submitted(submission)[int(environment.get("SLURM_ARRAY_TASK_ID", "0"))]
    job = folder.read_job()
    if job is None or job.token != submission.name:
        raise InputError(Problem("", f"{folder.path} was handed to another job since this one was submitted; it does nothing"))
    return folder


def run_rank(folder: RunFolder, submission: Path) -> int:
    """Train as one of the job's processes.

    Raises:
        MachineError: its code is not that of its submission.
    """
    check_running_copy()
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ.update({name: os.environ[slurm_name] for name, slurm_name in names.items()})
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    attempt = _attempt(os.environ)
    print_into_run(folder, attempt.name)
    if int(os.environ["WORLD_SIZE"]) > 1:
        os.environ[MEETING_FILE] = str(submission / "meeting" / attempt.name)
        os.environ[MEETING_HOST] = _own_address()
    return work(folder, attempt, takes_over=True)


def _attempt(environment: Mapping[str, str]) -> Attempt:
    restart = int(environment.get("SLURM_RESTART_COUNT") or "0")
    return Attempt(f"job{job_id_of(environment)}.{restart}", job_id_of(environment), restart)


def job_id_of(environment: Mapping[str, str]) -> str:
    """This job's id, in an array with its index."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def _own_address() -> str:
    """Under which the other nodes reach this one: what SLURM itself uses, since names of nodes need not resolve."""
    node = os.environ.get("SLURMD_NODENAME", "")
    try:
        found = re.search(r"NodeAddr=(\S+)", slurm.call(["scontrol", "show", "node", node, "--oneliner"])) if node else None
    except (TclxError, slurm.SlurmRefused):
        found = None
    return found[1] if found else socket.gethostname()


# --------------------------------------------------------------------------------------------------------------- afterwards


def look_after(folder: RunFolder, submission: Path, *, exit_code: int) -> int:
    """Say why the run ended, and requeue the job where the run is to go on; returns the job's exit code.

    Args:
        folder: of the run.
        submission: of the job.
        exit_code: srun's.
    """
    ignore_requests()
    attempt = _attempt(os.environ)
    state = folder.read_state() or RunState("created")
    newest = folder.read_attempt()
    began = newest is not None and newest.name == attempt.name
    if state.status == "finished":
        _tell(folder)
        return 0
    if newest is not None and not began and newest.job_id == attempt.job_id and newest.restart > attempt.restart:
        return RunFailed.exit_code  # the job was started again elsewhere; its state is not ours to judge
    launch = load_spec_json(folder.spec).launch
    if not isinstance(launch, SlurmLaunch):
        raise RuntimeError(f"{folder.path} was submitted with launch.backend {launch.backend}")
    log = submission / f"{job_id_of(os.environ)}_0_log.out"
    job = state_of_job(attempt.job_id or "")
    if job in _REQUEUED and not folder.cancel.exists():
        return RunFailed.exit_code  # its node was given up while this start of it lived on; the next one goes on
    if folder.cancel.exists() or job not in STILL_OURS:
        return _end(
            folder,
            replace(state, status="interrupted", reason=f"ended from outside (cancelled); saved at step {folder.saved_step()}"),
        )
    if not began and exit_code > SIGNALLED:
        return _go_on(folder, state, attempt, launch, why="killed", said="the job was ended while it started")
    if not began:
        lines = "\n".join(last_lines(log))
        reason = f"the job ended before training began (exit code {exit_code}); {log} ends with:\n{lines}"
        return _end(folder, replace(state, status="failed", reason=reason))
    said_now = newest is not None and state.updated_at >= newest.started_at
    own_word = state.reason if said_now and state.status == "failed" else None
    cause = find_cause(folder, attempt.name, log=log, memory_key="launch.memory_gb", own_word=own_word)
    if cause.by_itself:  # before any wish to stop: when one process falls, srun sends SIGTERM to the others
        return _end(folder, replace(state, status="failed", reason=cause.reason))
    if cause.stood_still:
        return _go_on(folder, state, attempt, launch, why="stood_still", said=cause.reason, node=cause.node)
    if said_now and state.status == "interrupted":
        return _go_on(folder, state, attempt, launch, why="stopped", said=state.reason)
    return _go_on(folder, state, attempt, launch, why="killed", said=cause.reason, node=cause.node)


def state_of_job(job_id: str) -> str | None:
    """The controller's word on a job of ours; None where it has none. A job that is to be preempted still runs."""
    for _ in range(3):
        try:
            return slurm.job_state(job_id)
        except MachineError:  # silent, or no scontrol on this node
            time.sleep(2)
    return None


_LIMITS = {"stopped": _NO_PROGRESS_LIMIT, "killed": _SAME_STEP_LIMIT, "stood_still": _STILL_LIMIT}


def _go_on(
    folder: RunFolder,
    state: RunState,
    attempt: Attempt,
    launch: SlurmLaunch,
    *,
    why: str,
    said: str | None,
    node: str | None = None,
) -> int:
    """Requeue the job, unless it was started often enough."""
    step, limit = folder.saved_step(), _LIMITS[why]
    if attempt.restart >= launch.max_restarts:
        reason = f"{said}; it was restarted {attempt.restart} times, and launch.max_restarts is {launch.max_restarts}"
        return _end(folder, replace(state, status="failed", step=step, reason=reason))
    if _times_at_this_step(folder, why, step) + 1 >= limit:
        advice = "raise launch.time_limit_minutes" if why == "stopped" else "its logs and errors/ may say more"
        reason = f"{said}, {limit} times at step {step}: {advice}; tclx resume tries again"
        return _end(folder, replace(state, status="failed", step=step, reason=reason))
    folder.add_event(why, step=step, attempt=attempt.name, reason=said, **({"node": node} if node else {}))
    folder.write_state(replace(state, status="interrupted", step=step, reason=f"{said}; requeued"))
    try:
        return requeue(attempt.job_id or "", without=bad_nodes(folder))
    except (slurm.SlurmRefused, TclxError) as error:
        return _end(folder, replace(state, status="interrupted", step=step, reason=f"{said}; could not requeue: {error}"))


def requeue(job_id: str, *, without: Sequence[str] = ()) -> int:
    """Have this job start again, and wait to be ended for it; returns its exit code should nobody end it.

    Args:
        job_id: of this job.
        without: nodes that it is not to be started on.

    Raises:
        SlurmRefused, TclxError: it cannot be requeued.
    """
    slurm.patiently(lambda: slurm.call(["scontrol", "requeue", job_id]), say=print)
    if without:
        _leave_out(job_id, without)
    time.sleep(WAIT_TO_BE_ENDED_SECONDS)
    return INTERRUPTED_AND_SAVED


def _leave_out(job_id: str, nodes: Sequence[str]) -> None:
    """Keep the requeued job from some nodes; where SLURM refuses, it may be started there again."""
    deadline = time.monotonic() + _LEAVE_OUT_SECONDS
    while True:
        try:
            print(f"left out from now on: {', '.join(slurm.leave_out(job_id, nodes)) or 'no node, too few would be left'}")
            return
        except (slurm.SlurmRefused, TclxError) as error:
            if time.monotonic() > deadline:
                print(f"could not leave out {', '.join(nodes)}: {error}", file=sys.stderr)
                return
            time.sleep(0.5)


def bad_nodes(folder: RunFolder) -> list[str]:
    """The nodes on which this run has ended too often without its own doing."""
    ended = (event.get("node") for event in folder.read_events() if event["event"] in ("killed", "stood_still"))
    return sorted(node for node, times in Counter(ended).items() if node and times >= _BAD_NODE_LIMIT)


def _times_at_this_step(folder: RunFolder, why: str, step: int) -> int:
    """How often in a row the run has ended this way without getting on."""
    stops = [event for event in folder.read_events() if event["event"] in _LIMITS]
    return sum(1 for _ in takewhile(lambda event: (event["event"], event.get("step")) == (why, step), reversed(stops)))


def _end(folder: RunFolder, state: RunState) -> int:
    print(printable(f"{state.status}: {state.reason}"), file=sys.stderr)
    folder.write_state(state)
    with suppress(MachineError):  # a full disk may be what is being reported; the state has a reserve, events have none
        folder.add_event(state.status, step=state.step, reason=state.reason)
    _tell(folder)
    return RunFailed.exit_code


def _tell(folder: RunFolder) -> None:
    """Whoever is to know; what is printed here is in the job's log."""
    notify = load_spec_json(folder.spec).tracking.notify
    tell_of_run(folder, notify, say=lambda line: print(printable(line), file=sys.stderr))


if __name__ == "__main__":
    survive_unprintable()
    sys.exit(main(sys.argv[1:]))
