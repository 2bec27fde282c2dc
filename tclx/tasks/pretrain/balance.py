"""How do the terms of the loss share the update, where their weights alone do not say it?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tclx.section import Count, Section, Sensible


class UncertaintyBalance(Section):
    """Each term divided by a learned variance, and half of its log added, so that no term outgrows the others.

    The loss is the sum of exp(-s) w L + s / 2, with one s a term that is learned with everything else and begins at 0: Kendall
    et al. 2018 (arXiv:1705.07115), eq. 10, of cross entropies. A weight w only moves where s settles.
    """

    name: Literal["uncertainty"]
    """Learned variances (Kendall et al. 2018)."""


class GradNormBalance(Section):
    """Multipliers of the terms that are moved until their gradients are equally long where all terms meet, longer for a term
    whose loss has fallen less than the others'.

    Chen et al. 2018 (arXiv:1711.02257), algorithm 1. The gradient of its loss is taken in units of the mean norm, so that
    `rate` means the same whatever the losses are.
    """

    name: Literal["gradnorm"]
    """Gradients of equal length (Chen et al. 2018)."""
    alpha: Annotated[float, Field(ge=0, le=10)] = 1.5
    """How much longer the gradient of a term is made that learns more slowly; 0: all equally long."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.025
    """How far the multipliers move at a time."""
    every_steps: Annotated[Count, Sensible(at_most=100_000)] = 10
    """How often they move; each time takes a backward pass a term, as far as the last layers of the encoders."""


class PCGradBalance(Section):
    """Of two terms whose gradients are opposed, each loses what undoes the other.

    Yu et al. 2020 (arXiv:2001.06782), algorithm 1: the gradient of each weighted term is projected onto the plane at right
    angles to that of every other term that it is opposed to, in random order, and what is left is added up. Each step takes a
    backward pass a term, and holds a gradient a term.
    """

    name: Literal["pcgrad"]
    """Opposed gradients are projected (Yu et al. 2020)."""


BalanceSpec = Annotated[UncertaintyBalance | GradNormBalance | PCGradBalance, Field(discriminator="name")]
