"""How the weights move: AdamW, its learning rate over time, clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tclx.section import Section, Sensible, Weight

LearningRate = Annotated[float, Field(ge=0), Sensible(below=1)]
Steps = Annotated[int, Field(ge=0), Sensible(at_most=10**9)]


class CosineSchedule(Section):
    """Linear warm-up, then half a cosine down to the minimum at the last step."""

    name: Literal["cosine"] = "cosine"
    """The paper's schedule."""
    warmup_steps: Steps = 0
    """Optimizer steps of linear warm-up. Under `compat: official` a multiple of 100, taken as the official stairs of 100
    iterations within the first epoch."""
    warmup_learning_rate: LearningRate = 0.0
    """Where the warm-up starts."""
    minimum_learning_rate: LearningRate = 0.0
    """Where the cosine ends."""


class ConstantSchedule(Section):
    """The same learning rate throughout, after an optional linear warm-up from 0."""

    name: Literal["constant"]
    """No decay."""
    warmup_steps: Steps = 0
    """Optimizer steps of linear warm-up."""


Schedule = Annotated[CosineSchedule | ConstantSchedule, Field(discriminator="name")]


class OptimSpec(Section):
    """AdamW and its schedule. Biases, norms, [CLS], positions and temperatures are not decayed."""

    learning_rate: Annotated[float, Field(gt=0), Sensible(at_least=1e-12, below=1)]
    """Peak learning rate; never scaled by the number of processes behind your back."""
    weight_decay: Annotated[float, Field(ge=0), Sensible(at_most=10_000)] = 0.02
    """Share of a decayed weight that goes at every step, times the learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1), Sensible(at_least=0.1)]] = (
        0.9,
        0.999,
    )
    """Memory of AdamW's mean and of its mean square."""
    epsilon: Annotated[float, Field(gt=0), Sensible(at_least=1e-30, at_most=1)] = 1e-8
    """Added to the denominator of AdamW's step."""
    clip_gradient_norm: Weight | None = None
    """Largest global gradient norm; null does not clip."""
    schedule: Schedule = CosineSchedule()
    """The learning rate over time."""
