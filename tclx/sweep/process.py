"""How does a worker train one run of a trial? In a process of its own, forked from a server that has imported everything.

Importing torch, timm and transformers takes longer than a small trial, so it is done once a worker. Nothing of one trial is
left to the next, and a trial that crashes takes nobody with it. Runs of several processes go through torchrun, which imports
anew.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from tclx.launch.local.queue import outcome_of, pass_on, worker_command
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import Outcome
from tclx.runs import Attempt, RunFolder
from tclx.worker import ATTEMPT, PRINT_INTO_LOG, print_into_run, work

_SERVER = multiprocessing.get_context("forkserver")
# The worker's module, which every child reads as its main one, then finds what it imports in place.
_SERVER.set_forkserver_preload(["tclx.train.loop", "tclx.sweep.trial"])


_FOR_THE_WORKER = (signal.SIGTERM, signal.SIGUSR2)


def start_server() -> None:
    """Before the first run. SLURM signals every process of a job: the server must not die of it, and its forks, which are
    born with these signals blocked, must not miss them before they can save."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_WORKER)
    try:
        resource_tracker.ensure_running()  # unblocks SIGTERM on its own account
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_WORKER)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class RunProcess:
    """A run that is being trained."""

    run: PlannedRun
    folder: RunFolder
    process: BaseProcess | subprocess.Popen[bytes]
    attempt: str
    started_at: float
    asked_to_stop: bool = False

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self.process.exitcode if isinstance(self.process, BaseProcess) else self.process.poll()

    def stop(self) -> None:
        """Ask it to save and stop."""
        self.asked_to_stop = True
        if self.process.pid is not None and self.exit_code() is None:
            pass_on(signal.SIGTERM, self.folder, self.process.pid, since=self.started_at)

    def outcome(self, exit_code: int) -> Outcome:
        """How it ended."""
        return outcome_of(
            self.run,
            self.folder,
            exit_code,
            attempt=self.attempt,
            since=self.started_at,
            asked_to_stop=self.asked_to_stop,
        )


def start(run: PlannedRun, folder: RunFolder, *, environment: Mapping[str, str], takes_over: bool) -> RunProcess:
    """Train a prepared run; what it prints goes to its log.

    Args:
        run: as it was planned.
        folder: prepared.
        environment: variables beside this process's own.
        takes_over: end an older attempt that is still alive: the trial was another worker's.
    """
    attempt = f"trial-{secrets.token_hex(4)}"
    started_at = time.time()
    if run.spec.launch.num_processes == 1:
        process = _SERVER.Process(target=_train, args=(folder.path, attempt, dict(environment), takes_over), daemon=False)
        process.start()
        return RunProcess(run, folder, process, attempt, started_at)
    folder.log(0).parent.mkdir(exist_ok=True)
    with folder.log(0).open("ab") as log:
        torchrun = subprocess.Popen(
            worker_command(folder, run.spec.launch.num_processes),
            env={**os.environ, **environment, ATTEMPT: attempt, PRINT_INTO_LOG: "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return RunProcess(run, folder, torchrun, attempt, started_at)


def _train(path: Path, attempt: str, environment: dict[str, str], takes_over: bool) -> None:
    """In the forked process."""
    os.setsid()  # a Ctrl-C in the terminal is the worker's to pass on
    os.environ.update(environment)
    folder = RunFolder(path)
    print_into_run(folder, attempt)
    threading.Thread(target=_stop_when_orphaned, name="parent", daemon=True).start()
    sys.exit(work(folder, Attempt(attempt, os.environ.get("SLURM_JOB_ID")), takes_over=takes_over))


def _stop_when_orphaned() -> None:
    """A run whose worker was killed saves and stops, so that the next worker can go on with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
