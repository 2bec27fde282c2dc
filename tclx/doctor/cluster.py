"""Which nodes of a partition are fit to train on? A short job on each, and what they found side by side.

A node is compared with the others of its partition, since what is slow nobody knows beforehand.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.doctor.check import Verdict
from tclx.errors import InputError, MachineError, Problem
from tclx.files import Unreadable, read_object
from tclx.launch.ending import last_lines
from tclx.launch.prepare import new_submission
from tclx.launch.slurm import commands as slurm
from tclx.launch.slurm.script import batch_script, job_name
from tclx.launch.snapshot import snapshot_code
from tclx.spec.launch import SlurmLaunch

LOOK_SECONDS = 2.0
JOB_MINUTES = 5
"""At most; torch alone may take a minute to load from a busy file system."""
SLOW = 0.7
"""Of the median over the nodes: what is below it is told."""
MOST_SKEW_SECONDS = 2.0
LEAST_SCRATCH_GIB = 10.0
_NO_NODE_TO_ASK = ("down", "drain", "fail", "maint", "unk", "boot", "power")


class Node(NamedTuple):
    """One node, and what is to be known of it."""

    name: str
    verdict: Verdict
    facts: dict[str, Any] | None
    """As `tclx.doctor.node.look` found them; None where no job has looked."""
    remarks: tuple[str, ...]
    """What is wrong with it, or why nobody has looked."""


def examine_nodes(
    launch: SlurmLaunch,
    *,
    runs_dir: Path,
    minutes: float,
    all_gpus: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Node]:
    """Submit a job to every node of the partition, and wait for what they find.

    Args:
        launch: how runs are submitted: its partition, account, GPUs, setup, interpreter, container.
        runs_dir: where runs are kept; nodes write there, since that is what they have to see.
        all_gpus: ask for as many GPUs as SLURM says a node has, instead of `launch.gpus_per_node`.
        minutes: to wait; jobs that have not begun by then are cancelled, for their nodes are busy.
        say: receives a line for people at every turn.

    Raises:
        InputError: SLURM refuses the jobs, or the partition has no nodes.
        MachineError: no SLURM here, or it does not answer.
    """
    listed = {
        name: one._replace(num_gpus=one.num_gpus if all_gpus else launch.gpus_per_node)
        for name, one in _nodes(launch.partition).items()
    }
    if not listed:
        raise InputError(Problem("launch.partition", f"{launch.partition or 'the default'} has no nodes", "sinfo lists them"))
    folder, code = new_submission(runs_dir), snapshot_code(runs_dir)
    asked = {name: one for name, one in listed.items() if not one.state.startswith(_NO_NODE_TO_ASK)}
    jobs = {name: _submit(launch, name, one, folder=folder, code=code) for name, one in asked.items()}
    say(f"asked {len(jobs)} nodes, {len(listed) - len(jobs)} cannot be asked; waiting at most {minutes:g} min")
    waiting = _wait(jobs, folder, minutes=minutes, say=say)
    nodes = []
    for name, one in listed.items():
        if name not in jobs:
            nodes.append(Node(name, "warning", None, (f"is {one.state}",)))
        elif name in waiting:
            nodes.append(Node(name, "info", None, (waiting[name],)))
        else:
            nodes.append(_read(name, folder, jobs[name]))
    return judged(nodes, num_gpus={name: one.num_gpus for name, one in listed.items()})


class _Listed(NamedTuple):
    """What SLURM says of a node."""

    state: str
    num_gpus: int
    most_minutes: int
    """That its partition gives a job."""


def _nodes(partition: str | None) -> dict[str, _Listed]:
    """By name, of the default partition where none is named."""
    where = [f"--partition={partition}"] if partition else []
    lines = slurm.call(["sinfo", "--noheader", "--Node", "--format=%N %t %P %l %G", *where]).splitlines()
    found = {}
    for name, state, of, limit, gres in (line.split(maxsplit=4) for line in lines):
        if partition or of.endswith("*"):
            num_gpus = sum(int(number) for number in re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres))
            found[name] = _Listed(state, num_gpus, min(JOB_MINUTES, _minutes(limit)))
    return found


def _minutes(limit: str) -> int:
    """Whole minutes, at least one, of `infinite`, `2:00`, `12:00:00` or `7-00:00:00`."""
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"[\d:]+", clock):
        return JOB_MINUTES
    *hours, minutes, _ = (int(part) for part in clock.split(":")) if ":" in clock else (int(clock), 0)
    return max(1, 24 * 60 * int(days or 0) + 60 * sum(hours) + minutes)


def _submit(launch: SlurmLaunch, node: str, listed: _Listed, *, folder: Path, code: Path) -> str:
    """
    Raises:
        InputError: SLURM refuses.
    """
    there = {"nodelist": node}
    own = launch.model_copy(
        update={
            "num_nodes": 1,
            "gpus_per_node": listed.num_gpus,
            "tasks_per_node": None,
            "time_limit_minutes": listed.most_minutes,
            "signal_seconds": 10,
            "sbatch_options": {**{k: v for k, v in launch.sbatch_options.items() if k != "exclude"}, **there},
        }
    )
    name = job_name(f"doctor-{node}", folder.name)
    script = batch_script(own, name=name, folder=folder, code=code, num_runs=1, module="tclx.doctor.node", one_task=True)
    try:
        return slurm.sbatch(script)
    except slurm.SlurmRefused as error:
        raise InputError(Problem("launch", f"SLURM says of {node}: {error}", "sinfo shows partitions and limits")) from error


def _wait(jobs: dict[str, str], folder: Path, *, minutes: float, say: Callable[[str], None]) -> dict[str, str]:
    """Nodes whose jobs did not begin in time, which are cancelled, with SLURM's reason."""
    deadline, left = time.monotonic() + 60 * minutes, dict(jobs)
    late: dict[str, str] = {}
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        known = slurm.squeue(left.values())
        for node, job in list(left.items()):
            if (folder / f"{node}.json").is_file() or (job not in known and _is_over(job)):
                del left[node]
                say(f"{node} has answered" if (folder / f"{node}.json").is_file() else f"{node}: its job has ended")
    for node, job in left.items():
        late[node] = f"did not answer within {minutes:g} min: it is busy, or hangs"
        slurm.call(["scancel", job])
    return late


def _is_over(job: str) -> bool:
    """What squeue does not list has ended, unless the controller is only slow."""
    return slurm.job_state(job) not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")


def _read(name: str, folder: Path, job: str) -> Node:
    try:
        return Node(name, "ok", read_object(folder / f"{name}.json"), ())
    except (Unreadable, MachineError):
        said = " / ".join(last_lines(folder / f"{job}_0_log.out", count=3))
        return Node(name, "problem", None, (f"its job ended without an answer: {said or 'it does not see this folder'}",))


def judged(nodes: Sequence[Node], *, num_gpus: Mapping[str, int]) -> list[Node]:
    """With what is wrong with each, beside the others of the partition.

    Args:
        nodes: those with facts are judged.
        num_gpus: that each was asked for, by name.
    """
    usual = {name: _median(nodes, read) for name, read in _SPEEDS.items()}
    return [node if node.facts is None else _judged(node, usual, num_gpus[node.name]) for node in nodes]


def _judged(node: Node, usual: dict[str, float | None], num_gpus: int) -> Node:
    facts, problems, remarks = node.facts or {}, list[str](), list[str]()
    gpus = facts.get("gpus") or []
    if len(gpus) < num_gpus:
        problems.append(f"torch sees {len(gpus)} of {num_gpus} GPUs")
    for name, read in _SPEEDS.items():
        value, median = read(facts), usual[name]
        if value is not None and median and value < SLOW * median:
            remarks.append(f"{name} {value:.3g}, where the others have {median:.3g}")
    if abs(facts.get("clock_seconds", 0.0)) > MOST_SKEW_SECONDS:
        problems.append(f"its clock is {facts['clock_seconds']:+.0f} s off")
    if (free := (facts.get("scratch") or {}).get("free_gib")) is not None and free < LEAST_SCRATCH_GIB:
        remarks.append(f"scratch has {free:.1f} GiB left")
    problems += [f"{name}: {why}" for name, why in facts.get("errors", {}).items()]
    verdict: Verdict = "problem" if problems else "warning" if remarks else "ok"
    return node._replace(verdict=verdict, remarks=(*problems, *remarks))


_SPEEDS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "TFLOP/s of the slowest GPU": lambda facts: min((gpu["tflops"] for gpu in facts.get("gpus") or []), default=None),
    "all-reduce GB/s": lambda facts: facts.get("all_reduce_gb_per_second"),
    "scratch MB/s": lambda facts: (facts.get("scratch") or {}).get("mb_per_second"),
    "shared MB/s": lambda facts: (facts.get("shared") or {}).get("mb_per_second"),
}


def _median(nodes: Sequence[Node], read: Callable[[dict[str, Any]], float | None]) -> float | None:
    values = [value for node in nodes if node.facts is not None and (value := read(node.facts)) is not None]
    return statistics.median(values) if len(values) > 1 else None


def as_rows(nodes: Sequence[Node]) -> list[list[str]]:
    """A table: a line a node."""
    rows = [["node", "GPUs", "TFLOP/s", "GB/s", "scratch", "MB/s", "shared", "ms/file", "clock"]]
    for node in nodes:
        facts = node.facts
        if facts is None:
            rows.append([node.name, *["-"] * 8])
            continue
        scratch, shared, gpus = facts.get("scratch") or {}, facts.get("shared") or {}, facts.get("gpus") or []
        slowest = min((gpu["tflops"] for gpu in gpus), default=None)
        card = re.sub(r"^NVIDIA ", "", gpus[0]["name"]).split()[0] if gpus else ""
        rows.append(
            [
                node.name,
                f"{len(gpus)} {card}".strip(),
                _few(slowest),
                _few(facts.get("all_reduce_gb_per_second")),
                f"{scratch['free_gib']:,.0f} GiB" if "free_gib" in scratch else "-",
                _few(scratch.get("mb_per_second")),
                _few(shared.get("mb_per_second")),
                _few(shared.get("ms_per_file")),
                f"{facts['clock_seconds']:+.1f} s" if "clock_seconds" in facts else "-",
            ]
        )
    return rows


def _few(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
