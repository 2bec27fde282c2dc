"""One process's part in a run: what trains, and how it begins, saves, evaluates and finishes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import dropwhile
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from tclx import distributed
from tclx.data.dataset import training_captions
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError, Interrupted, Problem, RunFailed
from tclx.model.compiled import compile_encoders
from tclx.model.sharding import shard_layers, unsharded
from tclx.model.tcl import MomentumModel
from tclx.model.weights import LoadReport, load_initial_weights
from tclx.plan import Plan
from tclx.runs import WARNING, Best, RunFolder, RunState, Status
from tclx.spec.data import TrainedTokenizer
from tclx.spec.experiment import ExperimentSpec, InitSpec
from tclx.tasks.evaluating import evaluate_tasks, row_of, write_evaluations
from tclx.tasks.task import Evaluation, Split, TrainingTask
from tclx.terminal import printable
from tclx.track.console import Watcher
from tclx.track.jsonl import MetricsFile, Row
from tclx.track.sink import Sink
from tclx.train import checkpoint, environment
from tclx.train.checkpoint import Content, Progress
from tclx.train.measure import Tally
from tclx.train.optim import build_optimizer
from tclx.train.precision import gradient_scaler
from tclx.train.saving import Background, Snapshot
from tclx.train.stopping import StopRequest
from tclx.train.watchdog import EVALUATING, SAVING, STARTING, Watchdog


@dataclass
class Trained:
    """What a checkpoint holds, and the step that it stands at."""

    tokenizer: CaptionTokenizer
    model: MomentumModel
    step: nn.Module
    """The task's step, averaging its gradients over processes where there are several."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress


def begin(folder: RunFolder, spec: ExperimentSpec, plan: Plan, *, device: torch.device, consoles: Sequence[Console]) -> Trained:
    """Everything that trains, from the newest sound checkpoint or from the spec's initial weights.

    Raises:
        InputError: the checkpoint or the initial weights do not fit the spec.
        MachineError: a file cannot be read or written.
    """

    def say(text: str) -> None:
        for console in consoles:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    distributed.on_main(folder.clear_leftovers)
    if changed := distributed.on_main(lambda: environment.record(folder, device)):
        say(f"not where it trained before ({', '.join(changed)}): the last bits may differ from an uninterrupted run")
    task: TrainingTask = spec.task
    tokenizer = _tokenizer(folder, spec)
    model = task.build_model(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    if spec.launch.fsdp:  # before it goes to a device that may not have room for all of it
        shard_layers(model, device=device, num_processes=distributed.world_size())
    model = model.to(device)
    model.train()
    if spec.training.compile:
        compile_encoders(model)
    step = distributed.wrap(task.build_step(model, spec))
    optimizer = build_optimizer(model, spec.optim, official=spec.compat == "official")
    scaler = gradient_scaler(spec.training, device)
    progress = _resume(folder, plan, model, optimizer, say)
    if progress is None and spec.init is not None and spec.init.resume:
        progress = _go_on_from(folder, spec.init, plan, model, optimizer, say)
    if progress is None:
        progress = _start(folder, spec, model, say)
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)
    return Trained(tokenizer, model, step, optimizer, scaler, progress)


def _tokenizer(folder: RunFolder, spec: ExperimentSpec) -> CaptionTokenizer:
    """The run's tokenizer: made once, by rank 0, then read from the run folder by everyone."""

    def make() -> None:
        if folder.tokenizer.exists():
            return
        building = folder.path / f".tokenizer.{os.getpid()}.tmp"
        checkpoint.save_tokenizer(_first_tokenizer(spec), building)
        building.rename(folder.tokenizer)  # complete or not there, as a killed process may be started again

    distributed.on_main(make)
    return checkpoint.load_tokenizer(folder.tokenizer)


def _first_tokenizer(spec: ExperimentSpec) -> CaptionTokenizer:
    """The one of the run that is started from, since its weights know words by their numbers; else the spec's.

    Raises:
        InputError: the spec names a tokenizer with other words.
    """
    path = Path(spec.init.checkpoint) if spec.init is not None and spec.init.checkpoint is not None else None
    beside = checkpoint.tokenizer_beside(path) if path is not None else None
    theirs = checkpoint.load_tokenizer(beside) if beside is not None else None
    if theirs is not None and isinstance(spec.data.tokenizer, TrainedTokenizer):
        return theirs
    own = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    if theirs is not None and own.vocabulary != theirs.vocabulary:
        message = f"its words are not those that {path} was trained with"
        raise InputError(Problem("data.tokenizer", message, "the tokenizer of that run's spec"))
    return own


def _resume(
    folder: RunFolder,
    plan: Plan,
    model: MomentumModel,
    optimizer: Optimizer,
    say: Callable[[str], None],
) -> Progress | None:
    """Put the newest sound checkpoint into place; rank 0 finds it, everyone reads it."""

    def find() -> Progress | None:
        checkpoint.clear_leftovers(folder.checkpoints)

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
    distributed.on_main(lambda: folder.add_event("resumed", step=progress.step))
    say(f"going on at step {progress.step} of {plan.total_steps}")
    return progress


def _go_on_from(
    folder: RunFolder,
    init: InitSpec,
    plan: Plan,
    model: MomentumModel,
    optimizer: Optimizer,
    say: Callable[[str], None],
) -> Progress:
    """Where another run stands, as everyone finds it; rank 0 chooses, since that run may train on.

    Raises:
        InputError: it has another model, stands beyond this run's end, or has no sound checkpoint.
    """
    origin = Path(_checkpoint_of(init))
    place = distributed.on_main(lambda: checkpoint.newest_of(origin))
    progress = checkpoint.load(place, model=model, optimizer=optimizer, run_id=None)
    if progress.step >= plan.total_steps:
        message = f"{place} is of step {progress.step}, and this run ends with step {plan.total_steps}"
        raise InputError(Problem("init.resume", message, "a longer run"))
    distributed.on_main(lambda: folder.add_event("started", step=progress.step, origin=str(place)))
    say(f"going on from {place}, at step {progress.step} of {plan.total_steps}")
    return progress


def _checkpoint_of(init: InitSpec) -> str:
    if init.checkpoint is None:
        raise InputError(Problem("init.experiment", "the launcher replaces it by a run folder before training", "use tclx run"))
    return init.checkpoint


def _start(folder: RunFolder, spec: ExperimentSpec, model: MomentumModel, say: Callable[[str], None]) -> Progress:
    """Step 0, from the spec's initial weights where it names some."""
    if spec.init is not None:
        weights = checkpoint.weights_of(Path(_checkpoint_of(spec.init)))
        tensors = spec.task.initial_weights(weights.tensors, model)
        report = load_initial_weights(model, tensors, source=weights.path)
        say(f"starting from {spec.init.checkpoint}: {len(report.loaded)} tensors taken over{_began_anew(report)}")
    distributed.on_main(lambda: folder.add_event("started"))
    return Progress(step=0)


def _began_anew(report: LoadReport) -> str:
    """The parts that the file lacks, in words; momentum encoders follow the online ones."""
    parts = {name.split(".")[1] if name.startswith("online.") else name.split(".")[0] for name in report.missing}
    parts -= {"momentum", "queue", "temperatures"}
    return f"; {', '.join(sorted(parts))} begin at random" if parts else ""


_ROWS_KEPT = 4000
"""What is judged by them lies within a warm-up, which has that many rows where every step of a long one writes one."""


@dataclass
class Session:
    """What was asked, what trains, where it is written down."""

    folder: RunFolder
    spec: ExperimentSpec
    plan: Plan
    device: torch.device
    trained: Trained
    metrics: MetricsFile
    sinks: Sink
    """Copies of the metrics; rank 0's."""
    watcher: Watcher
    stop: StopRequest
    watchdog: Watchdog
    tally: Tally
    writer: Background
    """Writes checkpoints; rank 0's is at work."""
    snapshot: Snapshot = field(default_factory=Snapshot)
    """What it writes; rank 0's."""
    evaluated: list[Best] = field(default_factory=list)
    """During training, the best first; rank 0's."""
    stepped: deque[Row] = field(default_factory=lambda: deque(maxlen=_ROWS_KEPT))
    """The newest rows that steps have written; rank 0's."""
    warned: set[str] = field(default_factory=set)
    """Kinds of warnings that the run has given; rank 0's."""

    # -- writing down --------------------------------------------------------------------------------------------------------

    def write_row(self, row: Row) -> None:
        """Append a row of metrics and show it."""

        def append() -> None:
            self.folder.check_attempt()
            self.writer.check()
            self.metrics.append(row)
            self.sinks.row(row)

        distributed.on_main(append)
        self.watcher.row(row)
        if distributed.is_main() and "loss/total" in row:
            self._warn(row)

    def _warn(self, row: Row) -> None:
        """Say what the rows show to go wrong, each kind once a run."""
        self.stepped.append(row)
        for kind, message in self.spec.task.warnings(list(self.stepped), self.spec, self.plan):
            if kind not in self.warned:
                self.warned.add(kind)
                self.folder.add_event(WARNING, step=row["step"], kind=kind, message=message)
                self.watcher.say(f"warning: {message}")

    def write_state(self, status: Status, step: int) -> None:
        state = RunState(status, step=step, total_steps=self.plan.total_steps)
        distributed.on_main(lambda: self.folder.write_state(state))

    def catch_up(self, rows: Sequence[Row]) -> None:
        """Bring the files in line with the step the run stands at, and evaluate if it was stopped just before it would have.

        Args:
            rows: of metrics.jsonl, up to that step.
        """
        step, metric = self.trained.progress.step, self.spec.evaluation.best_row_metric
        if step > 0 and not distributed.on_main(checkpoint.place(self.folder.checkpoints, step).exists):
            self.save(step)  # of another run, which may be gone tomorrow
        self.stepped.extend(row for row in rows if "loss/total" in row)
        self.warned = {event.get("kind", "") for event in self.folder.read_events() if event["event"] == WARNING}
        self.evaluated = [Best(row["step"], metric, row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
        is_evaluated = any(found.step == step for found in self.evaluated)
        distributed.on_main(self._settle_best)
        self.write_state("running", step)
        if self.evaluation_is_due(step) and not is_evaluated:
            self.evaluate(step)

    # -- saving --------------------------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """A checkpoint of this step, the best and the newest kept; written in the background where the spec has it so.

        Raises:
            MachineError: this one cannot be written, or the one before it could not.
        """
        num_bad_images, num_bad_in_epoch = self.tally.bad_images(self.device)
        trained, folder, in_background = self.trained, self.folder, self.spec.training.checkpoints.in_background

        def write(progress: Progress, content: Content) -> None:
            path = checkpoint.save(folder.checkpoints, progress, content=content, run_id=self.plan.run_id)
            folder.check_attempt()  # a large checkpoint takes a while to write; never prune another attempt's
            folder.add_event("saved", step=step, checkpoint=path.name)
            self._prune()

        def save() -> None:
            folder.check_attempt()
            self.metrics.sync()
            progress = Progress(step, num_bad_images, num_bad_in_epoch, trained.scaler.state_dict())
            if not in_background:
                write(progress, content)
                return
            copied, until_copied = self.snapshot.take(content)

            def write_copy() -> None:
                until_copied()
                write(progress, copied)

            self.writer.begin(write_copy)

        with self.watchdog.during(SAVING):
            distributed.on_main(self.writer.wait)  # its copy lies where this one's will
            content = checkpoint.content_of(trained.model, trained.optimizer)
            distributed.on_main(save)

    def wait_until_saved(self) -> None:
        """Until the last checkpoint is there.

        Raises:
            MachineError: it cannot be written.
        """
        with self.watchdog.during(SAVING):
            distributed.on_main(self.writer.wait)

    def _prune(self) -> None:
        best_step = self.evaluated[0].step if self.evaluated else None
        keep_last = self.spec.training.checkpoints.keep_last
        checkpoint.prune(self.folder.checkpoints, keep_last=keep_last, keep_step=best_step)

    # -- evaluating ----------------------------------------------------------------------------------------------------------

    def evaluation_is_due(self, step: int) -> bool:
        every = self.plan.evaluate_every_steps
        return every is not None and step > 0 and (step % every == 0 or step == self.plan.total_steps)

    def evaluate(self, step: int) -> None:
        """Evaluate during training: a row of metrics, and the best checkpoint so far."""
        split, metric = self.spec.evaluation.during_training, self.spec.evaluation.best_row_metric
        if split is None:
            raise RuntimeError("an evaluation is due and no split is named")
        with self.watchdog.during(EVALUATING):
            with unsharded(self.trained.model.online):
                found = self._evaluated(split)
                self._write_examples(found, split, step=step)  # before the row that leads to them
            self.write_row({"step": step, "epoch": step / self.plan.steps_per_epoch, **row_of(found, split)})
            self.wait_until_saved()  # what is kept is that checkpoint

            def keep() -> None:
                self.folder.check_attempt()
                self.evaluated.append(Best(step, metric, row_of(found, split)[metric]))
                self._settle_best()
                self._prune()

            distributed.on_main(keep)

    def _evaluated(self, split: Split) -> dict[str, Evaluation]:
        # Batch-norm statistics are each process's own; the evaluated ones are those that checkpoints hold, rank 0's.
        distributed.copy_from_main(self.trained.model.online.buffers())
        model, tokenizer = self.trained.model, self.trained.tokenizer
        return evaluate_tasks(model, self.spec, split, tokenizer=tokenizer, device=self.device, say=self.watcher.say)

    def _write_examples(self, found: dict[str, Evaluation], split: Split, *, step: int | None = None) -> None:
        def write() -> None:
            self.folder.check_attempt()
            for task, evaluation in found.items():
                self.folder.write_json(self.folder.examples(task, split, step=step), evaluation.examples())

        distributed.on_main(write)

    def _settle_best(self) -> None:
        """best.json names the best evaluation whose checkpoint is all there; one whose checkpoint is not is told of."""
        there = {checkpoint.step_of(folder) for folder in checkpoint.complete(self.folder.checkpoints)}
        ranked = sorted(self.evaluated, key=lambda found: -found.value)  # the earlier of equal ones first
        self.evaluated = list(dropwhile(lambda found: found.step not in there, ranked))
        best = self.evaluated[0] if self.evaluated else None
        if ranked and best is not ranked[0]:
            reached = f"which reached {ranked[0].metric} {ranked[0].value:.2f}"
            lost = f"checkpoint {self._place(ranked[0]).name}, {reached}, is missing or incomplete"
            instead = f"{self._place(best).name}, which reached {best.metric} {best.value:.2f}," if best else "none"
            self._report_damage(f"{lost}; of those that are there {instead} is the best")
        if best is not None:
            self.folder.write_json(self.folder.best, asdict(best))
        else:
            self.folder.best.unlink(missing_ok=True)

    def _place(self, found: Best) -> Path:
        return checkpoint.place(self.folder.checkpoints, found.step)

    def _report_damage(self, text: str) -> None:
        self.watcher.say(text)
        self.folder.add_event("checkpoint_damaged", message=text)

    # -- finishing -----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Evaluate the weights that the run stands for, and say that it is finished."""
        folder, total_steps, model = self.folder, self.plan.total_steps, self.trained.model
        self.wait_until_saved()
        distributed.on_main(folder.check_attempt)
        if distributed.any_rank(bool(self.stop)):
            raise Interrupted(f"stopped by {self.stop.signal_name or 'another process'}, trained but not evaluated")
        self.watchdog.enter(STARTING)  # a checkpoint is read
        if (split := self.spec.evaluation.at_end) is not None:
            chosen = distributed.on_main(self._restore_best)
            if chosen is not None and not distributed.is_main():
                checkpoint.put_weights(chosen, checkpoint.read_weights(chosen), model)
            self.watchdog.enter(EVALUATING)
            step = checkpoint.step_of(chosen) if chosen is not None else 0
            origin = {"split": split, "step": step, "checkpoint": chosen.name if chosen is not None else None}
            with unsharded(model.online):
                found = self._evaluated(split)
                self._write_examples(found, split)
            distributed.on_main(lambda: write_evaluations(folder, found, split, origin=origin))
            self.watcher.row({"step": total_steps, **row_of(found, split)})
        distributed.on_main(lambda: folder.add_event("finished", step=total_steps))
        self.write_state("finished", total_steps)

    def _restore_best(self) -> Path | None:
        """Put the best weights, or the newest where nothing was evaluated, into rank 0's model; None for a run of no steps.

        Raises:
            RunFailed: no checkpoint is sound any more.
        """
        ranked = [self._place(found) for found in self.evaluated]
        others = checkpoint.named(self.folder.checkpoints)
        folders = [folder for folder in dict.fromkeys([*ranked, *others]) if folder.exists()]
        chosen = checkpoint.restore(folders, model=self.trained.model, report=self._report_damage)
        if chosen is None:
            if self.plan.total_steps:
                raise RunFailed("no checkpoint of this run is sound any more; the same command trains it again")
            return None
        if ranked and chosen != ranked[0]:
            self.evaluated = [found for found in self.evaluated if self._place(found).exists()]
            self._settle_best()
            self._report_damage(f"checkpoint {chosen.name} is evaluated instead of {ranked[0].name}")
        return chosen
