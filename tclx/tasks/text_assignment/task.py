"""Text assignment as a task of the training: it teaches pairs of fusion layers, on images with captions, before `nlvr`.

Source: Li et al. 2021, arXiv:2107.07651, section 4, NLVR2; the proportions are the published code's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tclx.errors import Problem
from tclx.tasks.needs import Needs
from tclx.tasks.pairing import in_pairs
from tclx.tasks.task import CAPTION_FORMS, SoftLabelSpec, StepOutput, TrainingTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tclx.data.batch import RowBatch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.downstream import TextAssigner
    from tclx.spec.experiment import ExperimentSpec

SMALLEST_BATCH = 3
"""A caption that describes neither image needs two others."""


class TextAssignmentSpec(TrainingTask):
    """Training to tell which of two images a caption describes, the left, the right or neither: a step before `nlvr`."""

    name: Literal["text_assignment"]
    """Which task."""

    forms: ClassVar = CAPTION_FORMS

    def needs(self, spec: ExperimentSpec) -> Needs:
        return Needs.FUSION | Needs.PROJECTIONS

    def distillation(self, spec: ExperimentSpec) -> SoftLabelSpec | None:
        return None

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        if spec.training.batch_size_per_gpu < SMALLEST_BATCH:
            message = f"{spec.training.batch_size_per_gpu} images leave no two others for a caption that describes neither"
            yield Problem("training.batch_size_per_gpu", message, f"{SMALLEST_BATCH} or more")

    def build_model(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> TextAssigner:
        from tclx.model.downstream import TextAssigner

        return TextAssigner(spec, vocab_size=vocab_size, pad_token_id=pad_token_id, with_momentum=False)

    def build_step(self, model: TextAssigner, spec: ExperimentSpec) -> nn.Module:
        from tclx.tasks.text_assignment.step import TextAssignmentStep

        return TextAssignmentStep(model, spec)

    def batches(
        self, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int, world_size: int, start_micro_step: int
    ) -> Iterator[RowBatch]:
        from tclx.data.dataset import train_batches

        return train_batches(spec, tokenizer=tokenizer, rank=rank, world_size=world_size, start_micro_step=start_micro_step)

    def initial_weights(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Each fusion layer of a model of one image becomes a pair."""
        return in_pairs(tensors, num_layers=len(model.online.fusion_encoder.layers))

    def act_out(self, model: TextAssigner, spec: ExperimentSpec) -> StepOutput:
        from tclx.tasks.text_assignment.step import act_out

        return act_out(model, spec)
