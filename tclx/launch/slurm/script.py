"""What is submitted? A launch section -> the text of its sbatch script, written by submitit. Pure.

The payload is one line: every task starts `tclx.launch.task`, which finds its run by its index in the array. Nothing is
pickled, nothing of the spec but checked words reaches the shell, and no secret: jobs inherit the submitter's environment.
After the tasks the script's own shell asks once more what became of the run: it outlives any of them.
"""

from __future__ import annotations

import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from tclx.errors import InputError, Problem
from tclx.spec.launch import ContainerSpec, SlurmLaunch


def job_name(name: str, token: str) -> str:
    """What a submission is called in SLURM, and found again by: no other has its token."""
    return f"{name}.{token}"


def refuse_unwritable(path: str, key: str = "--runs-dir", *, special: str = "%:") -> None:
    """Refuse a path that cannot stand in a script: a line break would be a line of its own, a colon ends PYTHONPATH's entry,
    and sbatch replaces patterns.

    Raises:
        InputError: naming the character.
    """
    odd = next((char for char in path if char in special or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is not None:
        words = {"%": "a %, which sbatch reads as a pattern", ":": "a colon, at which PYTHONPATH is split"}
        message = f"{path!r} has {words.get(odd, f'the character {odd!r}')} in it: a job's script cannot name it"
        raise InputError(Problem(key, message, "take a folder without it"))


def batch_script(
    launch: SlurmLaunch,
    *,
    name: str,
    folder: Path,
    code: Path | None,
    num_runs: int,
    after: str | None = None,
    module: str = "tclx.launch.task",
    one_task: bool = False,
    reads: Sequence[Path] = (),
) -> str:
    """The sbatch script of some runs: one job, or an array.

    Args:
        launch: how they run.
        name: the job's, from `job_name`.
        folder: of the submission: holds `runs.json`, receives what is printed before and after training.
        code: where the tclx to run lies; None is the one that is installed.
        num_runs: tasks of the array; 1 is a plain job.
        after: id of a job that must have finished.
        module: what each task runs, with `rank` before the shell goes on and with `after` when it does.
        one_task: one task has all of a node's processors and GPUs; otherwise each training process is a task.
        reads: folders that a container has to see, besides that of the submission's runs.

    Raises:
        InputError: a path cannot stand in a script.
    """
    refuse_unwritable(str(folder), "--runs-dir")
    refuse_unwritable(str(code or ""), "--runs-dir")
    refuse_unwritable(sys.executable, "launch.python", special="")
    python = launch.python or shlex.quote(sys.executable)  # the spec's has no blanks, and its `~` is for the node's shell
    task = f"{python} -m {module}"
    rank = f"{task} rank {shlex.quote(str(folder))}"
    in_container: list[str] = []
    if launch.container is not None:
        rank = f"{launch.container.python} -m {module} rank {shlex.quote(str(folder))}"
        seen = _seen_inside(launch.container, [*_runs_and_code(folder, code), *reads])
        if launch.container.runtime == "pyxis":
            image = f"--container-image={launch.container.image}"
            in_container = [image, f"--container-mounts={shlex.quote(','.join(seen))}", "--container-mount-home"]
        else:
            gpus = " --nv" if launch.gpus_per_node else ""
            rank = f"{launch.container.runtime} exec{gpus} --bind {shlex.quote(','.join(seen))} {launch.container.image} {rank}"
    tasks = 1 if one_task else launch.processes_per_node
    cpus_per_task = launch.cpus_per_task * launch.processes_per_node // tasks
    environment = [
        "export PYTHONSAFEPATH=1",
        f"export SRUN_CPUS_PER_TASK={cpus_per_task}",  # since SLURM 22.05 srun takes it from nowhere else
        *([f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"] if code else []),
        *([f"export GLOO_SOCKET_IFNAME={launch.network_interface} NCCL_SOCKET_IFNAME={launch.network_interface}"]
          if launch.network_interface else []),
    ]  # fmt: skip
    text: str = _make_sbatch_string(
        command=f"{rank} || code=$?",
        folder=folder,
        job_name=name,
        partition=launch.partition,
        account=launch.account,
        qos=launch.qos,
        constraint=launch.constraint,
        time=launch.time_limit_minutes,  # None leaves the partition's default
        nodes=launch.num_nodes,
        ntasks_per_node=tasks,
        cpus_per_task=cpus_per_task,
        mem=f"{launch.memory_gb}G" if launch.memory_gb else None,
        signal_delay_s=launch.signal_seconds,
        comment=f"tclx:{name.rpartition('.')[2]}",
        dependency=f"afterok:{after}" if after else None,
        array_parallelism=launch.max_parallel_runs or num_runs,
        map_count=num_runs if num_runs > 1 else None,
        wckey=None,  # submitit's own would be refused by clusters that keep a list
        stderr_to_stdout=True,
        # A rank that dies takes the others with it, who would wait for it in a collective.
        srun_args=["--kill-on-bad-exit=1", *in_container],
        setup=["trap : TERM USR2  # the shell outlives what its tasks are told", "code=0", *environment, *launch.setup],
        teardown=[f"{task} after {shlex.quote(str(folder))} $code"],
        additional_parameters=_more_options(launch, after),
    )
    return text + "\n"


def _runs_and_code(folder: Path, code: Path | None) -> list[Path]:
    """The runs folder, which holds a submission's and a study's, and the code where that lies elsewhere."""
    runs = folder.parent.parent
    return [runs, *([code] if code is not None and not code.is_relative_to(runs) else [])]


def _seen_inside(container: ContainerSpec, folders: Sequence[Path]) -> list[str]:
    """Mounts, none inside another of the same path.

    Raises:
        InputError: a folder's name cannot stand in a mount.
    """
    for folder in folders:
        refuse_unwritable(str(folder), "launch.container.mounts", special="%:,")
    outer = [one for one in dict.fromkeys(folders) if not any(one != other and one.is_relative_to(other) for other in folders)]
    own = [mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts]
    return list(dict.fromkeys([*(f"{one}:{one}" for one in outer), *own]))


def _more_options(launch: SlurmLaunch, after: str | None) -> dict[str, Any]:
    gpus = f"{launch.gpu_type}:{launch.gpus_per_node}" if launch.gpu_type else str(launch.gpus_per_node)
    return {
        **({launch.gpu_option: f"gpu:{gpus}" if launch.gpu_option == "gres" else gpus} if launch.gpus_per_node else {}),
        "signal": f"USR2@{launch.signal_seconds}",  # submitit takes the signal from a variable of the environment
        "requeue": True,  # a run whose node died starts again by itself
        **({"kill-on-invalid-dep": "yes"} if after else {}),
        **launch.sbatch_options,
    }
