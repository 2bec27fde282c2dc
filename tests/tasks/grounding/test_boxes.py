"""Promises of boxes: overlap, which box a map chooses, where it points."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from tclx.tasks.grounding.boxes import Box, Place, iou, read_map


def pixels_of(box: Box) -> set[tuple[int, int]]:
    left, top, width, height = (int(each) for each in box)
    return {(x, y) for x in range(left, left + width) for y in range(top, top + height)}


def some_box(random: Random) -> Box:
    return random.randint(0, 9), random.randint(0, 9), random.randint(1, 8), random.randint(1, 8)


def test_an_overlap_is_that_of_the_pixels() -> None:
    random = Random(0)
    narrow = 0
    for _ in range(500):
        box, other = some_box(random), some_box(random)
        shared, both = pixels_of(box) & pixels_of(other), pixels_of(box) | pixels_of(other)
        assert iou(box, other) == pytest.approx(len(shared) / len(both))
        assert iou(other, box) == iou(box, other)
        width, height = (len({pixel[side] for pixel in shared}) for side in (0, 1))
        narrow += bool(shared) and min(width, height) == 1
        official = 0.0 if min(width, height) <= 1 else len(shared) / len(both)
        assert iou(box, other, official=True) == pytest.approx(official)
    assert narrow > 20


def test_an_overlap_of_fractions_of_pixels_counts() -> None:
    assert iou((0, 0, 1, 1), (0.5, 0, 1, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 0, 1, 1)) == 0


def test_the_box_chosen_has_the_largest_sum_by_the_root_of_its_area() -> None:
    """Of a map with a value for each pixel, which nothing spreads."""
    random, generator = Random(1), torch.Generator().manual_seed(1)
    for _ in range(50):
        values = torch.rand(20, 24, generator=generator) ** 4
        boxes = [some_box(random) for _ in range(5)]
        scores = []
        for left, top, width, height in boxes:
            inside = [float(values[y, x]) for x, y in pixels_of((left, top, width, height))]
            scores.append(sum(inside) / np.sqrt(width * height))
        found = read_map(values, (24, 20), boxes)
        assert found.scores == pytest.approx(scores, rel=1e-5)
        assert found.chosen == int(np.argmax(scores))
        y, x = np.unravel_index(int(values.argmax()), values.shape)
        assert found.place == Place(int(x), int(y))


def test_a_box_holds_the_whole_pixels_from_its_corner_on() -> None:
    """2.7 is cut to 2, and 2.7 + 1.5 to 4, as the published code does."""
    values = torch.zeros(1, 8)
    values[0, 2:4] = 1
    assert read_map(values, (8, 1), [(2.7, 0, 1.5, 1)]).scores == pytest.approx([2 / 1.5**0.5])


def test_a_map_is_spread_over_the_whole_image() -> None:
    values = torch.zeros(3, 4)
    values[2, 1] = 5.0
    place = read_map(values, (400, 90)).place
    assert place is not None
    assert (place.x, place.y) == (pytest.approx(150, abs=2), pytest.approx(89, abs=15))
    assert place.is_in((100, 60, 100, 30))
    assert not place.is_in((0, 0, 100, 90))


def test_a_map_of_nothing_points_nowhere_and_chooses_nothing() -> None:
    found = read_map(torch.zeros(4, 4), (16, 16), [(0, 0, 4, 4), (8, 8, 4, 4)])
    assert found.place is None
    assert found.chosen is None


def test_without_boxes_none_is_chosen() -> None:
    found = read_map(torch.ones(4, 4), (16, 16))
    assert found.chosen is None
    assert found.scores == ()


@pytest.mark.parametrize(("x", "inside"), [(1, False), (2, True), (4, True), (5, False)])
def test_a_pixel_is_in_a_box_that_holds_its_middle(x: int, inside: bool) -> None:
    assert Place(x, 0).is_in((2, 0, 3, 1)) is inside
    assert Place(0, x).is_in((0, 2, 1, 3)) is inside
