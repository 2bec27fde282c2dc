"""Visual entailment: does an image entail a statement, contradict it, or leave it open?

Source: Xie et al. 2019, arXiv:1901.06706 (SNLI-VE); the head and loss are the published code's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tclx.tasks.finetuning import Judging, JudgingEvaluation, judging_metrics

CLASSES = ("contradiction", "neutral", "entailment")


class EntailmentSpec(Judging):
    """Training for visual entailment."""

    name: Literal["entailment"]
    """Which task."""

    classes: ClassVar = CLASSES
    forms: ClassVar = ("entailment",)


class EntailmentEvaluation(JudgingEvaluation):
    """Visual entailment: the most likely of contradiction, neutral and entailment."""

    classes: ClassVar = CLASSES
    task: ClassVar = "entailment"
    forms: ClassVar = ("entailment",)
    metrics: ClassVar = judging_metrics(CLASSES)
