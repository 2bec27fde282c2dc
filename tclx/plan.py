"""What will happen? A spec and a few numbers of its data -> every derived number, the run id, and what makes it impossible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from tclx.errors import InputError, Location, Problem, placed
from tclx.files import Unreadable, read_object
from tclx.runs import step_of_checkpoint
from tclx.spec.difference import beyond_defaults
from tclx.spec.experiment import ExperimentSpec, InitSpec
from tclx.spec.rules import CONTRADICTIONS, OF_A_BATCH, missing_files, missing_packages, num_compared_pairs, patch_grid
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm

SCHEMA_VERSION = 2
"""Part of every run id; raised when the same spec begins to mean something else, as when a default changes."""


class DataFacts(NamedTuple):
    """What planning needs to know of the data."""

    num_train_rows: int
    """Image-text pairs to train on."""
    num_train_images: int
    """Different images among them."""
    num_val_images: int | None = None
    num_val_captions: int | None = None
    num_test_images: int | None = None
    num_test_captions: int | None = None


@dataclass(frozen=True)
class Plan:
    """What will happen; `tclx plan` prints it and the run folder keeps it."""

    run_id: str
    name: str
    variant: str | None
    seed: int
    world_size: int
    """Training processes."""
    global_micro_batch_size: int
    """Pairs of one forward pass over all processes, hence what enters the queue at once."""
    global_batch_size: int
    """Pairs of one optimizer step: the micro-batches of all accumulation steps."""
    num_train_rows: int
    steps_per_epoch: int
    """Optimizer steps; the last incomplete batch of an epoch is dropped."""
    total_steps: int
    """Optimizer steps; 0 only evaluates."""
    num_epochs: float
    warmup_steps: int
    soft_label_ramp_steps: int
    """Optimizer steps over which the soft-label weight rises; 0 without soft labels."""
    evaluate_every_steps: int | None
    """None evaluates at the end only."""
    checkpoint_every_steps: int
    needs_momentum: bool
    needs_second_view: bool
    needs_fusion: bool
    num_patches: int | None
    """Patches of an image; None where only timm knows."""
    num_lmi_locals: int | None
    """Local image features of an image in LMI; None without LMI, or where only timm knows."""
    num_negatives: dict[str, int | None]
    """Negatives that each contrastive term has for one anchor once the queue is full, if no image comes twice."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote; a file of it is read by `tclx.files.read_as`."""
        return cls(**value)


def run_id(spec: ExperimentSpec, global_batch_size: int) -> str:
    """`name[-variant]-sSEED-DIGEST`: the same resolved spec is the same run, wherever and however often it is logged.

    The digest covers what the spec says beyond the defaults, so that a new key of tclx's leaves old ids alone; without launch,
    tracking, data.num_workers and the like, which change no result, but with the global batch size, which launch decides.
    """
    identity = {"schema": SCHEMA_VERSION, "global_batch_size": global_batch_size, "spec": beyond_defaults(spec)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]
    variant = f"-{spec.variant}" if spec.variant else ""
    return f"{spec.name}{variant}-s{spec.seed}-{digest}"


def starting_from(plan: Plan, spec: ExperimentSpec, needs: str) -> Plan:
    """The plan of a run that starts from another: that one's run id goes into this one's.

    With another pre-training it is another run, wherever runs are kept.

    Args:
        plan: of `spec`.
        needs: run id of the weights.
    """
    resume = spec.init is not None and spec.init.resume
    identity = spec.model_copy(update={"init": InitSpec(experiment=needs, resume=resume)})
    return replace(plan, run_id=run_id(identity, plan.global_batch_size))


def check_spec(spec: ExperimentSpec, origins: Mapping[str, Location] | None = None, *, without_data: bool = False) -> None:
    """Refuse what is wrong whatever the data holds: contradictions between sections, files and packages that are not there.

    Args:
        spec: one resolved run.
        origins: where its keys were written.
        without_data: do not look for the data's files.

    Raises:
        InputError: with every problem.
    """
    _refuse(_spec_problems(spec, without_data), origins)


def make_plan(
    spec: ExperimentSpec, facts: DataFacts, origins: Mapping[str, Location] | None = None, *, without_data: bool = False
) -> Plan:
    """Derive every number of a run.

    Args:
        spec: one resolved run.
        facts: counted from the data (or estimated, `without_data`).
        origins: where the spec's keys were written.
        without_data: do not look for the data's files.

    Raises:
        InputError: as `check_spec`, and with what the numbers make impossible.
    """
    plan = _derive(spec, facts)
    _refuse([*_spec_problems(spec, without_data), *(one for rule in _PLAN_RULES for one in rule(spec, plan))], origins)
    return plan


def _spec_problems(spec: ExperimentSpec, without_data: bool) -> list[Problem]:
    contradictions = [one for rule in CONTRADICTIONS for one in rule(spec)]
    return [*contradictions, *missing_files(spec, without_data=without_data), *missing_packages(spec)]


def _refuse(problems: Iterable[Problem], origins: Mapping[str, Location] | None) -> None:
    located = [placed(problem, origins or {}) for problem in problems]
    if located:
        raise InputError(*located)


def _derive(spec: ExperimentSpec, facts: DataFacts) -> Plan:
    training, world_size = spec.training, spec.launch.num_processes
    micro_batch = training.batch_size_per_gpu * world_size
    global_batch = micro_batch * training.accumulation_steps
    steps_per_epoch = facts.num_train_rows // global_batch
    total_steps = training.steps if training.steps is not None else (training.epochs or 0) * steps_per_epoch
    soft_labels, grid, needs = spec.task.distillation(spec), patch_grid(spec.model.image_encoder), spec.task.needs(spec)
    return Plan(
        run_id=run_id(spec, global_batch),
        name=spec.name,
        variant=spec.variant,
        seed=spec.seed,
        world_size=world_size,
        global_micro_batch_size=micro_batch,
        global_batch_size=global_batch,
        num_train_rows=facts.num_train_rows,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        num_epochs=total_steps / steps_per_epoch if steps_per_epoch else 0.0,
        warmup_steps=spec.optim.schedule.warmup_steps,
        soft_label_ramp_steps=round(soft_labels.ramp_epochs * steps_per_epoch) if soft_labels else 0,
        evaluate_every_steps=_evaluate_every_steps(spec, steps_per_epoch, total_steps),
        checkpoint_every_steps=training.checkpoints.every_steps or max(steps_per_epoch, 1),
        needs_momentum=Needs.MOMENTUM in needs,
        needs_second_view=Needs.SECOND_VIEW in needs,
        needs_fusion=Needs.FUSION in needs,
        num_patches=grid**2 if grid else None,
        num_lmi_locals=lmi.num_locals(grid) if (lmi := spec.objectives.lmi) is not None else None,
        num_negatives=_num_negatives(spec, grid),
    )


def _evaluate_every_steps(spec: ExperimentSpec, steps_per_epoch: int, total_steps: int) -> int | None:
    evaluation = spec.evaluation
    if evaluation.during_training is None or total_steps == 0:
        return None
    if evaluation.every_steps is not None:
        return evaluation.every_steps
    if evaluation.every_epochs is not None:
        return evaluation.every_epochs * steps_per_epoch
    return min(max(steps_per_epoch, 1), total_steps)  # a run shorter than an epoch is still evaluated


def _num_negatives(spec: ExperimentSpec, grid: int | None) -> dict[str, int | None]:
    others, queue_size = num_compared_pairs(spec) - 1, spec.model.queue_size
    return {
        name: term.num_negatives(others=others, queue_size=queue_size, grid=grid)
        for name, term in spec.objectives.terms.items()
        if isinstance(term, ContrastiveTerm)
    }


def _batch_fits_data(spec: ExperimentSpec, plan: Plan) -> Iterator[Problem]:
    if plan.total_steps == 0 and spec.training.steps == 0:
        return
    if plan.num_train_rows < plan.global_batch_size:
        training = spec.training
        factors = (
            f"{training.batch_size_per_gpu} a process x {plan.world_size} processes x {training.accumulation_steps} passes"
        )
        message = f"a step takes {plan.global_batch_size} pairs ({factors}), but data.train has {plan.num_train_rows}"
        others = ("training.accumulation_steps", *OF_A_BATCH, "data.train.num_images", "data.train.files")
        yield Problem("training.batch_size_per_gpu", message, "a smaller batch, or more data", others=others)


def _warmup_ends(spec: ExperimentSpec, plan: Plan) -> Iterator[Problem]:
    if spec.compat == "official" or not plan.total_steps:  # the official warm-up is cut where the first epoch ends
        return
    if plan.warmup_steps >= plan.total_steps:
        message = f"the warm-up takes {plan.warmup_steps} of {plan.total_steps} steps: the full learning rate is never reached"
        yield Problem("optim.schedule.warmup_steps", message, f"below {plan.total_steps}", others=_OF_A_LENGTH)


def first_step(spec: ExperimentSpec) -> int | None:
    """The step that a run begins at: 0, or where the run stands that it resumes; None where nothing says where that is."""
    if spec.init is None or not spec.init.resume:
        return 0
    if spec.init.checkpoint is None:
        return None
    origin = Path(spec.init.checkpoint)
    steps = [step_of_checkpoint(path.name) for path in (origin, *origin.glob("checkpoints/step-*"))]
    return max((step for step in steps if step is not None), default=None)


def _resumes_within(spec: ExperimentSpec, plan: Plan) -> Iterator[Problem]:
    """Whether there is something to resume from, where the other run is there already."""
    init = spec.init
    if init is None or not init.resume or init.checkpoint is None or not Path(init.checkpoint).exists():
        return
    key, others = "init.resume", ("init.checkpoint", *_OF_A_LENGTH)
    origin, step = Path(init.checkpoint), first_step(spec)
    if step is None:
        message = f"{origin} has no checkpoint of a run, with its optimizer"
        yield Problem(key, message, "false takes over weights alone", others=others)
    elif step >= plan.total_steps:
        message = f"{origin} stands at step {step}, and this run ends with step {plan.total_steps}"
        yield Problem(key, message, "a longer run", others=others)
    with suppress(Unreadable):
        run = origin if (origin / "spec.json").exists() else origin.parent.parent
        optim = read_object(run / "spec.json").get("optim")
        theirs = optim.get("optimizer") if isinstance(optim, dict) else None
        if theirs not in (None, spec.optim.optimizer):
            message = f"{origin} was trained with {theirs}, whose moments {spec.optim.optimizer} does not know"
            yield Problem(key, message, f"optim.optimizer: {theirs}, or false", others=("init.checkpoint", "optim.optimizer"))


def remarks(spec: ExperimentSpec, plan: Plan, origins: Mapping[str, Location] | None = None) -> list[Problem]:
    """What works and is hardly meant; said beside the plan, at the lines of the spec."""
    return [placed(remark, origins or {}) for rule in _REMARKS for remark in rule(spec, plan)]


def _never_within_the_run(spec: ExperimentSpec, plan: Plan) -> Iterator[Problem]:
    tracking = spec.tracking
    evaluation = "evaluation.every_steps" if spec.evaluation.every_steps else "evaluation.every_epochs"
    every = {
        evaluation: (plan.evaluate_every_steps, "there is one evaluation, at the end"),
        "training.checkpoints.every_steps": (spec.training.checkpoints.every_steps, "nothing is saved before the end"),
        "tracking.log_every_steps": (
            tracking.log_every_steps if "log_every_steps" in tracking.model_fields_set else None,
            "only the first and the last step are recorded",
        ),
        "tracking.term_gradients_every_steps": (
            tracking.term_gradients_every_steps if "term_gradients_every_steps" in tracking.model_fields_set else None,
            "nothing is measured",
        ),
        "tracking.term_gradient_norms_every_steps": (tracking.term_gradient_norms_every_steps, "nothing is measured"),
    }
    for key, (steps, message) in every.items():
        if steps is not None and 0 < plan.total_steps < steps:
            first = f"step {steps}" if key.endswith("epochs") else f"{steps}"
            yield Problem(key, f"{first} is beyond the end, step {plan.total_steps}: {message}", others=_OF_A_LENGTH)


def _not_measured(spec: ExperimentSpec, plan: Plan) -> Iterator[Problem]:
    name = "term_gradients_every_steps"
    if spec.launch.fsdp and name in spec.tracking.model_fields_set and spec.tracking.term_gradients_every_steps is not None:
        message = "is not measured with launch.fsdp: no process has whole gradients"
        yield Problem(f"tracking.{name}", message, others=("launch.fsdp",))


_REMARKS: tuple[Callable[[ExperimentSpec, Plan], Iterator[Problem]], ...] = (_never_within_the_run, _not_measured)

_OF_A_LENGTH = ("training.steps", "training.epochs", *OF_A_BATCH)

_PLAN_RULES: tuple[Callable[[ExperimentSpec, Plan], Iterator[Problem]], ...] = (
    _batch_fits_data,
    _warmup_ends,
    _resumes_within,
)
