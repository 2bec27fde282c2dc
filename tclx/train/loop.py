"""How does a run go from a prepared folder to trained, evaluated weights? One loop, top to bottom.

Everything in a step is a function of the saved state and of (seed, step, rank): the data by its position, the learning rate by
its formula, dropout by a generator that is seeded anew at every step. So a killed run that resumes from a checkpoint takes the
same steps as one that was never killed, bit for bit on a CPU with the same number of threads and processes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, dropwhile
from pathlib import Path
from typing import NamedTuple, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from tclx import distributed
from tclx.data.batch import Batch
from tclx.data.dataset import train_batches, training_captions, worker_death
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError, Interrupted, LostPeer, MachineError, Problem, RunFailed, TclxError
from tclx.model.momentum import update_momentum
from tclx.model.tcl import TCL
from tclx.model.weights import load_initial_weights
from tclx.plan import Plan
from tclx.printing import screen
from tclx.runs import Best, RunFolder, RunState, Status, Superseded
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.rules import missing_packages
from tclx.tasks.evaluating import evaluate_tasks, row_of, write_evaluations
from tclx.tasks.pretrain.features import QueueKeys
from tclx.tasks.pretrain.step import StepOutput, TrainingStep
from tclx.tasks.task import Evaluation, Split
from tclx.terminal import printable
from tclx.track.console import Watcher, watch_each
from tclx.track.jsonl import MetricsFile, Row
from tclx.track.sending import sending
from tclx.track.tensorboard import TensorBoard
from tclx.train import checkpoint, environment
from tclx.train.checkpoint import Progress
from tclx.train.heartbeat import heartbeat
from tclx.train.measure import Tally, average, describe_nonfinite, temperatures, term_gradient_norms
from tclx.train.optim import build_optimizer, learning_rate, parameters_of, soft_label_weight
from tclx.train.precision import autocast, choose_device, gradient_scaler, prepare_numerics
from tclx.train.stopping import StopRequest, hearing_requests, stop_request
from tclx.train.watchdog import BATCH, EVALUATING, SAVING, STARTING, UPLOADING, Watchdog

# Only CUDA's allocator raises an error of its own class; cuBLAS, cuDNN, NCCL and the CPU's allocator raise plain ones, and
# oneDNN (kernels of torch on a CPU) one that names no memory.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|STATUS_ALLOC_FAILED|(can't allocate|not enough) memory|could not create a (primitive|memory)"
)


@dataclass
class Session:
    """One process's part in a run: what was asked, what trains, where it is written down."""

    folder: RunFolder
    spec: ExperimentSpec
    plan: Plan
    device: torch.device
    tokenizer: CaptionTokenizer
    model: TCL
    step: nn.Module
    """A TrainingStep, averaging its gradients over processes where there are several."""
    optimizer: AdamW
    scaler: torch.amp.GradScaler
    metrics: MetricsFile
    board: TensorBoard | None
    """Of rank 0, when the spec asks for it."""
    watcher: Watcher
    stop: StopRequest
    watchdog: Watchdog
    tally: Tally
    evaluated: list[Best] = field(default_factory=list)
    """During training, the best first; rank 0's."""

    @property
    def official(self) -> bool:
        return self.spec.compat == "official"


def train(folder: RunFolder, spec: ExperimentSpec, plan: Plan, *, consoles: Sequence[Console] | None = None) -> RunState:
    """Train a run to its end, from its newest checkpoint where it has one; evaluate on the spec's schedule.

    Every process of the run calls this; the caller holds the run's lock.

    Args:
        folder: a prepared run folder.
        consoles: where progress is shown; by default stderr, and the screen where stderr is a log.

    Returns:
        The finished state; at once when the run was finished before.

    Raises:
        Interrupted: a signal asked to stop; everything is saved and the same call goes on.
        RunFailed: a loss or gradient is not finite; the newest checkpoint is from before that step.
        InputError: the checkpoint, the number of processes or the initial weights do not fit the spec.
        MachineError: a missing device, a full disk.
    """
    state = folder.read_state()
    if state is not None and state.status == "finished":
        return state
    device = choose_device(spec.training)
    watchdog = Watchdog(folder, rank=distributed.rank_to_be(), world_size=plan.world_size)
    with _beating(folder), watchdog, _hearing(watchdog), distributed.start(device), stop_request() as stop:
        own_consoles = (consoles or _consoles()) if distributed.is_main() else []
        try:
            _train(folder, spec, plan, device, stop, watchdog, own_consoles)
        except TclxError as error:
            _record_end(folder, plan, error)
            raise
        except (RuntimeError, MemoryError) as error:
            if (reason := _known_failure(error, device)) is None:
                raise
            _record_end(folder, plan, reason)
            raise reason from error
    finished = folder.read_state()
    if finished is None:
        raise RuntimeError(f"{folder.state} vanished")
    return finished


def _consoles() -> list[Console]:
    return [Console(stderr=True), *([Console(file=terminal)] if (terminal := screen()) is not None else [])]


def _known_failure(error: RuntimeError | MemoryError, device: torch.device) -> TclxError | None:
    """What a user can do about an error of torch's or of memory; None for what is a bug."""
    if device.type == "mps" and (isinstance(error, NotImplementedError) or "out of memory" in str(error)):
        return RunFailed(f"training.device: mps: {str(error).splitlines()[0]} (device: cpu computes everything)")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)):
        whose = "this machine"
        if device.type == "cuda":
            gib = torch.cuda.get_device_properties(device).total_memory / 2**30
            whose = f"the GPU ({gib:.0f} GiB)"
        return RunFailed(
            f"the memory of {whose} is not enough: lower training.batch_size_per_gpu (and raise accumulation_steps), or set "
            "training.activation_checkpointing: true or precision: bf16; during an evaluation lower "
            "evaluation.retrieval.batch_size; tclx plan estimates what training needs"
        )
    if distributed.is_lost_peer(error):
        return LostPeer("another process of this run is gone; its own log says why, unless it was killed")
    return worker_death(error)


def _train(
    folder: RunFolder,
    spec: ExperimentSpec,
    plan: Plan,
    device: torch.device,
    stop: StopRequest,
    watchdog: Watchdog,
    consoles: Sequence[Console],
) -> None:
    if plan.world_size != distributed.world_size():
        message = f"the run is planned for {plan.world_size} processes, and {distributed.world_size()} have started"
        raise InputError(Problem("launch.num_processes", message))
    if problems := list(missing_packages(spec)):  # planned elsewhere, it may have been there
        raise InputError(*problems)
    prepare_numerics(spec.training, device)

    def say(text: str) -> None:
        for console in consoles:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    distributed.on_main(folder.sweep_leftovers)
    changed = distributed.on_main(lambda: environment.record(folder, device))
    if changed:
        say(f"not where it trained before ({', '.join(changed)}): the last bits may differ from an uninterrupted run")
    tokenizer = _tokenizer(folder, spec)
    model = _build_model(spec, device, tokenizer)
    step = distributed.wrap(TrainingStep(model, spec))
    optimizer = build_optimizer(model, spec.optim, official=spec.compat == "official")
    scaler = gradient_scaler(spec.training, device)
    progress = _resume(folder, plan, model, optimizer, scaler, say)
    if progress is None:
        progress = _start(folder, spec, model, say)

    with watch_each(consoles, title=plan.run_id, first_step=progress.step, total_steps=plan.total_steps) as watcher:
        session = Session(
            folder, spec, plan, device, tokenizer, model, step, optimizer, scaler,
            MetricsFile(folder.metrics), _board(folder, spec, watcher), watcher, stop, watchdog,
            _tally(progress),
        )  # fmt: skip
        _catch_up(session, progress.step)
        with sending(
            folder, spec.tracking.wandb if distributed.is_main() else None, say=watcher.say, hurried=lambda: bool(stop)
        ):
            _run_steps(session, progress.step)
            _finish(session)
            watchdog.enter(UPLOADING)


def _beating(folder: RunFolder) -> AbstractContextManager[None]:
    """Rank 0's heartbeat is the run's. The other processes have not met yet when it starts, so its rank comes from outside."""
    return heartbeat(folder) if distributed.rank_to_be() == 0 else nullcontext()


def _hearing(watchdog: Watchdog) -> AbstractContextManager[None]:
    """A second request to stop ends this process without the main thread, which may wait for something that never comes."""
    return hearing_requests(
        doing=lambda: watchdog.stage.name,
        leave=lambda reason: watchdog.leave("interrupted", reason, exit_code=os.EX_TEMPFAIL),
    )


def _board(folder: RunFolder, spec: ExperimentSpec, watcher: Watcher) -> TensorBoard | None:
    return TensorBoard(folder, say=watcher.say) if spec.tracking.tensorboard and distributed.is_main() else None


def _tally(progress: Progress) -> Tally:
    """Counts are summed over processes, so what was counted before goes to one of them."""
    if distributed.is_main():
        return Tally(progress.num_bad_images, progress.num_bad_in_epoch)
    return Tally(0, 0)


def _run_steps(session: Session, first_step: int) -> None:
    """From this step to the last one."""
    spec, plan = session.spec, session.plan
    if first_step == plan.total_steps:
        return
    stream = cast(
        "Generator[Batch, None, None]",
        train_batches(
            spec,
            tokenizer=session.tokenizer,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_micro_step=first_step * spec.training.accumulation_steps,
        ),
    )
    with closing(stream):
        with session.watchdog.during(BATCH):
            first = next(stream)
        distributed.settle_buckets(session.step, lambda: _forward(session, first, soft_label_weight=0.0, draw=0).loss)
        _take_steps(session, first_step, chain([first], stream))


def _take_steps(session: Session, first_step: int, batches: Iterator[Batch]) -> None:
    """The loop: update, write down, save, evaluate."""
    spec, plan = session.spec, session.plan
    for step in range(first_step, plan.total_steps):
        # Every random number of the step follows from here: nothing of the generators' state needs saving, and an evaluation or
        # a resume in between changes nothing.
        torch.manual_seed(_step_seed(spec.seed, step, distributed.rank()))
        done = step + 1
        writes_row = done in (1, plan.total_steps) or _is_due(done, spec.tracking.log_every_steps)
        measures_terms = _is_due(done, spec.tracking.term_gradient_norms_every_steps)

        with session.tally.timing(), session.watchdog.step(step, compiles=spec.training.compile):
            row, stopping = _update(session, step, batches, measure=writes_row or measures_terms, measures_terms=measures_terms)
        session.watcher.step(done)
        if row is not None or done % plan.steps_per_epoch == 0:
            _limit_bad_images(session, done)
        if row is not None:
            _write_row(session, row | session.tally.speed(session.device))
            _write_state(session, "running", done)

        evaluates = _evaluation_is_due(plan, done)
        if stopping or evaluates or done == plan.total_steps or _is_due(done, plan.checkpoint_every_steps):
            _save(session, done)  # before the evaluation: a run that is killed while it evaluates only evaluates again
        if stopping:
            raise Interrupted(f"stopped by {session.stop.signal_name or 'another process'} and saved at step {done}")
        if evaluates:
            _evaluate(session, done)


class Passes(NamedTuple):
    """The forward and backward passes of one optimizer step, their gradients added up in the parameters."""

    losses: list[Tensor]
    """Detached scalars."""
    measures: list[dict[str, Tensor]]
    keys: list[QueueKeys]
    """For the queue; empty without one."""
    rows: list[Tensor]
    """The training rows of each pass."""
    gradient_norms: dict[str, float]
    """Of every term alone, when they are measured."""


def _update(
    session: Session, step: int, batches: Iterator[Batch], *, measure: bool, measures_terms: bool
) -> tuple[Row | None, bool]:
    """One optimizer step; returns its row when it is measured, and whether any process was asked to stop.

    Raises:
        RunFailed: a loss or a gradient is not finite on some process; nothing has been changed.
    """
    spec, plan, model, optimizer, scaler = session.spec, session.plan, session.model, session.optimizer, session.scaler
    rate = learning_rate(
        step,
        optim=spec.optim,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        official=session.official,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    weight = soft_label_weight(step, soft_labels=spec.objectives.soft_labels, ramp_steps=plan.soft_label_ramp_steps)
    if session.official:  # the published code clamps, and moves the momentum encoders, before the forward pass
        _follow(model, spec)

    passes = _backward(session, step, batches, soft_label_weight=weight, measure=measure, measures_terms=measures_terms)
    scaler.unscale_(optimizer)
    parameters = list(parameters_of(optimizer))
    gradient_norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    stopping = _agree(session, step, passes, gradient_norm)
    if spec.optim.clip_gradient_norm is not None:
        clip_grads_with_norm_(parameters, spec.optim.clip_gradient_norm, gradient_norm)
    scaler.step(optimizer)
    scaler.update()
    if not session.official:
        _follow(model, spec)
    if model.queue is not None:
        for keys in passes.keys:
            model.queue.enqueue(*keys)

    if not measure:
        return None, stopping
    row: Row = {
        "step": step + 1,
        "epoch": (step + 1) / plan.steps_per_epoch,
        **average(passes.measures),
        **temperatures(model),
        "learning_rate": rate,
        "gradient_norm": float(gradient_norm),
        **passes.gradient_norms,
        "soft_labels/weight": weight,
        "data/bad_images": session.tally.bad_images(session.device)[0],
    }
    return row, stopping


def _backward(
    session: Session, step: int, batches: Iterator[Batch], *, soft_label_weight: float, measure: bool, measures_terms: bool
) -> Passes:
    """Forward and backward over the step's batches; processes average their gradients in the last one."""
    optimizer, scaler, tally = session.optimizer, session.scaler, session.tally
    num_passes = session.spec.training.accumulation_steps
    passes = Passes([], [], [], [], {})
    optimizer.zero_grad(set_to_none=True)
    for number in range(num_passes):
        with tally.waiting(), session.watchdog.during(BATCH):
            batch = next(batches)
        tally.count(batch)
        is_last = number == num_passes - 1
        with nullcontext() if is_last else distributed.without_averaging(session.step):
            draw = step * num_passes + number
            output = _forward(session, batch, soft_label_weight=soft_label_weight, draw=draw, measure=measure)
            if measures_terms and number == 0:
                parameters = list(parameters_of(optimizer))
                passes.gradient_norms.update(term_gradient_norms(output, parameters, scale=scaler.get_scale()))
            scaler.scale(output.loss / num_passes).backward()  # type: ignore[no-untyped-call]
        passes.losses.append(output.loss.detach())
        passes.measures.append(output.measures)
        passes.keys.extend([output.keys] if output.keys is not None else [])
        passes.rows.append(batch.row)
    return passes


def _forward(session: Session, batch: Batch, *, soft_label_weight: float, draw: int, measure: bool = False) -> StepOutput:
    there = batch.to(session.device, non_blocking=True)
    with autocast(session.spec.training, session.device):
        output: StepOutput = session.step(there, soft_label_weight=soft_label_weight, draw=draw, measure=measure)
    return output


def _follow(model: TCL, spec: ExperimentSpec) -> None:
    """Temperatures back into their bounds, momentum encoders a little towards the online ones."""
    model.clamp_temperatures()
    if model.momentum is not None:
        update_momentum(model.online, model.momentum, keep=spec.model.momentum)


def _agree(session: Session, step: int, passes: Passes, gradient_norm: Tensor) -> bool:
    """Whether any process was asked to stop; all processes learn it, and whether this step may be taken, in one exchange.

    Raises:
        RunFailed: on all processes, where it may not.
    """
    bad_loss = ~torch.stack(passes.losses).isfinite().all()
    # fp16 gradients overflow now and then: the scaler skips such a step and tries a smaller scale.
    bad_gradient = ~gradient_norm.isfinite() & (not session.scaler.is_enabled())
    asked = torch.tensor(bool(session.stop), device=session.device)
    is_bad, stopping = distributed.maximum(torch.stack([bad_loss | bad_gradient, asked]).to(torch.uint8)).tolist()
    if is_bad:
        raise RunFailed(describe_nonfinite(step, passes.measures, torch.cat(passes.rows), float(gradient_norm)))
    return bool(stopping)


def _limit_bad_images(session: Session, done: int) -> None:
    """Stop when more of an epoch's pictures were bad than the spec allows; counted afresh in every epoch.

    Raises:
        RunFailed: on all processes.
    """
    plan, limit = session.plan, session.spec.data.bad_images.limit
    num_bad = session.tally.bad_images(session.device)[1]
    num_pictures = plan.steps_per_epoch * plan.global_batch_size
    if num_bad > limit * num_pictures:
        counted = f"{num_bad} of the {num_pictures} pictures of this epoch could not be read"
        raise RunFailed(f"{counted}, and data.bad_images.limit is {limit:g}; tclx data check names them")
    if done % plan.steps_per_epoch == 0:
        session.tally.num_bad_in_epoch = 0


def _is_due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _evaluation_is_due(plan: Plan, done: int) -> bool:
    return (
        plan.evaluate_every_steps is not None
        and done > 0
        and (done % plan.evaluate_every_steps == 0 or done == plan.total_steps)
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Neighbouring steps and ranks must not share random numbers, so the triple is hashed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7])


# ----------------------------------------------------------------------------------------------------------------- beginning


def _tokenizer(folder: RunFolder, spec: ExperimentSpec) -> CaptionTokenizer:
    """The run's tokenizer: made once, by rank 0, then read from the run folder by everyone."""

    def make() -> None:
        if folder.tokenizer.exists():
            return
        building = folder.path / f".tokenizer.{os.getpid()}.tmp"
        checkpoint.save_tokenizer(build_tokenizer(spec.data.tokenizer, training_captions(spec.data)), building)
        building.rename(folder.tokenizer)  # complete or not there, as a killed process may be started again

    distributed.on_main(make)
    return checkpoint.load_tokenizer(folder.tokenizer)


def _build_model(spec: ExperimentSpec, device: torch.device, tokenizer: CaptionTokenizer) -> TCL:
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).to(device)
    model.train()
    if spec.training.compile:
        for encoders in (model.online, model.momentum):
            for part in encoders.children() if encoders is not None else ():
                part.compile()  # in place: names in the state dict stay what they are
    return model


def _resume(
    folder: RunFolder, plan: Plan, model: TCL, optimizer: AdamW, scaler: torch.amp.GradScaler, say: Callable[[str], None]
) -> Progress | None:
    """Put the newest sound checkpoint into place; rank 0 finds it, everyone reads it."""

    def find() -> Progress | None:
        checkpoint.sweep_leftovers(folder.checkpoints)

        def report(text: str) -> None:
            say(text)
            folder.add_event("checkpoint_damaged", message=text)

        return checkpoint.resume(folder.checkpoints, model=model, optimizer=optimizer, run_id=plan.run_id, report=report)

    progress = distributed.on_main(find)
    if progress is None:
        return None
    if not distributed.is_main():
        checkpoint.load(
            checkpoint.place(folder.checkpoints, progress.step), model=model, optimizer=optimizer, run_id=plan.run_id
        )
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)
    distributed.on_main(lambda: folder.add_event("resumed", step=progress.step))
    say(f"going on at step {progress.step} of {plan.total_steps}")
    return progress


def _start(folder: RunFolder, spec: ExperimentSpec, model: TCL, say: Callable[[str], None]) -> Progress:
    """Step 0, from the spec's initial weights where it names some."""
    if spec.init is not None:
        if spec.init.checkpoint is None:
            raise InputError(
                Problem("init.experiment", "the launcher replaces it by a run folder before training", "use tclx run")
            )
        weights = checkpoint.weights_of(Path(spec.init.checkpoint))
        report = load_initial_weights(model, weights.tensors, source=weights.path)
        say(f"starting from {spec.init.checkpoint}: {len(report.loaded)} tensors taken over")
    distributed.on_main(lambda: folder.add_event("started"))
    return Progress(step=0)


def _catch_up(session: Session, step: int) -> None:
    """Bring the files in line with the step the run stands at, and evaluate if it was stopped just before it would have."""
    rows = distributed.on_main(lambda: session.metrics.truncate_after(step))
    if session.board is not None:
        session.board.begin(rows)
    metric = session.spec.evaluation.best_row_metric
    session.evaluated = [Best(row["step"], metric, row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    is_evaluated = any(found.step == step for found in session.evaluated)
    distributed.on_main(lambda: _settle_best(session))
    _write_state(session, "running", step)
    if _evaluation_is_due(session.plan, step) and not is_evaluated:
        _evaluate(session, step)


# ----------------------------------------------------------------------------------------------------- saving and evaluating


def _save(session: Session, step: int) -> None:
    """A checkpoint of this step, the best and the newest kept; all processes wait for it."""
    num_bad_images, num_bad_in_epoch = session.tally.bad_images(session.device)

    def save() -> None:
        session.folder.check_attempt()
        session.metrics.sync()
        progress = Progress(step, num_bad_images, num_bad_in_epoch, session.scaler.state_dict())
        path = checkpoint.save(
            session.folder.checkpoints, progress, model=session.model, optimizer=session.optimizer, run_id=session.plan.run_id
        )
        session.folder.check_attempt()  # a large checkpoint takes a while to write; never prune another attempt's
        session.folder.add_event("saved", step=step, checkpoint=path.name)
        _prune(session)

    with session.watchdog.during(SAVING):
        distributed.on_main(save)


def _prune(session: Session) -> None:
    best_step = session.evaluated[0].step if session.evaluated else None
    keep_last = session.spec.training.checkpoints.keep_last
    checkpoint.prune(session.folder.checkpoints, keep_last=keep_last, keep_step=best_step)


def _evaluate(session: Session, step: int) -> None:
    """Evaluate during training: a row of metrics, and the best checkpoint so far."""
    with session.watchdog.during(EVALUATING):
        _evaluate_and_keep(session, step)


def _evaluate_and_keep(session: Session, step: int) -> None:
    split = session.spec.evaluation.during_training
    if split is None:
        raise RuntimeError("an evaluation is due and no split is named")
    found = _evaluated(session, split)
    figures = row_of(found, split)
    _write_examples(session, found, split, step=step)  # before the row that leads to them
    _write_row(session, {"step": step, "epoch": step / session.plan.steps_per_epoch, **figures})
    metric = session.spec.evaluation.best_row_metric

    def keep() -> None:
        session.folder.check_attempt()
        session.evaluated.append(Best(step, metric, figures[metric]))
        _settle_best(session)
        _prune(session)

    distributed.on_main(keep)


def _evaluated(session: Session, split: Split) -> dict[str, Evaluation]:
    # Batch-norm statistics are each process's own; the evaluated ones are those that checkpoints hold, rank 0's.
    distributed.copy_from_main(session.model.online.buffers())
    say, model, spec = session.watcher.say, session.model, session.spec
    return evaluate_tasks(model, spec, split, tokenizer=session.tokenizer, device=session.device, say=say)


def _write_examples(session: Session, found: dict[str, Evaluation], split: Split, *, step: int | None = None) -> None:
    def write() -> None:
        session.folder.check_attempt()
        for task, evaluation in found.items():
            session.folder.write_json(session.folder.examples(task, split, step=step), evaluation.examples())

    distributed.on_main(write)


def _settle_best(session: Session) -> None:
    """best.json names the best evaluation whose checkpoint is all there; a better one whose checkpoint is not is told of."""
    there = {checkpoint.step_of(folder) for folder in checkpoint.complete(session.folder.checkpoints)}
    ranked = sorted(session.evaluated, key=lambda found: -found.value)  # the earlier of equal ones first
    session.evaluated = list(dropwhile(lambda found: found.step not in there, ranked))
    best = session.evaluated[0] if session.evaluated else None
    if ranked and best is not ranked[0]:
        lost = f"checkpoint {_place(session, ranked[0]).name}, {_reached(ranked[0])}, is missing or incomplete"
        instead = f"{_place(session, best).name}, {_reached(best)}," if best else "none"
        _report_damage(session, f"{lost}; of those that are there {instead} is the best")
    if best is not None:
        session.folder.write_json(session.folder.best, asdict(best))
    else:
        session.folder.best.unlink(missing_ok=True)


def _place(session: Session, found: Best) -> Path:
    return checkpoint.place(session.folder.checkpoints, found.step)


def _reached(found: Best) -> str:
    return f"which reached {found.metric} {found.value:.2f}"


def _report_damage(session: Session, text: str) -> None:
    session.watcher.say(text)
    session.folder.add_event("checkpoint_damaged", message=text)


def _write_row(session: Session, row: Row) -> None:
    def append() -> None:
        session.folder.check_attempt()
        session.metrics.append(row)
        if session.board is not None:
            session.board.append(row)

    distributed.on_main(append)
    session.watcher.row(row)


def _write_state(session: Session, status: Status, step: int) -> None:
    state = RunState(status, step=step, total_steps=session.plan.total_steps)
    distributed.on_main(lambda: session.folder.write_state(state))


# -------------------------------------------------------------------------------------------------------------------- ending


def _finish(session: Session) -> None:
    """Evaluate the weights that the run stands for, and say that it is finished."""
    folder, total_steps = session.folder, session.plan.total_steps
    distributed.on_main(folder.check_attempt)
    if distributed.any_rank(bool(session.stop)):
        raise Interrupted(f"stopped by {session.stop.signal_name or 'another process'}, trained but not evaluated")
    session.watchdog.enter(STARTING)  # a checkpoint is read
    if (split := session.spec.evaluation.at_end) is not None:
        chosen = distributed.on_main(lambda: _restore_best(session))
        if chosen is not None and not distributed.is_main():
            checkpoint.put_weights(chosen, checkpoint.read_weights(chosen), session.model)
        session.watchdog.enter(EVALUATING)
        found = _evaluated(session, split)
        step = checkpoint.step_of(chosen) if chosen is not None else 0
        origin = {"split": split, "step": step, "checkpoint": chosen.name if chosen is not None else None}
        _write_examples(session, found, split)
        distributed.on_main(lambda: write_evaluations(folder, found, split, origin=origin))
        session.watcher.row({"step": total_steps, **row_of(found, split)})
    distributed.on_main(lambda: folder.add_event("finished", step=total_steps))
    _write_state(session, "finished", total_steps)


def _restore_best(session: Session) -> Path | None:
    """Put the best weights, or the newest where nothing was evaluated, into rank 0's model; None for a run of no steps.

    Raises:
        RunFailed: no checkpoint is sound any more.
    """
    ranked = [_place(session, found) for found in session.evaluated]
    others = checkpoint.named(session.folder.checkpoints)
    folders = [folder for folder in dict.fromkeys([*ranked, *others]) if folder.exists()]
    chosen = checkpoint.restore(folders, model=session.model, report=lambda text: _report_damage(session, text))
    if chosen is None:
        if session.plan.total_steps:
            raise RunFailed("no checkpoint of this run is sound any more; the same command trains it again")
        return None
    if ranked and chosen != ranked[0]:
        session.evaluated = [found for found in session.evaluated if _place(session, found).exists()]
        _settle_best(session)
        _report_damage(session, f"checkpoint {chosen.name} is evaluated instead of {ranked[0].name}")
    return chosen


def _record_end(folder: RunFolder, plan: Plan, error: TclxError) -> None:
    """Say in the run folder how it ended; the error itself goes on to the caller."""
    if not distributed.is_main() or isinstance(error, Superseded):
        return
    status: Status = "interrupted" if isinstance(error, Interrupted) else "failed"
    newest = checkpoint.newest(folder.checkpoints)
    step = checkpoint.step_of(newest) if newest is not None else 0
    try:
        folder.write_state(RunState(status, step=step, total_steps=plan.total_steps, reason=str(error)))
        folder.add_event(status, step=step, reason=str(error))
    except MachineError:
        pass  # a full disk is what is being reported
