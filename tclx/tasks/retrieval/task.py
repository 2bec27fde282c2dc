"""Image-text retrieval as a task of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import comb
from typing import TYPE_CHECKING, ClassVar

from tclx.errors import Problem
from tclx.section import BatchSize, Count, LocalPath, NamedPath, Section
from tclx.tasks.metric import MeanOf, MedianRank, Metric, Recall
from tclx.tasks.needs import Needs
from tclx.tasks.retrieval import CUTOFFS, QUALITIES
from tclx.tasks.task import CAPTION_FORMS, Evaluation, EvaluationTask, Split

if TYPE_CHECKING:
    import torch

    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.data import DataSpec
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


_ASKED = {"text_to_image": "Captions that find their image", "image_to_text": "Images that find one of their captions"}


def _ranking(pathway: str, words: str) -> tuple[Metric, ...]:
    """The metrics of one order of the keys; `pathway` stands before their names, `words` before their titles."""
    how = ", by cosine similarity alone" if pathway else ""
    every, recalls = list[Metric](), list[Recall]()
    for direction, short in _DIRECTIONS.items():
        name = f"{pathway}{direction}"
        for k in CUTOFFS:
            recalls.append(Recall(name, k))
            title, chance = f"{words}{short} R@{k}", partial(_recall_by_chance, direction, k)
            about = f"{_ASKED[direction]} among the first {k}{how}." if k > 1 else f"{_ASKED[direction]} in first place{how}."
            every.append(Metric(f"{name}/r{k}", title, "%", "higher", chance, recalls[-1], about))
        about = f"The middle one of all ranks of what belongs to a query; 1 is best{how}."
        every.append(Metric(f"{name}/median_rank", f"{words}{short} median", "", "lower", None, MedianRank(name), about))
    mean, about = MeanOf(tuple(recalls)), f"Mean of R@1, R@5 and R@10 in both directions{how}."
    return (*every, Metric(f"{pathway}r_mean", f"{words}r_mean", "%", "higher", _mean_recall_by_chance, mean, about))


_TITLES = dict(zip(QUALITIES, ("mAP@R", "R-Precision", "R@1"), strict=True))


_JUDGED = {
    "map_at_r": "How early the R positives of a query come among its first R, mean over queries.",
    "r_precision": "Share of a query's R positives among its first R, mean over queries.",
    "r1": "Queries whose first is any of their positives.",
}
"""With all positives of a query, as Musgrave et al. 2020 (arXiv:2003.08505) measure."""


def _of_positives(pathway: str, words: str) -> Iterator[Metric]:
    """How well one order finds positives beyond the own ones; their outcomes have the metrics' names."""
    for direction, short in _DIRECTIONS.items():
        for name, title in _TITLES.items():
            chance = f"positives/{direction}/{'map_at_r_chance' if name == 'map_at_r' else 'chance'}"
            yield Metric(
                f"{pathway}positives/{direction}/{name}",
                f"{words}{short} {title}, all positives",
                "%",
                "higher",
                partial(_told_by_chance, chance),
                about=_JUDGED[name],
            )


def _told_by_chance(name: str, found: Mapping[str, float]) -> float:
    return found[name]


def _about_positives() -> Iterator[Metric]:
    for direction, short in _DIRECTIONS.items():
        yield Metric(f"positives/{direction}/map_at_r_chance", f"{short} mAP@R of a random order, all positives", "%")
        yield Metric(f"positives/{direction}/chance", f"{short} R-Precision and R@1 of a random order, all positives", "%")
        yield Metric(f"positives/{direction}/num_queries", f"{short} queries with all positives")


class PositivesSpec(Section):
    """Files of positives beyond a caption's own image: ECCV Caption's, Crisscrossed Captions', or your own."""

    val: LocalPath | None = None
    """Of `data.val`: a JSON object of `image_to_caption` and `caption_to_image`, each an object from a query's id to the
    list of the ids of its positives. Queries that it leaves out are not asked."""
    test: LocalPath | None = None
    """Of `data.test`, the same."""


class RetrievalSpec(EvaluationTask):
    """Zero-shot image-text retrieval: dual-encoder similarity, then ITM re-ranking of the best `top_k`."""

    metrics: ClassVar = (
        *_ranking("", ""),
        *_ranking("dual/", "dual "),
        *_of_positives("", ""),
        *_of_positives("dual/", "dual "),
        *_about_positives(),
        Metric("num_images", "images"),
        Metric("num_captions", "captions"),
    )
    main: ClassVar = ("r_mean", "text_to_image/r1", "image_to_text/r1", "text_to_image/r10", "image_to_text/r10", "dual/r_mean")
    columns: ClassVar = (
        *(f"{direction}/r{k}" for direction in _DIRECTIONS for k in CUTOFFS),
        *("r_mean", "dual/text_to_image/r1", "dual/image_to_text/r1", "dual/r_mean"),
        *(f"positives/{direction}/{name}" for direction in _DIRECTIONS for name in QUALITIES),
    )

    forms: ClassVar = CAPTION_FORMS

    top_k: Count = 128
    """Candidates per query that the fusion encoder re-ranks (all of them where there are fewer)."""
    batch_size: BatchSize = 64
    """Images or texts per forward pass."""
    positives: PositivesSpec | None = None
    """Positives beyond a caption's own image: mAP@R, R-Precision and R@1 of them, R being their number for a query."""

    def positives_file(self, split: Split) -> str | None:
        """The file of positives of a split, or None."""
        return getattr(self.positives, split) if self.positives is not None else None

    def paths(self) -> Iterator[NamedPath]:
        for split in ("val", "test"):
            if (path := self.positives_file(split)) is not None:
                yield NamedPath(f"positives.{split}", path, "file")

    def check(self, data: DataSpec, split: Split) -> None:
        if (path := self.positives_file(split)) is not None:
            from tclx.tasks.retrieval.positives import check_positives

            check_positives(path, data, split)

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
        evaluation = spec.evaluation
        for split in ("val", "test"):
            if self.positives_file(split) is not None and split not in (evaluation.during_training, evaluation.at_end):
                key, hint = f"evaluation.retrieval.positives.{split}", f"evaluation.at_end: {split}, or during_training"
                yield Problem(key, "is never evaluated", hint, others=("evaluation.at_end", "evaluation.during_training"))
        of_positives = evaluation.best_metric.removeprefix("dual/").startswith("positives/")
        if of_positives and (during := evaluation.during_training) is not None and self.positives_file(during) is None:
            message = f"there are no positives of {during} to choose by"
            yield Problem("evaluation.best_metric", message, f"evaluation.retrieval.positives.{during}: FILE")

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        from tclx.tasks.retrieval.evaluation import evaluate_retrieval, outcomes_of
        from tclx.tasks.retrieval.examples import examples_of

        found = evaluate_retrieval(model, spec, split, settings=self, tokenizer=tokenizer, device=device)
        examples = partial(examples_of, found, model, spec, tokenizer=tokenizer)
        return Evaluation(found.metrics, examples, outcomes_of(found))
