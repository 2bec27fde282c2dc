"""Where it runs. Nothing here changes a result, so nothing of it but the number of processes is part of the run id."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from tclx.section import Conflict, Count, Section, Sensible, is_being_written, text_like
from tclx.spec.secrets import written_secret

Token = Annotated[
    str, text_like(r"^[A-Za-z0-9][A-Za-z0-9._:@/+,=-]{0,127}$", "letters, digits and `._:@/+,=-`, the first a letter or digit")
]
"""A name as SLURM knows them: no blank, no quote, no line break can reach the script."""

Constraint = Annotated[
    str, text_like(r"^[A-Za-z0-9._&|,*()\[\]!:+-]{1,255}$", "node features joined with `&` or `|`, without blanks")
]
"""Node features, combined as sbatch reads them: `a100&nvlink`, `[rack1|rack2]`."""

Line = Annotated[str, text_like(r"^[^\n\r\x00]{0,2000}$", "one line of shell")]
Interpreter = Annotated[str, text_like(r"^[A-Za-z0-9._/+~-]{1,1000}$", "the path of a Python, without blanks")]
Interface = Annotated[str, text_like(r"^[A-Za-z0-9._=,-]{1,64}$", "a network interface such as `ib0`")]
OptionValue = Annotated[str, text_like(r"^[^\n\r\x00'\"\\]{0,255}$", "one line without quotes")]

TAKEN_OPTIONS: dict[str, str] = {
    "account": "launch.account",
    "array": "variants, seeds and launch.max_parallel_runs decide",
    "comment": "tclx finds its jobs by it",
    "constraint": "launch.constraint",
    "cpus-per-task": "launch.cpus_per_task",
    "dependency": "init.experiment decides",
    "error": "logs go to the run folder",
    "gpus-per-node": "launch.gpus_per_node",
    "gres": "launch.gpu_option",
    "job-name": "tclx finds its jobs by it",
    "mem": "launch.memory_gb",
    "nodes": "launch.num_nodes",
    "ntasks": "launch.tasks_per_node",
    "ntasks-per-node": "launch.tasks_per_node",
    "open-mode": "logs are appended to",
    "output": "logs go to the run folder",
    "partition": "launch.partition",
    "qos": "launch.qos",
    "requeue": "runs continue where they stopped",
    "no-requeue": "runs continue where they stopped; launch.max_restarts: 0 forbids it",
    "signal": "launch.signal_seconds",
    "time": "launch.time_limit_minutes",
    "gpus": "launch.gpus_per_node",
    "gpus-per-task": "launch.gpus_per_node",
    "ntasks-per-gpu": "launch.gpus_per_node",
    "kill-on-invalid-dep": "a run whose prerequisite failed is never left waiting",
    "parsable": "tclx reads sbatch's answer",
    "test-only": "tclx run asks SLURM before it submits",
    "wait": "tclx run --follow waits",
    "wrap": "tclx writes the script",
}
"""sbatch options that other keys of the spec set, and which."""


def _not_taken(name: str, info: ValidationInfo) -> str:
    """Refuse an option that tclx sets, also abbreviated: getopt_long takes a beginning for the option that begins with it."""
    taken = [name] if name in TAKEN_OPTIONS else [full for full in TAKEN_OPTIONS if full.startswith(name)]
    if taken and is_being_written(info):
        called = "" if name in taken else f" (sbatch reads it as {' or '.join(f'`--{full}`' for full in taken)})"
        raise ValueError(f"is set elsewhere{called}: {' or '.join(dict.fromkeys(TAKEN_OPTIONS[full] for full in taken))}")
    return name


OptionName = Annotated[
    str,
    text_like(r"^[a-z][a-z-]{0,39}$", "an option of sbatch by its long name, without the dashes"),
    AfterValidator(_not_taken),
]

GpuType = Annotated[str, text_like(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "a kind of GPU by SLURM's name, such as `a100`")]
Image = Annotated[
    str, text_like(r"^[A-Za-z0-9/~][A-Za-z0-9._/:#@+~-]{0,1000}$", "a container's file or address, without blanks")
]
Mount = Annotated[
    str, text_like(r"^/[^\s\"'\\:,%$`]*(:/[^\s\"'\\:,%$`]*)?(:ro)?$", "`/FOLDER`, `/FOLDER:/INSIDE` or `/FOLDER:/INSIDE:ro`")
]

NumProcesses = Annotated[int, Field(ge=1), Sensible(at_most=10_000)]
Amount = Annotated[int, Field(ge=1), Sensible(at_most=1_000_000)]


class LocalLaunch(Section):
    """Processes on this machine."""

    backend: Literal["local"] = "local"
    """This machine."""
    num_processes: NumProcesses = 1
    """Training processes, one per GPU (or several on the CPU); more than one trains through torchrun with DDP."""
    fsdp: bool = False
    """Divide the encoders' layers among the processes (FSDP2) in place of a copy in each (DDP): of their weights, gradients and
    moments each holds its share, and layers are exchanged at every step. For encoders that need the memory."""
    max_parallel_runs: Count | None = None
    """Runs that train at the same time, each with GPUs of its own. null: as many as the GPUs suffice for; one on a CPU."""


class ContainerSpec(Section):
    """A container in which the training processes of a job run."""

    image: Image
    """Its file or address on the compute nodes: `/images/torch.sif`, `docker://nvcr.io/nvidia/pytorch:25.09-py3`; as pyxis has
    it `nvcr.io#nvidia/pytorch:25.09-py3`."""
    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """What runs it: the command of that name, or pyxis' options of srun."""
    python: Interpreter = "python3"
    """The interpreter in the container; tclx's packages are installed there, its own code comes from the submission."""
    mounts: tuple[Mount, ...] = ()
    """Further folders that are seen inside. The runs folder and the folders that the spec names are in any case."""


class SlurmLaunch(Section):
    """Jobs on a SLURM cluster: submitted once, continued after preemption, time limits and node failures until done."""

    backend: Literal["slurm"]
    """A SLURM cluster; `tclx run` submits and returns."""
    partition: Token | None = None
    """SLURM partition; null is the cluster's default."""
    account: Token | None = None
    """SLURM account; null is your default."""
    qos: Token | None = None
    """Quality of service; null is your default."""
    constraint: Constraint | None = None
    """Node features, such as `a100&nvlink`."""
    num_nodes: NumProcesses = 1
    """Nodes of one run."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of each node; one training process for each."""
    gpu_type: GpuType | None = None
    """Which GPUs, by SLURM's name for them: `a100`; null takes any."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How sbatch is asked for GPUs: `--gpus-per-node=8`, or `--gres=gpu:8`, which clusters that do not count GPUs by themselves
    want."""
    tasks_per_node: NumProcesses | None = None
    """Training processes of each node where there are no GPUs (`gpus_per_node: 0`); null is one."""
    fsdp: bool = False
    """Divide the encoders' layers among the processes (FSDP2) in place of a copy in each (DDP): of their weights, gradients and
    moments each holds its share, and layers are exchanged at every step. For encoders that need the memory."""
    cpus_per_task: NumProcesses = 4
    """CPUs of each training process; its loader processes (`data.num_workers`) run on them, too."""
    memory_gb: Amount | None = None
    """Memory of each node in GB; null is the partition's default."""
    time_limit_minutes: Amount | None = None
    """Of one allocation; a run that needs more continues in a fresh one. null is the partition's default."""
    signal_seconds: Annotated[int, Field(ge=10, le=3600)] = 120
    """How long before the time limit the run stops and saves: longer than a step, a save and an evaluation together. SLURM may
    send its signal up to a minute earlier."""
    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Continued at most this often; then the run is given up as failed, its checkpoints kept."""
    max_parallel_runs: Count | None = None
    """Runs of one submission that run at the same time (an array's throttle); null leaves it to SLURM."""
    python: Interpreter | None = None
    """The interpreter on the compute nodes; null is the one that submits."""
    network_interface: Interface | None = None
    """Network interface between nodes, such as `ib0`; null lets NCCL and gloo choose."""
    setup: tuple[Line, ...] = ()
    """Shell lines before the run starts, such as `module load cuda`. Secrets belong in your environment, which jobs inherit."""
    sbatch_options: dict[OptionName, OptionValue | int | Literal[True]] = Field(default={})
    """Further options of sbatch by their long names: `{exclude: bad-node, reservation: vision, exclusive: true}`."""
    container: ContainerSpec | None = None
    """Run the training processes in a container."""

    @property
    def processes_per_node(self) -> int:
        """Training processes of each node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def num_processes(self) -> int:
        """Training processes of one run."""
        return self.num_nodes * self.processes_per_node

    @model_validator(mode="after")
    def _one_process_a_gpu(self) -> Self:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise Conflict(
                f"`tasks_per_node` is {self.tasks_per_node} and `gpus_per_node` {self.gpus_per_node}: one process trains on "
                "one GPU; leave `tasks_per_node` out",
                "tasks_per_node",
                "gpus_per_node",
            )
        if self.time_limit_minutes is not None and self.signal_seconds >= 60 * self.time_limit_minutes:
            raise Conflict(
                f"`signal_seconds` {self.signal_seconds} leaves nothing of `time_limit_minutes` {self.time_limit_minutes}; "
                f"below {60 * self.time_limit_minutes}",
                "signal_seconds",
                "time_limit_minutes",
            )
        lines = [("setup", line) for line in self.setup]
        lines += [(f"sbatch_options.{name}", str(value)) for name, value in self.sbatch_options.items()]
        if secrets := [(key, secret) for key, line in lines if (secret := written_secret(line)) is not None]:
            raise Conflict(
                f"{' and '.join(f'`{key}` writes the secret {secret}' for key, secret in secrets)} into the job's script; "
                "export it where you submit (jobs inherit your environment) or read it from a file there",
                *dict(secrets),
            )
        return self


LaunchSpec = Annotated[LocalLaunch | SlurmLaunch, Field(discriminator="backend")]
