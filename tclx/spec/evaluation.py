"""What is measured, on which data, how often."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from tclx.section import BatchSize, Conflict, Count, Section

Split = Literal["val", "test"]


class RetrievalSpec(Section):
    """Zero-shot image-text retrieval: dual-encoder similarity, then ITM re-ranking of the best `top_k`."""

    top_k: Count = 128
    """Candidates per query that the fusion encoder re-ranks (all of them where there are fewer)."""
    batch_size: BatchSize = 64
    """Images or texts per forward pass."""


class EvaluationSpec(Section):
    """Evaluation during training and at its end."""

    retrieval: RetrievalSpec | None = None
    """Image-text retrieval; null measures nothing."""
    during_training: Split | None = None
    """The split evaluated on a schedule, which also picks the best checkpoint; null evaluates at the end only."""
    every_epochs: Count | None = None
    """Evaluate after this many epochs (default 1 when `during_training` is set). Give this or `every_steps`."""
    every_steps: Count | None = None
    """Evaluate after this many optimizer steps."""
    at_end: Split | None = None
    """The split evaluated once, with the best checkpoint (the last one when nothing was evaluated during training)."""
    best_metric: str = "r_mean"
    """The retrieval metric of `during_training` that picks the best checkpoint; higher is better."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.every_epochs is not None and self.every_steps is not None:
            message = "give at most one of `every_epochs` and `every_steps`"
            raise Conflict(message, "every_epochs", "every_steps", one_too_many=True)
        if self.during_training is None and (self.every_epochs or self.every_steps):
            message = "`every_epochs` and `every_steps` need `during_training`: which split is evaluated?"
            raise Conflict(message, "every_epochs", "every_steps", "during_training")
        if (self.during_training or self.at_end) and self.retrieval is None:
            message = "name a task to evaluate, for instance `retrieval: {}`"
            raise Conflict(message, "during_training", "at_end", "retrieval")
        return self
