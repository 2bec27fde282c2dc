"""How are runs handed to SLURM? In arrays of equals, chained where one starts from another, and never twice.

A run's record is written before sbatch hears of it, with a token that is also in the job's name. So a submission that is cut
off anywhere is found again by that name; and a job whose token is no longer its run's does nothing.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tclx.errors import InputError, MachineError, Problem
from tclx.files import machine_error
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import (
    SUBMISSIONS,
    Outcome,
    Say,
    check_beginnings,
    describe,
    hand_over,
    job_of,
    new_submission,
    prepare,
    set_aside,
)
from tclx.launch.slurm import commands as slurm
from tclx.launch.slurm.script import batch_script, job_name, refuse_unwritable
from tclx.launch.snapshot import CODE_FOLDER, snapshot_code
from tclx.launch.watch import GOING_ON, RunStatus, watch_runs
from tclx.runs import Job, RunFolder, is_held, read_submitted, write_submitted
from tclx.spec.launch import SlurmLaunch
from tclx.spec.rules import folders_read

_KEYS = (
    ("accounting/qos policy", "launch.account or launch.qos"),
    ("partition", "launch.partition"),
    ("account", "launch.account"),
    ("qos", "launch.qos"),
    ("time limit", "launch.time_limit_minutes"),
    ("feature", "launch.constraint"),
    ("gres", "launch.gpus_per_node"),
    ("gpu", "launch.gpus_per_node"),
    ("memory", "launch.memory_gb"),
    ("cpu count", "launch.cpus_per_task"),
    ("node count", "launch.num_nodes"),
    ("node configuration", "launch.gpus_per_node, cpus_per_task, memory_gb or constraint"),
)
"""What SLURM's words speak of -> the key to change."""


class _Group(NamedTuple):
    """Runs of one array: the same resources, the same run to start from."""

    runs: list[PlannedRun]
    launch: SlurmLaunch
    needs: str | None


def submit(runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool = False, say: Say = lambda line: None) -> list[Outcome]:
    """Submit every run that is neither finished nor on its way.

    Args:
        runs: prerequisites before the runs that need them, as `plan_runs` returns them.
        runs_dir: where run folders are made; compute nodes must see it under the same path.
        again: train from scratch what was asked for, also when it is finished; the old folder is kept as `<run id>.old-<n>`.
        say: receives a line for people at every turn.

    Returns:
        One outcome a run, in order.

    Raises:
        InputError: SLURM refuses the request, in its own words and with the key to change, or images are bad; nothing has
            been submitted.
        MachineError: no SLURM here, it does not answer, the folder cannot be written, or what a run takes from the hub is
            neither cached nor to be had.
    """
    refuse_unwritable(str(runs_dir.resolve()))
    with submitting(runs_dir) as lock:
        _find_lost_jobs(runs, runs_dir)
        folders = [runs_dir / run.plan.run_id for run in runs]
        statuses = {status.folder.run_id: status for status in watch_runs(folder for folder in folders if folder.is_dir())}
        outcomes = {run.plan.run_id: _left_alone(run, statuses, runs_dir, again=again) for run in runs}
        wanted = [run for run in runs if outcomes[run.plan.run_id] is None]
        check_beginnings(wanted, runs_dir=runs_dir, again=again, say=say)
        groups = list(_grouped(wanted, say=say))
        for group in groups:
            _test(group, runs_dir, say=say)
        code = snapshot_code(runs_dir) if groups else None
        for group in groups:
            for outcome in _submit(group, runs_dir, code, statuses, lock=lock, again=again, say=say):
                outcomes[outcome.folder.run_id] = outcome
        made = [outcome for outcome in outcomes.values() if outcome is not None]
        for outcome in made:
            say(f"{outcome.folder.run_id}: {describe(outcome)}")
        return made


@contextmanager
def submitting(runs_dir: Path) -> Iterator[int]:
    """One submission at a time: two at once would both find a run not submitted yet. Yields the lock's file descriptor.

    sbatch inherits it: where the submitting process is killed, the next one waits until SLURM has answered the orphan, and then
    finds its job.
    """
    lock = runs_dir / SUBMISSIONS / "lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise machine_error(error, f"could not write to {runs_dir}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _find_lost_jobs(runs: Sequence[PlannedRun], runs_dir: Path) -> None:
    """Give records that were cut off before SLURM's answer their job, where there is one.

    Raises:
        SlurmSilent: SLURM cannot say whether it has the job.
    """
    for run in runs:
        folder = RunFolder(runs_dir / run.plan.run_id)
        job = folder.read_job()
        if job is not None and job.backend == "slurm" and job.job_id is None:
            adopt(Path(job.folder))


def adopt(submission: Path) -> None:
    """Look for a submission's job by its name and write its id into the runs; or free them, where it never was submitted.

    Raises:
        SlurmSilent: SLURM cannot say.
    """
    runs = read_submitted(submission)
    job_id = slurm.find_by_name((submission / "name").read_text(encoding="utf-8"))
    for index, folder in enumerate(runs):
        job = folder.read_job()
        if job is None or job.token != submission.name:
            continue
        if job_id is None:
            folder.job.unlink()
        else:
            hand_over(folder, replace(job, job_id=_member(job_id, index, len(runs))))


def _member(job_id: str, index: int, count: int) -> str:
    return f"{job_id}_{index}" if count > 1 else job_id


def _left_alone(run: PlannedRun, statuses: dict[str, RunStatus], runs_dir: Path, *, again: bool) -> Outcome | None:
    """What becomes of a run that is not submitted now; None for one that is."""
    folder = RunFolder(runs_dir / run.plan.run_id)
    status = statuses.get(run.plan.run_id)
    if status is None:
        return None
    if is_held(folder) and (status.job_id is None or status.standing not in GOING_ON):
        return Outcome(folder, "held", exit_code=1)
    if status.standing in GOING_ON:
        where = f"job {status.job_id} is {status.standing}" if status.job_id else f"{status.standing} on {status.node}"
        return Outcome(folder, "already submitted", where)
    if status.standing == "unknown":
        raise MachineError(f"{folder.run_id}: {status.reason}; nothing was submitted, since it may be on its way already")
    if status.standing == "finished" and not (again and run.asked_for):
        return Outcome(folder, "already finished")
    return None


def _grouped(runs: Sequence[PlannedRun], *, say: Say) -> Iterator[_Group]:
    """Runs that fit into one array, first needed first; no array larger than the cluster allows."""
    groups = _equals(runs)
    has_arrays = any(len(group.runs) > 1 for group in groups)
    largest = slurm.patiently(slurm.max_array_size, say=say) if has_arrays else 1
    for group in groups:
        for start in range(0, len(group.runs), largest):
            yield group._replace(runs=group.runs[start : start + largest])


def _equals(runs: Sequence[PlannedRun]) -> list[_Group]:
    """Runs with the same resources that start from the same run, in the order of their first.

    Raises:
        InputError: one of them does not run on SLURM.
    """
    groups: dict[tuple[str, str | None], _Group] = {}
    for run in runs:
        launch = run.spec.launch
        if not isinstance(launch, SlurmLaunch):
            raise InputError(Problem("launch.backend", f"{run.plan.run_id} is a local run", "`--backend slurm` submits it"))
        groups.setdefault((launch.model_dump_json(), run.needs), _Group([], launch, run.needs)).runs.append(run)
    return list(groups.values())


def script_of(runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
    """The script with which these runs would be submitted, one after the other where there are several; for people to read.

    Raises:
        InputError: they do not run on SLURM.
    """
    folder = runs_dir.resolve() / SUBMISSIONS / "TOKEN"
    return "\n".join(
        batch_script(
            group.launch,
            name=job_name(group.runs[0].spec.name, "TOKEN"),
            folder=folder,
            code=runs_dir.resolve() / CODE_FOLDER / "DIGEST",
            num_runs=len(group.runs),
            after=f"JOB-OF-{group.needs}" if group.needs else None,
            reads=_reads(group),
        )
        for group in _equals(runs)
    )


def _reads(group: _Group) -> list[Path]:
    """Folders that the runs read from."""
    return list(dict.fromkeys(folder for run in group.runs for folder in folders_read(run.spec)))


def _test(group: _Group, runs_dir: Path, *, say: Say) -> None:
    """Ask SLURM whether it would take the job, without submitting it.

    Raises:
        InputError: it would not.
    """
    script = batch_script(
        group.launch,
        name=job_name(group.runs[0].spec.name, "test"),
        folder=runs_dir.resolve(),
        code=None,
        num_runs=len(group.runs),
        reads=_reads(group),
    )
    try:
        slurm.patiently(lambda: slurm.sbatch(script, test_only=True), say=say)
    except slurm.SlurmRefused as error:
        raise InputError(refusal(error)) from error


def refusal(error: slurm.SlurmRefused) -> Problem:
    """SLURM's words, and the key of the spec that they speak of."""
    words = str(error)
    key = next((key for word, key in _KEYS if word in words.lower()), "launch")
    return Problem(key, f"SLURM says: {words}", "sinfo shows partitions and limits")


def _submit(
    group: _Group, runs_dir: Path, code: Path | None, statuses: dict[str, RunStatus], *, lock: int, again: bool, say: Say
) -> Iterator[Outcome]:
    """Records first, then sbatch, then the job's id into the records."""
    folders = [RunFolder(runs_dir / run.plan.run_id) for run in group.runs]
    after = _job_to_wait_for(group, runs_dir, statuses)
    submission = new_submission(runs_dir)
    name = job_name(group.runs[0].spec.name, submission.name)
    num_runs, reads = len(group.runs), _reads(group)
    script = batch_script(group.launch, name=name, folder=submission, code=code, num_runs=num_runs, after=after, reads=reads)
    write_submitted(submission, folders)
    (submission / "name").write_text(name, encoding="utf-8")
    (submission / "job.sbatch").write_text(script, encoding="utf-8")
    before: list[Job | None] = []
    for run, folder in zip(group.runs, folders, strict=True):
        if again and run.asked_for and folder.path.exists():
            say(f"the earlier run is kept as {set_aside(folder)}")
        prepare(run, folder)
        before.append(folder.read_job())
        hand_over(folder, job_of(submission, "slurm"))
    job_id = _sbatch_once(script, name, folders, before, lock=lock, say=say)
    for index, folder in enumerate(folders):
        member = _member(job_id, index, len(folders))
        hand_over(folder, job_of(submission, "slurm", member))
        folder.add_event("submitted", job_id=member)
        yield Outcome(folder, "submitted", f"job {member}" + (f", after job {after}" if after else ""))


def _sbatch_once(
    script: str, name: str, folders: Sequence[RunFolder], before: Sequence[Job | None], *, lock: int, say: Say
) -> str:
    """Submit, and after a silence look whether SLURM has the job before trying again.

    Raises:
        InputError: SLURM refuses; the records are what they were.
        SlurmSilent: nobody knows; the records stay, and the next submission looks for the job by its name.
    """
    try:
        return slurm.sbatch_once(script, name, keeps_open=[lock], say=say)
    except slurm.SlurmRefused as error:
        for folder, job in zip(folders, before, strict=True):
            hand_over(folder, job) if job is not None else folder.job.unlink()
        raise InputError(refusal(error)) from error


def _job_to_wait_for(group: _Group, runs_dir: Path, statuses: dict[str, RunStatus]) -> str | None:
    """The job of the run that these start from, unless that is finished already.

    Raises:
        InputError: that run is under way, but not on SLURM.
    """
    if group.needs is None:
        return None
    folder = RunFolder(runs_dir / group.needs)
    state, job = folder.read_state(), folder.read_job()
    if state is not None and state.status == "finished":
        return None
    if job is None or job.backend != "slurm" or job.job_id is None:
        standing = statuses[group.needs].standing if group.needs in statuses else "not submitted"
        raise InputError(Problem("init.experiment", f"{group.needs} is {standing}, and not on SLURM", "let it finish first"))
    return job.job_id
