"""Questions about images as a task of the training and of the evaluation.

Source: Antol et al. 2015, arXiv:1505.00468 (VQA); Li et al. 2021, arXiv:2107.07651, section 4: the decoder, its loss, ranking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tclx.errors import InputError, Problem
from tclx.section import BatchSize, Count, LocalPath, NamedPath, NumLayers, Sensible
from tclx.tasks.finetuning import FineTuning, act_out_items, trained_otherwise
from tclx.tasks.metric import Metric
from tclx.tasks.task import Evaluation, EvaluationTask, Split, StepOutput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tclx.data.batch import RowBatch
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.downstream import Answerer
    from tclx.spec.experiment import ExperimentSpec

ANSWERS_ACTED_OUT = 2
"""Different answers of a question in the estimate of a step's cost; VQA's questions have one to ten."""

_FUSION = re.compile(r"(online|momentum)\.fusion_encoder\.(layers\..+)")
_EMBEDDINGS = re.compile(r"(online|momentum)\.text_encoder\.(embeddings\..+|projection\..+)")
_WORDS = re.compile(r"(online|momentum)\.mlm_head\.(.+)")


class VqaSpec(FineTuning):
    """Training to answer questions about images, word after word."""

    name: Literal["vqa"]
    """Which task."""
    max_answer_tokens: Annotated[int, Field(ge=3), Sensible(at_most=512)] = 12
    """Longest answer in tokens, [CLS] and [SEP] included; longer ones are cut."""
    decoder_layers: NumLayers | None = None
    """Layers of the answer decoder; null: as many as the fusion encoder has, as which they start."""

    forms: ClassVar = ("vqa",)

    def build_model(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> Answerer:
        from tclx.model.downstream import Answerer

        with_momentum = self.soft_labels is not None
        return Answerer(
            spec,
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            with_momentum=with_momentum,
            decoder_layers=self.decoder_layers,
        )

    def build_step(self, model: Answerer, spec: ExperimentSpec) -> nn.Module:
        from tclx.tasks.vqa.step import AnsweringStep

        return AnsweringStep(model, spec)

    def batches(
        self, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int, world_size: int, start_micro_step: int
    ) -> Iterator[RowBatch]:
        from tclx.data.dataset import batches_of
        from tclx.tasks.vqa.step import AnsweredItems

        dataset = partial(AnsweredItems, spec=spec, tokenizer=tokenizer, max_answer_tokens=self.max_answer_tokens)
        return batches_of(dataset, spec, rank=rank, world_size=world_size, start_micro_step=start_micro_step)

    def initial_weights(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """The decoder starts as the fusion layers, the embeddings and the head that names hidden words."""
        found = dict(tensors)
        if any(name.startswith("online.decoder.") for name in tensors):
            return found
        own = model.state_dict()
        for pattern, part in ((_FUSION, ""), (_EMBEDDINGS, ""), (_WORDS, "head.")):
            for name, tensor in tensors.items():
                if (match := pattern.fullmatch(name)) is not None:
                    copied = f"{match[1]}.decoder.{part}{match[2]}"
                    if copied in own and own[copied].shape == tensor.shape:  # keys of images may have another width
                        found[copied] = tensor
        return found

    def act_out(self, model: Answerer, spec: ExperimentSpec) -> StepOutput:
        import torch

        from tclx.tasks.vqa.step import AnsweredBatch, AnsweringStep

        common = act_out_items(spec, num_images=1)
        rows = torch.arange(len(common["row"])).repeat_interleave(ANSWERS_ACTED_OUT)
        ids = torch.zeros(len(rows), self.max_answer_tokens, dtype=torch.int64)
        batch = AnsweredBatch(
            **common,
            answer_ids=ids,
            answer_mask=torch.ones_like(ids, dtype=torch.bool),
            answer_rows=rows,
            answer_weights=torch.ones(len(rows)),
        )
        weight = self.soft_labels.weight if self.soft_labels is not None else 0.0
        output: StepOutput = AnsweringStep(model, spec)(batch, soft_label_weight=weight, draw=0)
        return output


_AGREED = "An answer counts as right in thirds, up to three people who gave it; of a single answer, as equal or not."


class VqaEvaluation(EvaluationTask):
    """Questions about images: an answer chosen from a list, or written, and VQA's accuracy of it."""

    metrics: ClassVar = (
        Metric("accuracy", "VQA accuracy", "%", "higher", lambda found: found["random"], about=_AGREED),
        Metric("exact", "exact match", "%", "higher", about="Questions answered as most people did."),
        Metric("majority", "accuracy of the best single answer", "%"),
        Metric("random", "accuracy of a random answer of the list", "%"),
        Metric("unlisted", "questions without an answer in the list", "%"),
        Metric("num_questions", "questions"),
    )
    main: ClassVar = ("accuracy",)
    columns: ClassVar = ("accuracy", "exact")
    forms: ClassVar = ("vqa",)

    answer: Literal["rank", "generate"] = "rank"
    """`rank`: the most likely answer of a list. `generate`: word after word, whatever comes."""
    answer_list: LocalPath | None = None
    """A JSON list of the answers to choose from; null takes all answers of `data.train`."""
    top_k: Count = 128
    """Answers whose whole likelihood is computed, those with the most likely first word."""
    batch_size: BatchSize = 16
    """Questions per forward pass."""

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        yield from trained_otherwise("vqa", spec)
        if self.answer == "generate" and self.answer_list is not None:
            message = "`generate` writes answers and needs no list"
            yield Problem("evaluation.vqa.answer_list", message, "leave it out", others=("evaluation.vqa.answer",))

    def paths(self) -> Iterator[NamedPath]:
        if self.answer_list is not None:
            yield NamedPath("answer_list", self.answer_list, "file")

    def images(self, split: Split) -> list[Any]:
        """None of its own; the list of answers is read here, before training begins."""
        if self.answer_list is not None:
            from tclx.tasks.vqa.answers import read_answer_list

            read_answer_list(self.answer_list)
        return []

    def evaluate(
        self, model: Answerer, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        from tclx.tasks.vqa.evaluation import evaluate_answers

        if not isinstance(spec.task, VqaSpec):
            raise InputError(*trained_otherwise("vqa", spec))
        longest = spec.task.max_answer_tokens
        return evaluate_answers(
            model, spec, split, settings=self, max_answer_tokens=longest, tokenizer=tokenizer, device=device
        )
