"""Pre-training as a task of the training: TCL's model, its step, and what moves around the optimizer's update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tclx.tasks.task import TrainingTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tclx.data.batch import Batch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.plan import Plan
    from tclx.spec.experiment import ExperimentSpec
    from tclx.spec.objectives import SoftLabelSpec


class PretrainSpec(TrainingTask):
    """Pre-training on images and captions with the terms of `objectives`."""

    name: Literal["pretrain"] = "pretrain"
    """Which task."""

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

    def inputs(self, step: int, spec: ExperimentSpec, plan: Plan) -> dict[str, Any]:
        soft_labels, ramp_steps = spec.objectives.soft_labels, plan.soft_label_ramp_steps
        return {"soft_label_weight": soft_label_weight(step, soft_labels=soft_labels, ramp_steps=ramp_steps)}

    def before_update(self, model: TCL, spec: ExperimentSpec) -> None:
        if spec.compat == "official":  # the published code clamps, and moves the momentum encoders, before the forward pass
            model.follow(spec.model.momentum)

    def after_update(self, model: TCL, spec: ExperimentSpec, keys: Sequence[Any]) -> None:
        if spec.compat != "official":
            model.follow(spec.model.momentum)
        if model.queue is not None:
            for each in keys:
                model.queue.enqueue(*each)

    def row(self, model: TCL, inputs: dict[str, Any]) -> dict[str, float]:
        temperatures = {f"temperature/{name}": getattr(model.temperatures, name).item() for name in model.temperatures.bounds}
        return {**temperatures, "soft_labels/weight": inputs["soft_label_weight"]}

    def act_out(self, model: TCL, spec: ExperimentSpec) -> Tensor:
        from tclx.tasks.pretrain.step import act_out

        return act_out(model, spec)


def soft_label_weight(step: int, *, soft_labels: SoftLabelSpec | None, ramp_steps: float) -> float:
    """Share of the momentum model in the targets of an update, from 0 to `soft_labels.weight` over the ramp; 0 without them.

    Args:
        step: updates done.
        ramp_steps: `soft_labels.ramp_epochs` in steps.

    Source: Yang et al. 2022, arXiv:2202.10401; the published code ramps over the first epoch.
    """
    if soft_labels is None:
        return 0.0
    return soft_labels.weight * min(1.0, step / ramp_steps) if ramp_steps else soft_labels.weight
