"""What does SLURM say? Its commands, called so that silence is never taken for an answer.

An empty or failed reply means unknown. `squeue` knows a job for some minutes after its end, `sacct` for good where the cluster
keeps accounts; neither has to exist.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from tclx.errors import MachineError
from tclx.launch.jobs import JobState
from tclx.patience import retried

T = TypeVar("T")

CALL_SECONDS = 60
"""A controller that is down is noticed after 9 seconds; one that is drowned in requests may take longer to answer."""

PATIENCE_SECONDS = 150.0
"""A controller is restarted within a minute or two, and its nodes register."""

RETRY_SECONDS = 3.0
SETTLING_SECONDS = 30.0
SLOW_SECONDS = 5.0
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|connection refused|socket timed out|connect failure|communication connection failure"
    r"|could not establish a configuration source|zero bytes were transmitted|resource temporarily unavailable"
    r"|slurm_persist_conn_open",
    re.IGNORECASE,
)
_NOT_CONFIGURED = re.compile(r"dns srv lookup failed|res_nsearch error: unknown host", re.IGNORECASE)
"""The last place where a command looks for its cluster has none; a controller that is away is another matter."""


class SlurmRefused(Exception):
    """SLURM answered, and the answer is no; its own words."""


class SlurmSilent(MachineError):
    """SLURM did not answer: nothing is known of its jobs."""


def call(command: Sequence[str], *, stdin: str | None = None, keeps_open: Sequence[int] = ()) -> str:
    """Run one of SLURM's commands, outside of any job's own variables; returns its stdout.

    Args:
        command: its words.
        stdin: what it reads.
        keeps_open: file descriptors that it inherits: what they lock stays locked until the command has ended, too.

    Raises:
        SlurmRefused: it said no.
        SlurmSilent: the controller or the accounting daemon cannot be reached.
        MachineError: there is no such command here, or no cluster is configured for it.
    """
    named = os.environ.get("SLURM_CONF")
    if named and _is_missing(Path(named)):  # SLURM's commands would wait for it for a minute each
        raise MachineError(f"SLURM_CONF is {named}, where no file is: {_CONFIGURE}")
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CALL_SECONDS,
            check=False,
            env=_outside_of_jobs(os.environ),
            pass_fds=keeps_open,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise MachineError(
            f"{command[0]} is not on this machine: submit where SLURM's commands are, or set launch.backend: local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilent(f"{command[0]} has not answered within {CALL_SECONDS} s") from error
    words = _without_prefix(done.stderr)
    if done.returncode == 0:
        return done.stdout
    if _NOT_CONFIGURED.search(done.stderr):
        raise MachineError(f"{command[0]} finds no cluster here ({words}): {_CONFIGURE}")
    if _UNREACHABLE.search(done.stderr):
        raise SlurmSilent(f"{command[0]}: {words}")
    raise SlurmRefused(words or f"{command[0]} ended with exit code {done.returncode}")


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # somebody else may look into that folder, SLURM's own commands perhaps
        return False
    return False


_CONFIGURE = "export SLURM_CONF=.../slurm.conf, work on a machine of the cluster, or set launch.backend: local"


def _outside_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a job was told about itself: a job that it submits would inherit its size and its ranks.

    Nor do the commands' own variables count: SBATCH_PARTITION would win over the spec's, SQUEUE_USERS would hide jobs.
    submitit's own `clean_env` drops SLURM_CONF, too, without which the commands do not find their cluster.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _OF_THE_CLUSTER or not (name.startswith(_OF_A_JOB_OR_COMMAND) or name in _OF_A_RANK)
    }


_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
_OF_A_JOB_OR_COMMAND = ("SLURM_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "TCLX_MEETING")
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TCLX_ATTEMPT",
              "TCLX_PRINT_INTO_LOG")  # fmt: skip


def _without_prefix(stderr: str) -> str:
    """`sbatch: error: invalid partition` -> `invalid partition`."""
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line)


def patiently(action: Callable[[], T], *, say: Callable[[str], None], seconds: float = PATIENCE_SECONDS) -> T:
    """Do something that asks SLURM, again and again while it is silent.

    A controller that has just come back refuses for lack of nodes until they have registered, so a refusal after a silence is
    believed after a while only. SLURM's commands wait for it themselves, too: a slow refusal comes after a silence.

    Raises:
        SlurmRefused: it said no.
        SlurmSilent: it has been silent for all that time.
    """
    silent_until: float | None = None

    def is_away(error: Exception, took: float) -> bool:
        nonlocal silent_until
        now, is_silent = time.monotonic(), isinstance(error, SlurmSilent)
        if not is_silent and not isinstance(error, SlurmRefused):
            return False
        if is_silent or took >= SLOW_SECONDS:
            silent_until = now
        return is_silent or (silent_until is not None and now < silent_until + SETTLING_SECONDS)

    def told(error: Exception) -> None:
        say(f"SLURM does not answer ({error}); trying for {seconds:.0f} s")

    return retried(action, is_away=is_away, seconds=seconds, waits=repeat(RETRY_SECONDS), say=told)


def squeue(job_ids: Iterable[str]) -> dict[str, JobState]:
    """Jobs that wait, run or ended a few minutes ago, by id; what is not in the answer is not in the queue.

    Raises:
        SlurmSilent, MachineError: as `call`.
    """
    wanted = sorted({_array(job_id) for job_id in job_ids})
    if not wanted:
        return {}
    # Running tasks of an array stand under their own ids; waiting ones too, thanks to --array.
    try:
        lines = call(["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", f"--format={_SQUEUE}"])
    except SlurmRefused as error:
        if "invalid job id" in str(error).lower():
            return {}
        raise SlurmSilent(f"squeue: {error}") from error
    return {job.job_id: job for job in map(_parse_squeue, lines.splitlines()) if job}


def squeue_by_name(names: Iterable[str]) -> list[JobState]:
    """Jobs that wait, run or ended a few minutes ago and carry one of these names of ours.

    Raises:
        SlurmSilent, MachineError: as `call`.
    """
    wanted = set(names)
    try:
        lines = call(["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(wanted)}", f"--format={_SQUEUE}"])
    except SlurmRefused as error:
        raise SlurmSilent(f"squeue: {error}") from error
    return [job for job in map(_parse_squeue, lines.splitlines()) if job and job.name in wanted]


_SQUEUE = "%i|%T|%N|%j|%r"


def _parse_squeue(line: str) -> JobState | None:
    parts = line.strip().split("|", 4)
    if len(parts) != 5:
        return None
    job_id, state, nodes, name, reason = parts
    return JobState(job_id, state, "" if reason == "None" else reason, nodes, name)


def sacct(job_ids: Iterable[str]) -> dict[str, JobState]:
    """Jobs in the accounts, by id; empty where the cluster keeps none.

    Raises:
        SlurmSilent: the accounting daemon does not answer.
    """
    wanted = sorted({_array(job_id) for job_id in job_ids})
    if not wanted:
        return {}
    command = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        "--array",
        f"--jobs={','.join(wanted)}",
        f"--format={_SACCT}",
    ]
    try:
        lines = call(command)
    except SlurmSilent:
        raise
    except (SlurmRefused, MachineError):  # "Slurm accounting storage is disabled", or no sacct at all
        return {}
    return {job.job_id: job for job in map(_parse_sacct, lines.splitlines()) if job}


_SACCT = "JobID,State,ExitCode,NodeList,JobName"


def _parse_sacct(line: str) -> JobState | None:
    parts = line.strip().split("|", 4)
    if len(parts) != 5:
        return None
    job_id, state, exit_code, nodes, name = parts
    word = (state.split() or ["UNKNOWN"])[0]  # `CANCELLED by 1000`
    code, _, number = exit_code.partition(":")
    ended = f"signal {number}" if number not in ("", "0") else f"exit code {code}"
    return JobState(job_id, word, ended, "" if nodes == "None assigned" else nodes, name)


def sbatch_once(script: str, name: str, *, keeps_open: Sequence[int], say: Callable[[str], None]) -> str:
    """Submit, and after a silence look whether SLURM has the job before trying again; returns its id.

    Args:
        script: of the job.
        name: that it carries, which no other has.
        keeps_open: file descriptors that sbatch inherits.
        say: told of every silence.

    Raises:
        SlurmRefused: SLURM refuses.
        SlurmSilent: nobody knows; `find_by_name` may find it later.
    """
    unsure = False

    def attempt() -> str:
        nonlocal unsure
        if unsure and (found := find_by_name(name)) is not None:
            return found
        unsure = True
        return sbatch(script, keeps_open=keeps_open)

    return patiently(attempt, say=say)


def find_by_name(name: str) -> str | None:
    """The id of the job (of the whole array) that carries a name of ours, which no two submissions share.

    Raises:
        SlurmSilent: nobody can say.
    """
    try:
        queued = call(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F|%j"])
    except SlurmRefused as error:
        raise SlurmSilent(f"squeue: {error}") from error
    ids = [line.split("|")[0].strip() for line in queued.splitlines() if line.strip().endswith(f"|{name}")]
    return ids[0] if ids else _find_in_accounts(name)


def _find_in_accounts(name: str) -> str | None:
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 7 * 86400))
    command = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--name={name}",
        f"--starttime={since}",
        "--format=JobID",
    ]
    try:
        ids = [_array(line.strip()) for line in call(command).splitlines() if line.strip()]
    except SlurmSilent:
        raise
    except (SlurmRefused, MachineError):  # no accounts are kept, and squeue has answered
        return None
    return ids[0] if ids else None


def sbatch(script: str, *, test_only: bool = False, keeps_open: Sequence[int] = ()) -> str:
    """Submit a script; returns the job's id, or SLURM's remark for a test.

    Args:
        script: its text.
        test_only: ask whether SLURM would take it.
        keeps_open: as for `call`.

    Raises:
        SlurmRefused, SlurmSilent, MachineError: as `call`.
    """
    how = ["--test-only"] if test_only else ["--parsable"]
    return call(["sbatch", *how], stdin=script, keeps_open=keeps_open).strip().split(";")[0]


def job_state(job_id: str) -> str | None:
    """A job's state by the controller itself; None when it is forgotten.

    Raises:
        SlurmSilent: the controller does not answer.
    """
    try:
        found = re.search(r"JobState=(\S+)", call(["scontrol", "show", "job", job_id, "--oneliner"]))
    except SlurmRefused:
        return None
    return found[1] if found else None


def leave_out(job_id: str, nodes: Iterable[str]) -> list[str]:
    """Keep a job that waits to be started again from some nodes, besides those that it avoids already; no more than leaves
    enough nodes in its partition. SLURM changes this of waiting jobs only.

    Returns:
        All nodes that it avoids from now on.

    Raises:
        SlurmRefused, SlurmSilent, MachineError: as `call`.
    """
    shown = call(["scontrol", "show", "job", job_id, "--oneliner"])
    facts = dict(re.findall(r"(Partition|ExcNodeList|NumNodes)=(\S+)", shown))
    listed = "" if facts.get("ExcNodeList") in (None, "(null)") else facts["ExcNodeList"]
    avoided = call(["scontrol", "show", "hostnames", listed]).split() if listed else []
    there = set(
        call(["sinfo", "--noheader", "--Node", "--responding", f"--partition={facts['Partition']}", "--format=%N"]).split()
    )
    needed = int(re.split(r"\D", facts.get("NumNodes", "1"))[0] or 1)
    for node in nodes:
        if node not in avoided and len(there - {*avoided, node}) >= needed:
            avoided.append(node)
    if avoided:
        call(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(avoided)}"])
    return avoided


def max_array_size() -> int:
    """The cluster's MaxArraySize, which an array's indices stay below; 1 where it has no arrays (it says 0).

    Raises:
        SlurmRefused, SlurmSilent, MachineError: as `call`.
    """
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]))
    return max(1, int(found[1])) if found else 1001


def node_memory_gib(partition: str | None) -> float | None:
    """Memory of the partition's largest node (of the cluster's, where none is named); None where SLURM cannot be asked."""
    if shutil.which("sinfo") is None:
        return None
    try:
        lines = call(["sinfo", "--noheader", "--format=%m", *([f"--partition={partition}"] if partition else [])])
    except (SlurmRefused, MachineError):
        return None
    sizes = [int(size) for line in lines.splitlines() if (size := line.strip().rstrip("+")).isdigit()]
    return max(sizes) / 1024 if sizes else None


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]
