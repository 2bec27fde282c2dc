"""Expressions that each name one region of an image, with its true box and the boxes to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.tasks.grounding.boxes import Box

if TYPE_CHECKING:
    from tclx.data.images import Pixels


class Expression(NamedTuple):
    """What is asked, and what would be right."""

    image: int
    """Number of its image."""
    text: str
    """As written."""
    box: Box
    """The true one."""
    candidates: tuple[Box, ...] | None = None
    """The boxes to choose from; None where there are none, and the map can only point."""
    part: str | None = None
    """Which part of the split it is of; None where the annotation does not say."""


class Expressions:
    """Expressions in the order of their images, as `EvaluationSet` reads rows; a row's caption is the expression.

    Args:
        items: those of image 0 first.
        sizes: width and height of every image in pixels.
    """

    def __init__(self, items: Sequence[Expression], sizes: Sequence[tuple[int, int]]) -> None:
        self.items, self.sizes = items, sizes

    @property
    def num_rows(self) -> int:
        return len(self.items)

    @property
    def image_index(self) -> Any:
        import numpy as np

        return np.array([item.image for item in self.items])

    def captions(self, row: int) -> Sequence[str]:
        return (self.items[row].text,)

    def image(self, row: int) -> Pixels:
        raise NotImplementedError
