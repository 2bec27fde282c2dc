"""What would runs cost, and does this machine or the cluster have it? Asked of a process apart, which may take only so much.

The estimate builds the model without storage; a model of absurd size still takes time and memory to build. On a login node
that is everybody's, so the process that estimates is watched and ended when it takes too much. `tclx plan` itself stays light.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tclx.errors import InputError, MachineError, Problem
from tclx.launch.local import slots
from tclx.launch.order import PlannedRun, without_first_weights
from tclx.launch.slurm import commands as slurm
from tclx.plan import Plan
from tclx.spec.data import TokenizerSpec, TrainedTokenizer
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.launch import SlurmLaunch
from tclx.system import memory

GIB = 1024**3

MAX_MEMORY_BYTES = int(1.75 * GIB)
"""Of the process that estimates: importing torch, timm and transformers takes 0.8 GiB of it."""

MAX_CPU_SECONDS = 90.0
"""For all runs of a plan; torch alone takes up to 15 s where nothing of it is in the page cache."""

MAX_WAIT_SECONDS = 900.0
"""On a machine that is busy with other things the processor time comes slowly."""

_LOOK_SECONDS = 0.05
_NO_MEMORY = ("MemoryError", "Cannot allocate memory", "failed to map segment", "bad_alloc", "can't start new thread",
              "pthread_create failed", "can't allocate memory")  # fmt: skip


class Estimate(NamedTuple):
    """One run's cost, or why it is not known."""

    cost: dict[str, Any] | None
    """As `tclx.train.cost.Cost`, with `device`, gpu or cpu, whose memory is meant, and of a CPU `matrix_gflops`: what the
    estimating process reached in matrix products."""
    reason: str | None = None


def estimate_costs(
    runs: Sequence[PlannedRun],
    *,
    elsewhere: bool = False,
    max_bytes: int = MAX_MEMORY_BYTES,
    max_seconds: float = MAX_CPU_SECONDS,
) -> list[Estimate]:
    """The cost of each run; runs that differ in their seed or name alone are estimated once.

    Args:
        runs: as they were planned.
        elsewhere: as `slots.trains_on_gpus`.
        max_bytes: of resident memory that the estimate may take.
        max_seconds: of processor time that it may take.

    Raises:
        InputError: a model cannot be built.
        MachineError: a package is missing here, or what a model needs cannot be fetched.
    """
    by_sections: dict[tuple[int, ...], str] = {}
    for run in runs:
        if sections_of(run) not in by_sections:
            by_sections[sections_of(run)] = _question(run, elsewhere=elsewhere)
    questions = [by_sections[sections_of(run)] for run in runs]
    asked = list(dict.fromkeys(questions))
    answers, why_no_more = _ask(asked, max_bytes, max_seconds)
    estimates = {}
    for question, answer in zip(asked, answers, strict=False):
        if "problems" in answer:
            raise InputError(*(Problem(*problem[:3]) for problem in answer["problems"]))
        if "machine" in answer:
            raise MachineError(answer["machine"])
        estimates[question] = Estimate(answer["cost"])
    return [estimates.get(question, Estimate(None, why_no_more)) for question in questions]


def sections_of(run: PlannedRun) -> tuple[int, ...]:
    """The same for runs that were made from one another by changing the seed, of which there may be thousands."""
    spec = run.spec
    return tuple(map(id, (spec.model, spec.objectives, spec.data, spec.training, spec.evaluation, spec.launch)))


def _question(run: PlannedRun, *, elsewhere: bool = False) -> str:
    """What decides the cost of a run, as one line."""
    spec = without_first_weights(run.spec).model_copy(update={"seed": 0, "variant": None, "name": "x", "init": None})
    plan = {**run.plan.to_json(), "run_id": "x", "name": "x", "variant": None, "seed": 0}
    return json.dumps(
        {"spec": spec.model_dump(mode="json"), "plan": plan, "on_cpu": not slots.trains_on_gpus(run, elsewhere=elsewhere)}
    )


def _ask(questions: Sequence[str], max_bytes: int, max_seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The answers so far, and why there are no more."""
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as answered, tempfile.TemporaryFile("w+") as said:
        asked.write("\n".join(questions))
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "tclx.launch.costs", str(max_seconds + 10)],
            stdin=asked,
            stdout=answered,
            stderr=said,
            env=_environment(),
        )
        try:
            reason = _watch(process, max_bytes, max_seconds)
        finally:
            process.kill()
            process.wait()
        answered.seek(0)
        answers = [json.loads(line) for line in answered.read().splitlines(keepends=True) if line.endswith("\n")]
        said.seek(0)
        words = said.read()
    if reason is None and process.returncode != 0:
        if process.returncode > 0 and not any(word in words for word in _NO_MEMORY):
            raise RuntimeError(f"the process that estimates the cost has failed:\n{words}")  # a bug keeps its traceback
        reason = "the process that estimates it found no memory, or was ended from outside"
    return answers, reason or ""


def _watch(process: subprocess.Popen[bytes], max_bytes: int, max_seconds: float) -> str | None:
    """Until it ends, or has taken too much; then says what. Asked of the system, since a Mac keeps no limit of memory."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory, times = watched.memory_info().rss, watched.cpu_times()
        except psutil.NoSuchProcess:
            break
        if memory > max_bytes:
            return f"the estimate took more than {max_bytes / GIB:.2g} GiB of memory"
        if times.user + times.system > max_seconds or time.monotonic() > deadline:
            return f"the estimate took more than {max_seconds:g} s"
        time.sleep(_LOOK_SECONDS)
    process.wait()
    return None


def _environment() -> dict[str, str]:
    """This process's, with the same tclx first."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}


# ------------------------------------------------------------------------------------------------------------- what there is


def refuse_what_does_not_fit(run: PlannedRun, estimate: Estimate) -> list[Problem]:
    """Compare a run's memory with what it will run on, where that can be known here; returns what may be too much.

    What a checkpoint holds (weights, moments, queues) must be in memory whatever happens, so that is refused; the activations
    are an estimate, and only remarked on.

    Raises:
        MachineError: there is less memory than the weights, moments and queues take, or than the job asks for.
    """
    has = _memory_of_a_process(run)
    if estimate.cost is None or has is None:
        return []
    available, what = has
    fixed, peak = estimate.cost["checkpoint_gib"], estimate.cost["peak_memory_gib"]
    queues = 2 * 4 * run.spec.model.queue_size * run.spec.model.embed_dim / GIB
    key = "model.queue_size" if queues > fixed / 2 else "model"
    if fixed > available:
        message = f"weights, the optimizer's moments and queues take {fixed:.4g} GiB, and {what} {available:.4g} GiB"
        raise MachineError(str(Problem(key, message, "a smaller model or queue, or another machine")))
    if peak > available:
        message = f"a training process peaks at about {peak:.4g} GiB (estimated), and {what} {available:.4g} GiB"
        ways = ["a smaller batch", "training.activation_checkpointing: true"]
        if estimate.cost["device"] == "cpu" and run.spec.training.checkpoints.in_background:
            ways.append("training.checkpoints.in_background: false")
        return [Problem("training.batch_size_per_gpu", message, " or ".join(ways))]
    return []


def _memory_of_a_process(run: PlannedRun) -> tuple[float, str] | None:
    """GiB for each training process, and whose they are; None where nobody here can say."""
    launch = run.spec.launch
    if isinstance(launch, SlurmLaunch):
        largest = slurm.node_memory_gib(launch.partition)
        if largest is not None and launch.memory_gb is not None and launch.memory_gb > largest:
            message = f"{launch.memory_gb} GB, and the partition's largest node has {largest:.4g} GiB"
            raise MachineError(str(Problem("launch.memory_gb", message, "less, or another launch.partition")))
        node = launch.memory_gb or largest
        if launch.gpus_per_node:  # SLURM counts GPUs, not their memory
            return None
        words = (
            "launch.memory_gb gives each process" if launch.memory_gb else "the partition's largest node has for each process"
        )
        return None if node is None else (node / launch.processes_per_node, words)
    if run.spec.training.device in ("auto", "cuda") and (gpus := slots.listed_gpus()):
        return min(gpu.memory_gib for gpu in gpus), "the GPU has"
    return memory().total / GIB / launch.num_processes, "this machine has for each process"


# ------------------------------------------------------------------------------------------------------- in the process apart


def main() -> None:
    """Answer each line of stdin with one of stdout."""
    seconds = int(float(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # also where nobody watches any more
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


@cache
def _matrix_gflops() -> float:
    """What this machine's processor reaches in products of large matrices: a tenth of a second's measurement."""
    import torch

    side = 768
    square = torch.randn(side, side)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        _ = square @ square
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds) / 1e9


def answer(question: str) -> dict[str, Any]:
    """The cost of the run that a line of `_question` describes, or the user's mistake in it."""
    from tclx.train.cost import estimate_cost

    asked = json.loads(question)
    spec = ExperimentSpec.model_validate_json(json.dumps(asked["spec"]))
    try:
        vocab_size = _vocab_size(spec.data.tokenizer)
        plan, on_cpu = Plan.from_json(asked["plan"]), asked["on_cpu"]
        cost = asdict(estimate_cost(spec, plan, vocab_size=vocab_size, on_cpu=on_cpu)) | {"device": "cpu" if on_cpu else "gpu"}
        return {"cost": cost | ({"matrix_gflops": _matrix_gflops()} if on_cpu else {})}
    except InputError as error:
        return {"problems": [list(problem[:3]) for problem in error.problems]}
    except MachineError as error:
        return {"machine": str(error)}
    except RuntimeError as error:
        if "overflow" not in str(error).lower():
            raise
        return {"problems": [["model", "its sizes multiply to more than a tensor can hold", "smaller ones"]]}


def _vocab_size(tokenizer: TokenizerSpec) -> int:
    """Words of the tokenizer: the upper bound for one that is yet to be trained; known names need no download."""
    from tclx.data.tokenizer import build_tokenizer
    from tclx.model.text import KNOWN_SIZES

    if isinstance(tokenizer, TrainedTokenizer):
        return tokenizer.vocab_size
    if tokenizer.name in KNOWN_SIZES:
        return 28996 if tokenizer.name.endswith("-cased") else 30522
    return build_tokenizer(tokenizer, ()).vocab_size


if __name__ == "__main__":
    main()
