"""How is a run stopped, or set going again, wherever it is? The cluster is asked where it has the job; files reach the rest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tclx.launch.backend import BACKENDS
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import Say, prepared
from tclx.launch.watch import GOING_ON, RunStatus, watch_runs
from tclx.runs import RunFolder


def cancel_runs(folders: Sequence[Path], *, say: Say) -> list[RunStatus]:
    """Ask every run that goes on to save and stop; it can be resumed later.

    Returns:
        The runs that were asked.

    Raises:
        SlurmSilent, MachineError: SLURM cannot be asked; what is not on SLURM was asked before.
    """
    asked = [status for status in watch_runs(folders) if status.standing in (*GOING_ON, "unknown")]
    for status in asked:
        status.folder.write_json(status.folder.cancel, {"time": time.time(), "host": os.uname().nodename, "pid": os.getpid()})
        _signal_here(status.folder)
        say(f"{status.folder.run_id}: was {status.standing} at step {status.step}, asked to save and stop")
    jobs = [job for one in asked if (job := one.folder.read_job()) is not None]
    for name, backend in BACKENDS.items():
        backend.cancel([job for job in jobs if job.backend == name], say=say)
    return asked


def _signal_here(folder: RunFolder) -> None:
    """A process on this machine is told at once; one elsewhere finds the file at its next heartbeat."""
    state, job = folder.read_state(), folder.read_job()
    if job is not None and not job.is_local:
        return
    if state is not None and state.status == "running" and state.host == os.uname().nodename and state.pid:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(state.pid, signal.SIGTERM)


def resumable(folders: Sequence[Path], *, say: Say) -> list[PlannedRun]:
    """The runs among these that are neither finished nor going on, as they were asked for.

    Raises:
        InputError: another version of tclx wrote one.
    """
    found = []
    for status in watch_runs(folders):
        if status.standing == "finished" or status.standing in GOING_ON:
            say(f"{status.folder.run_id}: {status.standing}, nothing to resume")
        else:
            found.append(prepared(status.folder))
    return found
