"""Boxes, and what a map says of them: how far two overlap, which one holds most of the map, where the map points.

Pixels count from 0 at the top left; a box is left, top, width and height, so that its right edge is left + width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""

ENOUGH_OVERLAP = 0.5
"""Intersection over union from which a box counts as the true one."""
PARTS = ("testA", "testB")
"""RefCOCO's parts of its test split: images with several people, and with several objects of another kind."""
AREA_EXPONENT = 0.5
"""The sum alone would favour large boxes, the mean small ones."""


def iou(box: Box, other: Box, *, official: bool = False) -> float:
    """Intersection over union, 0 to 1.

    Args:
        official: as the published code computes it, where an overlap of a single pixel in width or height counts as none.
    """
    width, height = (
        min(box[side] + box[side + 2], other[side] + other[side + 2]) - max(box[side], other[side]) for side in (0, 1)
    )
    smallest = 1 if official else 0
    if width <= smallest or height <= smallest:
        return 0.0
    shared = width * height
    return shared / (box[2] * box[3] + other[2] * other[3] - shared)


class Place(NamedTuple):
    """A pixel."""

    x: int
    y: int

    def is_in(self, box: Box) -> bool:
        """Whether its middle is."""
        left, top, width, height = box
        return left <= self.x + 0.5 < left + width and top <= self.y + 0.5 < top + height


class Reading(NamedTuple):
    """What a map says of an image."""

    place: Place | None
    """Where it is largest; None where it is 0 everywhere."""
    scores: tuple[float, ...]
    """Of the candidate boxes."""

    @property
    def chosen(self) -> int | None:
        """The number of the candidate with the highest score; None where none is above 0."""
        best = max(range(len(self.scores)), key=self.scores.__getitem__, default=None)
        return None if best is None or self.scores[best] <= 0 else best


def read_map(attention: Tensor, size: tuple[int, int], candidates: Sequence[Box] = ()) -> Reading:
    """A map [rows, columns] of patches, spread over an image of so many pixels (width, height).

    A candidate's score is the sum of the map within it, over whole pixels, divided by the square root of its area.
    """
    from torch.nn.functional import interpolate

    width, height = size
    spread = interpolate(attention[None, None], size=(height, width), mode="bicubic")[0, 0]
    scores = [
        float(spread[int(top) : int(top + h), int(left) : int(left + w)].sum()) / (w * h) ** AREA_EXPONENT
        for left, top, w, h in candidates
    ]
    y, x = divmod(int(spread.argmax()), width)
    return Reading(Place(x, y) if attention.any() else None, tuple(scores))
