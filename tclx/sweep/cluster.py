"""How does a sweep run on SLURM? As an array of workers, each of which takes trials until none is left.

One node a worker: its trials train there, through torchrun where they have several processes. Like a run's, the record is
written before sbatch hears of it and the job carries its token in its name, so a submission that was cut off is found again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tclx.errors import InputError, MachineError, Problem
from tclx.files import write_atomically
from tclx.launch.prepare import Say, new_submission
from tclx.launch.slurm import commands as slurm
from tclx.launch.slurm.script import batch_script, job_name
from tclx.launch.slurm.submit import refusal, submitting
from tclx.launch.snapshot import snapshot_code
from tclx.spec.launch import SlurmLaunch
from tclx.spec.rules import folders_read
from tclx.sweep import claims
from tclx.sweep.parts import Part, num_left
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder

STUDY = "study.json"
"""In a submission's folder: which study it works on."""


def check_launch(sweep: Sweep) -> SlurmLaunch:
    """The experiment's launch section, where a sweep can use it.

    Raises:
        InputError: its runs take several nodes.
    """
    launch = sweep.base.launch
    if not isinstance(launch, SlurmLaunch):
        raise InputError(Problem("launch.backend", "is not slurm", "--backend slurm submits a sweep"))
    if launch.num_nodes > 1:
        raise InputError(Problem("launch.num_nodes", f"a worker trains on one node, not on {launch.num_nodes}", "num_nodes: 1"))
    return launch


def submit_workers(parts: Sequence[Part], folder: StudyFolder, *, say: Say) -> str | None:
    """Submit the workers that the study lacks; returns the job's id, or None where there is nothing to submit.

    Raises:
        InputError: SLURM refuses; its words and the key to change.
        MachineError: SLURM does not answer, or is not here.
    """
    sweep = parts[0].sweep
    launch = check_launch(sweep)
    with submitting(folder.runs_dir) as lock:
        at_work = slurm.patiently(lambda: living_jobs(folder), say=say)
        missing = min(sweep.spec.num_workers, num_left(parts)) - len(at_work)
        if missing <= 0:
            going_on = f"{len(at_work)} workers are on their way already ({', '.join(at_work)})"
            say(f"{going_on if at_work else 'every trial has ended, none is needed'}; nothing was submitted")
            return None
        try:
            reads = list(folders_read(sweep.base))
            test = _script(launch, job_name(sweep.spec.name, "test"), folder.path, missing, reads=reads)
            slurm.patiently(lambda: slurm.sbatch(test, test_only=True), say=say)
            job_id = _submit(sweep, folder, launch, missing, lock=lock, say=say)
        except slurm.SlurmRefused as error:
            raise InputError(refusal(error)) from error
    say(f"submitted {missing} workers as job {job_id}; tclx sweep status {sweep.spec.name} shows the study")
    return job_id


def _script(
    launch: SlurmLaunch, name: str, folder: Path, num_workers: int, *, reads: list[Path], code: Path | None = None
) -> str:
    module = "tclx.sweep.task"
    return batch_script(
        launch, name=name, folder=folder, code=code, num_runs=num_workers, module=module, one_task=True, reads=reads
    )


def _submit(sweep: Sweep, folder: StudyFolder, launch: SlurmLaunch, num_workers: int, *, lock: int, say: Say) -> str:
    submission = new_submission(folder.runs_dir)
    name = job_name(sweep.spec.name, submission.name)
    script = _script(
        launch, name, submission, num_workers, code=snapshot_code(folder.runs_dir), reads=list(folders_read(sweep.base))
    )
    write_atomically(submission / STUDY, json.dumps({"study": str(folder.path), "max_restarts": launch.max_restarts}))
    (submission / "job.sbatch").write_text(script, encoding="utf-8")
    with folder.jobs.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "num_workers": num_workers, "submission": str(submission)}) + "\n")
    return slurm.sbatch_once(script, name, keeps_open=[lock], say=say)


def living_jobs(folder: StudyFolder) -> list[str]:
    """The workers' jobs that SLURM still has, found by the names that were written before they were submitted.

    Raises:
        SlurmSilent: SLURM cannot say.
    """
    if not folder.jobs.exists():
        return []
    names = [json.loads(line)["name"] for line in folder.jobs.read_text(encoding="utf-8").splitlines()]
    return [job.job_id for job in slurm.squeue_by_name(names) if job.lives]


def is_going_on(folder: StudyFolder) -> bool:
    """Whether somebody works on the study, or will."""
    if claims.living_workers(folder) or claims.has_pool(folder):
        return True
    try:
        return bool(living_jobs(folder))
    except slurm.SlurmSilent:
        return True


def cancel_workers(folder: StudyFolder, *, say: Say) -> int:
    """Ask every worker to save and stop; returns how many were asked.

    Raises:
        SlurmSilent, MachineError: SLURM cannot be asked.
    """
    if jobs := slurm.patiently(lambda: living_jobs(folder), say=say):
        with suppress(slurm.SlurmRefused):  # one of them ended a moment ago
            slurm.patiently(lambda: slurm.call(["scancel", *jobs]), say=say)
        say(f"asked {len(jobs)} jobs to save and stop: {', '.join(jobs)}")
        return len(jobs)
    asked = 0
    for worker in claims.living_workers(folder):
        pid, host = claims.process_of(folder, worker)
        if host != socket.gethostname() or pid is None:
            raise MachineError(f"worker {worker} lives on {host}: cancel it there")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            asked += 1
    if asked:
        say(f"asked {asked} workers on this machine to save and stop")
    return asked
