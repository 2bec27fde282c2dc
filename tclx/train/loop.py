"""How does a run go from a prepared folder to trained, evaluated weights? One loop, top to bottom.

Everything in a step is a function of the saved state and of (seed, step, rank): the data by its position, the learning rate by
its formula, dropout by a generator that is seeded anew at every step. So a killed run that resumes from a checkpoint takes the
same steps as one that was never killed, bit for bit on a CPU with the same number of threads and processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import chain
from typing import Any, cast

import torch
from rich.console import Console

from tclx import distributed
from tclx.data.batch import RowBatch
from tclx.errors import InputError, Interrupted, Problem, RunFailed, TclxError
from tclx.model.downloads import ask_no_hub
from tclx.model.tcl import TCL
from tclx.plan import Plan
from tclx.printing import screen
from tclx.runs import RunFolder, RunState
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.rules import missing_packages
from tclx.tasks.task import StepOutput, TrainingTask
from tclx.track.console import watch_each
from tclx.track.jsonl import MetricsFile, Row
from tclx.track.sink import Sink, TrackedRun
from tclx.track.sinks import open_sinks
from tclx.train.agreement import Agreement, Pass, reads_late, update
from tclx.train.balancing import Balancing
from tclx.train.failures import known_failure, record_end
from tclx.train.gauge import Gauge
from tclx.train.heartbeat import heartbeat
from tclx.train.measure import Tally, average, term_gradient_norms, term_relations
from tclx.train.optim import clip_gradients, gradient_norm, learning_rate, parameters_of
from tclx.train.precision import autocast, choose_device, prepare_numerics
from tclx.train.saving import Background
from tclx.train.session import Session, begin
from tclx.train.stopping import StopRequest, answering_requests, stop_request
from tclx.train.utilisation import Utilisation
from tclx.train.watchdog import BATCH, UPLOADING, Watchdog

_ALL_RANKS = -1
"""In place of a rank: for what all processes draw alike, however many there are."""


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
    rank = distributed.rank_from_environment()  # the processes have not met yet, so it comes from outside
    watchdog = Watchdog(folder, rank=rank, world_size=plan.world_size)
    # A second request to stop ends this process without the main thread, which may wait for something that never comes.
    ended_by_request = answering_requests(
        doing=lambda: watchdog.stage.name,
        leave=lambda reason: watchdog.leave("interrupted", reason, exit_code=os.EX_TEMPFAIL),
    )
    beating = heartbeat(folder) if rank == 0 else nullcontext()
    with beating, watchdog, ended_by_request, distributed.start(device), stop_request() as stop:
        if consoles is None:
            consoles = [Console(stderr=True), *([Console(file=terminal)] if (terminal := screen()) is not None else [])]
        try:
            _train(folder, spec, plan, device, stop, watchdog, consoles if distributed.is_main() else [])
        except TclxError as error:
            record_end(folder, plan, error)
            raise
        except (RuntimeError, MemoryError) as error:
            if (reason := known_failure(error, device)) is None:
                raise
            record_end(folder, plan, reason)
            raise reason from error
    finished = folder.read_state()
    if finished is None:
        raise RuntimeError(f"{folder.state} vanished")
    return finished


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
    ask_no_hub(spec)
    trained = begin(folder, spec, plan, device=device, consoles=consoles)
    progress, is_main, metrics = trained.progress, distributed.is_main(), MetricsFile(folder.metrics)
    rows = distributed.on_main(lambda: metrics.truncate_after(progress.step))
    # Counts are summed over processes, so what was counted before goes to one of them.
    tally = Tally(progress.num_bad_images, progress.num_bad_in_epoch) if is_main else Tally(0, 0)
    with watch_each(consoles, title=plan.run_id, first_step=progress.step, total_steps=plan.total_steps) as watcher:
        tracked = TrackedRun(folder, spec, rows, say=watcher.say, in_a_hurry=lambda: bool(stop))
        with open_sinks(tracked) if is_main else nullcontext(Sink()) as sinks, Background() as writer:
            session = Session(folder, spec, plan, device, trained, metrics, sinks, watcher, stop, watchdog, tally, writer)
            session.catch_up(rows)
            if progress.step < plan.total_steps:
                _take_all_steps(session)
            session.finish()
            watchdog.enter(UPLOADING)


def _take_all_steps(session: Session) -> None:
    """From the step the run stands at to the last one."""
    spec, trained = session.spec, session.trained
    first_step = trained.progress.step
    batches = spec.task.batches(
        spec,
        tokenizer=trained.tokenizer,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_micro_step=first_step * spec.training.accumulation_steps,
    )
    with closing(cast("Generator[RowBatch, None, None]", batches)):
        with session.watchdog.during(BATCH):
            first = next(batches)
        inputs = spec.task.inputs(0, spec, session.plan)
        distributed.fix_bucket_order(trained.step, lambda: _forward(session, first, draw=0, measure=False, inputs=inputs).loss)
        _take_steps(session, first_step, chain([first], batches))


def _take_steps(session: Session, first_step: int, batches: Iterator[RowBatch]) -> None:
    """The loop: a step's batches, their gradients, the update; then write down, save, evaluate.

    Raises:
        Interrupted: some process was asked to stop; the step is saved.
        RunFailed: a loss or a gradient is not finite on some process, and its step was not taken; or too many images are bad.
    """
    spec, plan, trained = session.spec, session.plan, session.trained
    task: TrainingTask = spec.task
    model, optimizer, scaler = trained.model, trained.optimizer, trained.scaler
    parameters, num_passes = list(parameters_of(optimizer)), spec.training.accumulation_steps
    gauge = Gauge(session.device, session.watcher.say)
    utilisation = Utilisation(spec, plan, session.device, vocab_size=trained.tokenizer.vocab_size)
    balance = model.balance if isinstance(model, TCL) else None
    shared = model.online.last_parameters() if balance is not None else []
    is_late = reads_late(spec, session.device)
    before: Agreement | None = None
    for step in range(first_step, plan.total_steps):
        # Every random number of the step follows from here: nothing of the generators' state needs saving, and an evaluation or
        # a resume in between changes nothing.
        torch.manual_seed(_step_seed(spec.seed, step, distributed.rank()))
        done = step + 1
        measures_terms = _is_due(done, spec.tracking.term_gradient_norms_every_steps)
        compares_terms = not spec.launch.fsdp and _is_due(done, spec.tracking.term_gradients_every_steps)
        writes_row = done in (1, plan.total_steps) or _is_due(done, spec.tracking.log_every_steps)
        writes_row = writes_row or measures_terms or compares_terms

        with session.tally.timing(), session.watchdog.step(step, compiles=spec.training.compile):
            rate = learning_rate(
                step,
                optim=spec.optim,
                total_steps=plan.total_steps,
                steps_per_epoch=plan.steps_per_epoch,
                official=spec.compat == "official",
            )
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)
            inputs = task.inputs(step, spec, plan)
            task.before_update(model, spec)

            optimizer.zero_grad(set_to_none=True)
            passes: list[Pass] = []
            balancing = Balancing(balance, parameters, shared, done=done)
            term_norms: dict[str, float] = {}
            for number in range(num_passes):
                with session.tally.waiting(), session.watchdog.during(BATCH):
                    batch = next(batches)
                session.tally.count(batch)
                is_last = number == num_passes - 1  # then the processes average their gradients
                averages = is_last and not balancing.projects
                with nullcontext() if averages else distributed.without_averaging(trained.step):
                    draw = step * num_passes + number
                    output = _forward(session, batch, draw=draw, measure=writes_row, inputs=inputs)
                    if measures_terms and number == 0:
                        term_norms = term_gradient_norms(output, parameters, scale=scaler.get_scale())
                    if compares_terms and number == 0:
                        term_norms |= term_relations(output, model.online.last_parameters(), scale=scaler.get_scale())
                    balancing.look(output, scale=scaler.get_scale)
                    if balancing.projects:
                        balancing.add(output, scale=scaler.get_scale() / num_passes)
                    else:
                        scaler.scale(output.loss / num_passes).backward()  # type: ignore[no-untyped-call]
                passes.append(Pass(output.loss.detach(), output.measures, output.keys, batch.row))

            balancing.put(seed=_step_seed(spec.seed, step, _ALL_RANKS))
            scaler.unscale_(optimizer)
            norm = gradient_norm(parameters)
            agreement = Agreement(step, passes, norm=norm, scaler=scaler, stop=bool(session.stop))
            stopping = False if is_late else agreement.read()
            if spec.optim.clip_gradient_norm is not None:
                clip_gradients(parameters, norm=norm, maximum=spec.optim.clip_gradient_norm)
            update(optimizer, scaler, unless=agreement.is_bad if is_late else None)
            balancing.finish()
            task.after_update(model, spec, [each.keys for each in passes if each.keys is not None])

            evaluates = session.evaluation_is_due(done)
            saves = evaluates or done == plan.total_steps or _is_due(done, plan.checkpoint_every_steps)
            if is_late:
                stopping = before is not None and before.read()
                before = agreement
                if stopping or saves or writes_row:  # what is kept has been found sound
                    stopping |= agreement.read()
                    before = None

            row: Row = {}
            if writes_row:
                row = {
                    "step": done,
                    "epoch": done / plan.steps_per_epoch,
                    **average([each.measures for each in passes]),
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                    **term_norms,
                    **task.row(model, inputs),
                    "data/bad_images": session.tally.bad_images(session.device)[0],
                }

        session.watcher.step(done)
        if writes_row or done % plan.steps_per_epoch == 0:
            _limit_bad_images(session, done)
        if writes_row:
            speed = session.tally.speed(session.device)
            if distributed.is_main():  # whose row is written
                speed |= utilisation.read(speed["speed/images_per_second"]) | gauge.read()
            session.write_row(row | speed)
            session.write_state("running", done)
        if stopping or saves:
            session.save(done)  # before the evaluation: a run that is killed while it evaluates only evaluates again
        if stopping:
            session.wait_until_saved()
            raise Interrupted(f"stopped by {session.stop.signal_name or 'another process'} and saved at step {done}")
        if evaluates:
            session.evaluate(done)


def _forward(session: Session, batch: RowBatch, *, draw: int, measure: bool, inputs: dict[str, Any]) -> StepOutput:
    there = batch.to(session.device, non_blocking=True)
    with autocast(session.spec.training, session.device):
        output: StepOutput = session.trained.step(there, draw=draw, measure=measure, **inputs)
    return output


def _limit_bad_images(session: Session, done: int) -> None:
    """Stop when more of an epoch's images were bad than the spec allows; counted afresh in every epoch.

    Raises:
        RunFailed: on all processes.
    """
    plan, limit = session.plan, session.spec.data.bad_images.limit
    num_bad = session.tally.bad_images(session.device)[1]
    num_images = plan.steps_per_epoch * plan.global_batch_size
    if num_bad > limit * num_images:
        counted = f"{num_bad} of the {num_images} images of this epoch could not be read"
        raise RunFailed(f"{counted}, and data.bad_images.limit is {limit:g}; tclx data check names them")
    if done % plan.steps_per_epoch == 0:
        session.tally.num_bad_in_epoch = 0


def _is_due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Neighbouring steps and ranks must not share random numbers, so the triple is hashed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7])
