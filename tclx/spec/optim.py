"""How the weights move: the optimizer, its learning rate over time, clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tclx.section import Section, Sensible, Weight

LearningRate = Annotated[float, Field(ge=0), Sensible(below=1)]
Steps = Annotated[int, Field(ge=0), Sensible(at_most=10**9)]


class CosineSchedule(Section):
    """Linear warm-up, then cosine decay to the minimum at the last step."""

    name: Literal["cosine"] = "cosine"
    """Cosine decay, as in the paper."""
    warmup_steps: Steps = 0
    """Optimizer steps of linear warm-up. Under `compat: official` a multiple of 100, taken as the official stairs of 100
    iterations within the first epoch."""
    warmup_learning_rate: LearningRate = 0.0
    """Learning rate at the start of the warm-up."""
    minimum_learning_rate: LearningRate = 0.0
    """Learning rate at the end of the cosine decay."""


class ConstantSchedule(Section):
    """Constant learning rate after an optional linear warm-up from 0."""

    name: Literal["constant"]
    """Constant."""
    warmup_steps: Steps = 0
    """Optimizer steps of linear warm-up."""


Schedule = Annotated[CosineSchedule | ConstantSchedule, Field(discriminator="name")]


class OptimSpec(Section):
    """The optimizer and its learning-rate schedule. No weight decay for biases, norms, [CLS], position embeddings and
    temperatures."""

    optimizer: Literal["adamw", "nadamw", "lion", "muon", "sgd"] = "adamw"
    """torch's AdamW; timm's NAdamW, SGD with Nesterov's momentum, Lion (Chen et al. 2023: a learning rate 3 to 10 times
    smaller, betas [0.9, 0.99]) and Muon (Jordan et al. 2024: matrices by their orthogonalised momentum of 0.95, scaled to the
    size of AdamW's updates; everything else, embeddings too, by NAdamW)."""
    learning_rate: Annotated[float, Field(gt=0), Sensible(at_least=1e-12, below=1)]
    """Peak learning rate; it is not scaled by the number of processes."""
    weight_decay: Annotated[float, Field(ge=0), Sensible(at_most=10_000)] = 0.02
    """Decoupled weight decay: at every step weights shrink by learning rate x this."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1), Sensible(at_least=0.1)]] = (
        0.9,
        0.999,
    )
    """Decay rates of the first and second moment estimates; of SGD the first one is the momentum."""
    epsilon: Annotated[float, Field(gt=0), Sensible(at_least=1e-30, at_most=1)] = 1e-8
    """Added to AdamW's and NAdamW's denominator for numerical stability."""
    layer_decay: Annotated[float, Field(gt=0, lt=1), Sensible(at_least=0.1)] | None = None
    """Layer-wise decay of the learning rate (Clark et al. 2020; Bao et al. 2022), for encoders that start from weights: a layer
    of the image or text encoder learns at so many times the rate of the one above it, embeddings slowest; fusion encoder,
    projections and heads at the full rate. null: all alike."""
    clip_gradient_norm: Weight | None = None
    """Maximum global gradient norm; null disables clipping."""
    schedule: Schedule = CosineSchedule()
    """Learning-rate schedule."""
