"""How does a run go from a prepared folder to trained, evaluated weights? One loop, top to bottom.

Everything that happens in a step is a function of the saved state and of (seed, step, rank): the data by its position, the learning
rate by its formula, dropout and negatives by a generator seeded anew at every step. So a killed run that resumes from a checkpoint
takes the same steps as one that was never killed, bit for bit on a CPU with the same number of threads and processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from tclx import distributed
from tclx.data.batch import Batch
from tclx.data.dataset import train_batches
from tclx.errors import InputError, Interrupted, MachineError, Problem, RunFailed, TclxError
from tclx.model.momentum import update_momentum
from tclx.model.tcl import TCL
from tclx.model.weights import load_initial_weights
from tclx.plan import Plan
from tclx.runs import RunFolder, RunState
from tclx.spec.experiment import ExperimentSpec
from tclx.track.console import Watcher, watch
from tclx.track.jsonl import MetricsFile, Row
from tclx.train import checkpoint, environment
from tclx.train.checkpoint import Progress
from tclx.train.optim import build_optimizer, learning_rate, parameters_of, soft_label_weight
from tclx.train.precision import autocast, choose_device, gradient_scaler, prepare_numerics
from tclx.train.step import StepOutput, TrainingStep
from tclx.train.stopping import StopRequest, stop_request


@dataclass(frozen=True)
class Machinery:
    """What trains: built once, the same objects to the end."""

    device: torch.device
    model: TCL
    step: nn.Module
    """A TrainingStep, averaging its gradients over processes where there are several."""
    optimizer: AdamW
    scaler: torch.amp.GradScaler
    parameters: tuple[nn.Parameter, ...]
    """Those that the optimizer moves."""


@dataclass
class Tally:
    """What is counted between two rows; of this process alone."""

    num_bad_images: int
    """Since the start of the run, of all processes up to the last checkpoint."""
    num_steps: int = 0
    seconds: float = 0.0
    seconds_waiting: float = 0.0


def train(folder: RunFolder, spec: ExperimentSpec, plan: Plan, *, console: Console | None = None) -> RunState:
    """Train a run to its end, from its newest checkpoint where it has one; evaluates on the spec's schedule.

    Every process of the run calls this. The caller holds the run's lock.

    Args:
        folder: with spec and plan written; everything else comes from here.
        console: where progress is shown; stderr by default.

    Returns:
        The finished state; at once when the run was finished before.

    Raises:
        Interrupted: a signal asked to stop; everything is saved and the same call goes on.
        RunFailed: a loss or gradient is not finite. The newest checkpoint is from before.
        InputError: the checkpoint, the processes or the initial weights do not fit the spec.
        MachineError: a missing device, a full disk.
    """
    state = folder.read_state()
    if state is not None and state.status == "finished":
        return state
    device = choose_device(spec.training)
    with distributed.start(device), stop_request() as stop:
        console = console or Console(stderr=True)
        console = console if distributed.is_main() else Console(quiet=True)
        try:
            return _train(folder, spec, plan, device=device, stop=stop, console=console)
        except TclxError as error:
            _record_end(folder, error)
            raise


def _train(
    folder: RunFolder, spec: ExperimentSpec, plan: Plan, *, device: torch.device, stop: StopRequest, console: Console
) -> RunState:
    _check_processes(plan)
    prepare_numerics(spec.training, device)
    say = _announcer(console)
    if changed := distributed.on_main(lambda: environment.record(folder, device)):
        say(f"this is not the machine, code or layout that the run started on ({', '.join(changed)}): the last bits may differ")

    tokenizer = distributed.on_main(lambda: tokenizer_of(folder, spec))
    machinery = _build(spec, device, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_token_id)
    metrics = MetricsFile(folder.metrics)
    progress, rows = _resume_or_start(folder, spec, plan, machinery, metrics, say)
    best = _best(rows, spec)
    distributed.on_main(lambda: _write_best(folder, best))

    def evaluate(split: str) -> dict[str, float]:
        # Batch-norm statistics are each process's own; all evaluate with those that are saved.
        distributed.copy_from_main(machinery.model.online.buffers())
        return evaluate_split(machinery.model, spec, split, tokenizer=tokenizer, device=device)

    with watch(console, title=plan.run_id, first_step=progress.step, total_steps=plan.total_steps) as watcher:
        if _evaluation_is_due(progress.step, plan) and not _was_evaluated(rows, progress.step):
            best = _evaluate_now(folder, spec, progress.step, evaluate, metrics, watcher, best)
        _distributed_state(folder, "running", progress.step, plan)
        tally = Tally(num_bad_images=progress.num_bad_images if distributed.is_main() else 0)
        batches = train_batches(
            spec,
            tokenizer=tokenizer,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_micro_step=progress.step * spec.training.accumulation_steps,
        )
