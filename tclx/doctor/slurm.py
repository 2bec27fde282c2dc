"""What does a run meet on this cluster? SLURM's commands, its configuration and its partitions -> checks.

No SLURM is nothing wrong: then runs happen on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tclx.doctor.check import Check
from tclx.errors import MachineError
from tclx.launch.slurm import commands as slurm
from tclx.system import Mount

NEEDED = ("sbatch", "squeue", "scontrol", "scancel")
"""Commands that submit, watch and end runs; sacct and sinfo only know more."""

KILL_WAIT_SECONDS = 30
"""SLURM's default, and about what a save to a busy file system takes."""

DEFAULT_EXPIRE_SECONDS = 120
"""slurm.conf, AuthInfo: cred_expire "also controls how long a requeued job must wait before starting again"."""

_UNUSABLE = ("down", "drain", "draining", "drained", "fail", "failing", "error", "unknown", "maint", "reboot", "future")


def check_slurm(mount: Mount) -> Iterator[Check]:
    """Everything that can be asked without submitting.

    Args:
        mount: of the runs folder, which the compute nodes have to see.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if "sbatch" in missing:
        yield Check("slurm", "info", "sbatch is not here: runs happen on this machine only (launch.backend: local)")
        return
    if missing:
        yield Check("slurm", "problem", f"{', '.join(missing)} missing beside sbatch", "install SLURM's client commands")
        return
    conf = os.environ.get("SLURM_CONF")
    if conf and not Path(conf).is_file():  # SLURM's commands would look for it for a minute
        yield Check(
            "slurm", "problem", f"SLURM_CONF names {conf}, which is not there", "unset it or name the cluster's slurm.conf"
        )
        return
    if down := _all_down():
        yield judge_silence(down)
        return
    try:
        config = parse_config(slurm.call(["scontrol", "show", "config"]))
    except (MachineError, slurm.SlurmRefused) as error:
        yield judge_silence(str(error))
        return
    name = config.get("ClusterName", "unknown")
    yield Check("slurm", "ok", f"the controller of cluster {name} answers, version {config.get('SLURM_VERSION', 'unknown')}")
    yield from check_partitions(mount)
    yield _check_accounting(config)
    yield from check_config(config)


def _all_down() -> str | None:
    """scontrol's word that no controller is up. It says so at once, where other commands wait half a minute for one."""
    try:
        said = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=slurm.CALL_SECONDS, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return None  # the next command tells why
    return said.splitlines()[0] if "is DOWN" in said and "is UP" not in said else None


def judge_silence(words: str) -> Check:
    """What SLURM's commands say that have no controller to ask."""
    if "configuration source" in words:
        advice = "export SLURM_CONF, or work where the cluster is set up; runs on this machine do not need it"
        return Check("slurm", "warning", f"its commands are here, but no cluster is configured ({words})", advice)
    advice = "ask again in a minute; if it stays so, ask who runs the cluster (what is queued is not lost)"
    return Check("slurm", "problem", words, advice)


# ------------------------------------------------------------------------------------------------------------- configuration


def parse_config(text: str) -> dict[str, str]:
    """`scontrol show config` as a mapping; `(null)` is an empty value."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): "" if value.strip() == "(null)" else value.strip() for name, _, value in pairs}


def seconds_of(value: str) -> int | None:
    """`30 sec` -> 30; None where there is no number."""
    found = re.match(r"\d+", value)
    return int(found[0]) if found else None


def requeue_wait_seconds(config: Mapping[str, str]) -> int:
    """How long a requeued job waits before it may start again."""
    found = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    return (int(found[1]) if found else DEFAULT_EXPIRE_SECONDS) + 1


def check_config(config: Mapping[str, str]) -> Iterator[Check]:
    """What decides how runs are stopped, continued and remembered."""
    yield _check_requeue(config)
    yield _check_preemption(config)
    yield _check_kill_wait(config)
    yield _check_arrays(config)
    age = seconds_of(config.get("MinJobAge", ""))
    found = (
        "unknown" if age is None else f"squeue knows a job for {age} s after its end" if age else "squeue never forgets a job"
    )
    yield Check("MinJobAge", "info" if age is None else "ok", found)


def _check_requeue(config: Mapping[str, str]) -> Check:
    default = (
        "the cluster's default" if config.get("JobRequeue") != "0" else "not the cluster's default; tclx asks for it itself"
    )
    return Check("requeue", "ok", f"{default}; a requeued job waits {requeue_wait_seconds(config)} s before it starts again")


def _check_preemption(config: Mapping[str, str]) -> Check:
    mode = config.get("PreemptMode") or "OFF"
    if mode.upper() == "OFF":
        return Check("preemption", "ok", "off")
    sent = "SIGUSR2" if "preempt_send_user_signal" in config.get("SlurmctldParameters", "") else "SIGTERM"
    if "SUSPEND" in mode.upper():
        return Check("preemption", "ok", f"{mode}: a preempted job is suspended and goes on later")
    if "CANCEL" in mode.upper():
        return Check("preemption", "warning", f"{mode}: a preempted job is ended for good", "tclx resume continues such runs")
    return Check("preemption", "ok", f"{mode}: a preempted job is told by {sent}, saves, and continues later")


def _check_kill_wait(config: Mapping[str, str]) -> Check:
    wait = seconds_of(config.get("KillWait", ""))
    if wait is None:
        return Check("KillWait", "info", "unknown")
    found = f"a cancelled job has {wait} s to save"
    if wait >= KILL_WAIT_SECONDS:
        return Check("KillWait", "ok", found)
    advice = "lower training.checkpoints.every_steps: what came after the last checkpoint may be lost"
    return Check("KillWait", "warning", f"{found}, below {KILL_WAIT_SECONDS} s", advice)


def _check_arrays(config: Mapping[str, str]) -> Check:
    largest = seconds_of(config.get("MaxArraySize", ""))
    if largest is not None and largest < 2:
        return Check("MaxArraySize", "ok", "the cluster has no job arrays: every run gets a job of its own")
    return Check("MaxArraySize", "ok", f"{largest or 'unknown'}: larger submissions are split into several arrays")


def _check_accounting(config: Mapping[str, str]) -> Check:
    kind = config.get("AccountingStorageType", "")
    forgets = "how a job ended that left no word is known only as long as squeue lists it"
    if not kind or kind.endswith("/none"):
        return Check("accounting", "info", f"off: {forgets}")
    if shutil.which("sacct") is None:
        return Check("accounting", "info", f"on, but sacct is not here: {forgets}")
    try:
        slurm.call(["sacct", "--noheader", "--allocations", "--starttime=now"])
    except (MachineError, slurm.SlurmRefused) as error:
        return Check("accounting", "warning", f"sacct does not answer ({error}): {forgets}", "ask who runs the cluster")
    return Check("accounting", "ok", "on, and sacct answers")


# ---------------------------------------------------------------------------------------------------------------- partitions


@dataclass
class Partition:
    """A partition, added up over its nodes."""

    name: str
    is_default: bool
    available: str
    """`up`, `down`, `drain` or `inact`."""
    time_limit: str
    states: dict[str, int] = field(default_factory=dict)
    """Nodes by state, in SLURM's words without their marks."""
    gpus_per_node: set[int] = field(default_factory=set)
    num_usable: int = 0

    @property
    def num_nodes(self) -> int:
        return sum(self.states.values())


SINFO = "%P|%a|%l|%D|%T|%G"


def parse_partitions(text: str) -> list[Partition]:
    """`sinfo --noheader --format=SINFO`: a line for nodes that are alike, several a partition."""
    partitions: dict[str, Partition] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) != 6:
            continue
        name, available, limit, count, state, gres = parts
        found = partitions.setdefault(name, Partition(name.removesuffix("*"), name.endswith("*"), available, limit))
        if not count.isdigit() or count == "0":
            continue  # a partition without nodes
        word = state.rstrip("*~#!%$@^+-").lower()
        found.states[word] = found.states.get(word, 0) + int(count)
        found.gpus_per_node.add(count_gpus(gres))
        if word not in _UNUSABLE and not state.endswith("*"):  # `*`: does not answer
            found.num_usable += int(count)
    return list(partitions.values())


def count_gpus(gres: str) -> int:
    """`gpu:a100:4(S:0-1),gpu:h100:2,shard:8` -> 6."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)", gres))


def check_partitions(mount: Mount) -> Iterator[Check]:
    """One check a partition, and whether its nodes can see the runs folder."""
    try:
        text = slurm.call(["sinfo", "--noheader", f"--format={SINFO}"])
        hosts = set(slurm.call(["sinfo", "--noheader", "--Node", "--format=%n"]).split())
    except (MachineError, slurm.SlurmRefused) as error:
        yield Check("partitions", "warning", str(error), "runs can be submitted; which partitions there are is not known")
        return
    partitions = parse_partitions(text)
    for partition in partitions:
        yield judge_partition(partition)
    if not partitions:
        yield Check("partitions", "warning", "the cluster shows you none", "ask who runs the cluster for access")
    if not mount.is_network and hosts != {os.uname().nodename.partition(".")[0]}:
        yield Check(
            "shared folder",
            "warning",
            f"the runs folder is on {mount.kind} at {mount.place}, which looks like this machine's own",
            "compute nodes must see it under the same path: choose a shared folder with --runs-dir",
        )


def judge_partition(partition: Partition) -> Check:
    """What it offers, and whether it offers it now."""
    gpus = sorted(partition.gpus_per_node) or [0]
    each = f"of {gpus[0]} GPUs" if len(gpus) == 1 else f"of {gpus[0]} to {gpus[-1]} GPUs"
    each = each if gpus[-1] else "without GPUs"
    states = ", ".join(f"{count} {state}" for state, count in sorted(partition.states.items()))
    limit = "no time limit" if partition.time_limit == "infinite" else f"time limit {partition.time_limit}"
    found = f"{partition.num_nodes} node{'' if partition.num_nodes == 1 else 's'} {each} ({states or 'none'}), {limit}"
    name = f"partition {partition.name}" + (" (default)" if partition.is_default else "")
    if partition.available != "up":
        return Check(name, "warning", f"{found}; the partition is {partition.available}", "jobs wait until it is up again")
    if not partition.num_usable:
        return Check(name, "warning", f"{found}; no node can be used now", "jobs wait until one comes back")
    return Check(name, "ok", found)
