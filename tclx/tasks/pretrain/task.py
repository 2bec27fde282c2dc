"""Pre-training as a task of the training: TCL's model, its step, and what moves around the optimizer's update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tclx.tasks.task import CAPTION_FORMS, HealthWarning, SoftLabelSpec, StepOutput, TrainingTask

if TYPE_CHECKING:
    from torch import nn

    from tclx.data.batch import Batch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.plan import Plan
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.needs import Needs


class PretrainSpec(TrainingTask):
    """Pre-training on images and captions with the terms of `objectives`."""

    name: Literal["pretrain"] = "pretrain"
    """Which task."""

    forms: ClassVar = CAPTION_FORMS

    def needs(self, spec: ExperimentSpec) -> Needs:
        return spec.objectives.all_needs

    def distillation(self, spec: ExperimentSpec) -> SoftLabelSpec | None:
        return spec.objectives.soft_labels

    def build_model(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> TCL:
        from tclx.model.tcl import TCL

        return TCL(spec, vocab_size=vocab_size, pad_token_id=pad_token_id)

    def build_step(self, model: TCL, spec: ExperimentSpec) -> nn.Module:
        from tclx.tasks.pretrain.step import TrainingStep

        return TrainingStep(model, spec)

    def batches(
        self, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int, world_size: int, start_micro_step: int
    ) -> Iterator[Batch]:
        from tclx.data.dataset import train_batches

        return train_batches(spec, tokenizer=tokenizer, rank=rank, world_size=world_size, start_micro_step=start_micro_step)

    def after_update(self, model: TCL, spec: ExperimentSpec, keys: Sequence[Any]) -> None:
        super().after_update(model, spec, keys)
        if model.queue is not None:
            for each in keys:
                model.queue.enqueue(*each)

    def warnings(self, rows: Sequence[Mapping[str, Any]], spec: ExperimentSpec, plan: Plan) -> Iterator[HealthWarning]:
        from tclx.tasks.pretrain.health import warnings

        return warnings(rows, spec, plan)

    def row(self, model: TCL, inputs: dict[str, Any]) -> dict[str, float]:
        temperatures = {f"temperature/{name}": getattr(model.temperatures, name).item() for name in model.temperatures.bounds}
        balance = model.balance.multipliers() if model.balance is not None else {}
        return {**temperatures, **{f"balance/{name}": each for name, each in balance.items()}, **super().row(model, inputs)}

    def act_out(self, model: TCL, spec: ExperimentSpec) -> StepOutput:
        from tclx.tasks.pretrain.step import act_out

        return act_out(model, spec)
