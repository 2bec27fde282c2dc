"""Image-text retrieval as a task of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import comb
from typing import TYPE_CHECKING, ClassVar

from tclx.errors import Problem
from tclx.section import BatchSize, Count
from tclx.tasks.metric import MeanOf, MedianRank, Metric, Recall
from tclx.tasks.needs import Needs
from tclx.tasks.retrieval import CUTOFFS
from tclx.tasks.task import CAPTION_FORMS, Evaluation, EvaluationTask, Split

if TYPE_CHECKING:
    import torch

    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec

_DIRECTIONS = {"text_to_image": "T2I", "image_to_text": "I2T"}


def _recall_by_chance(direction: str, k: int, counts: Mapping[str, float]) -> float:
    """In percent, of a random order, if every image has as many captions."""
    num_images, num_captions = round(counts["num_images"]), round(counts["num_captions"])
    num_keys, num_right = (num_images, 1) if direction == "text_to_image" else (num_captions, num_captions // num_images)
    if k >= num_keys:
        return 100.0
    return 100.0 * (1 - comb(num_keys - num_right, k) / comb(num_keys, k))


def _mean_recall_by_chance(counts: Mapping[str, float]) -> float:
    recalls = [_recall_by_chance(direction, k, counts) for direction in _DIRECTIONS for k in CUTOFFS]
    return sum(recalls) / len(recalls)


def _ranking(pathway: str, words: str) -> tuple[Metric, ...]:
    """The metrics of one order of the keys; `pathway` stands before their names, `words` before their titles."""
    every, recalls = list[Metric](), list[Recall]()
    for direction, short in _DIRECTIONS.items():
        name = f"{pathway}{direction}"
        for k in CUTOFFS:
            recalls.append(Recall(name, k))
            title, chance = f"{words}{short} R@{k}", partial(_recall_by_chance, direction, k)
            every.append(Metric(f"{name}/r{k}", title, "%", "higher", chance, recalls[-1]))
        every.append(Metric(f"{name}/median_rank", f"{words}{short} median", "", "lower", statistic=MedianRank(name)))
    mean = MeanOf(tuple(recalls))
    return (*every, Metric(f"{pathway}r_mean", f"{words}r_mean", "%", "higher", _mean_recall_by_chance, mean))


class RetrievalSpec(EvaluationTask):
    """Zero-shot image-text retrieval: dual-encoder similarity, then ITM re-ranking of the best `top_k`."""

    metrics: ClassVar = (
        *_ranking("", ""),
        *_ranking("dual/", "dual "),
        Metric("num_images", "images"),
        Metric("num_captions", "captions"),
    )
    main: ClassVar = ("r_mean", "text_to_image/r1", "image_to_text/r1", "text_to_image/r10", "image_to_text/r10", "dual/r_mean")
    columns: ClassVar = (
        *(f"{direction}/r{k}" for direction in _DIRECTIONS for k in CUTOFFS),
        *("r_mean", "dual/text_to_image/r1", "dual/image_to_text/r1", "dual/r_mean"),
    )

    forms: ClassVar = CAPTION_FORMS

    top_k: Count = 128
    """Candidates per query that the fusion encoder re-ranks (all of them where there are fewer)."""
    batch_size: BatchSize = 64
    """Images or texts per forward pass."""

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        from tclx.spec.objectives import TERMS

        objectives, others = spec.objectives, tuple(f"objectives.{term}" for term in TERMS)
        if objectives.need(Needs.HARD_NEGATIVES) and not objectives.need(Needs.PROJECTIONS):
            message = "no contrastive term is on, so there are no embeddings to choose the candidates by that ITM re-ranks"
            yield Problem("evaluation.retrieval", message, "switch on objectives.cma, or set null", others=others)
        elif not any(term.aligns for term in objectives.terms.values()):
            aligning = ", ".join(name for name, term in TERMS.items() if term.aligns)
            message = "no term that is on brings images and texts together"
            yield Problem("evaluation.retrieval", message, f"switch on one of {aligning}, or set null", others=others)

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        from tclx.tasks.retrieval.evaluation import evaluate_retrieval, outcomes_of
        from tclx.tasks.retrieval.examples import examples_of

        found = evaluate_retrieval(model, spec, split, settings=self, tokenizer=tokenizer, device=device)
        examples = partial(examples_of, found, model, spec, tokenizer=tokenizer)
        return Evaluation(found.metrics, examples, outcomes_of(found))
