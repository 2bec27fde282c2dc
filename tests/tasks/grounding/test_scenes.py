"""Promises of expressions for generated scenes: each names one object and no other, and one box in four is right."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tclx.data.scenes import COLORS, SHAPES, SIZES, Scene, SceneObject
from tclx.tasks.grounding.boxes import iou
from tclx.tasks.grounding.scenes import SceneExpressions
from tclx.tasks.grounding.task import DescribedScenes

NUM = 400
RELATION = re.compile(r" (to the left of|to the right of|above|below) ")


@pytest.fixture(scope="module")
def drawn() -> SceneExpressions:
    return SceneExpressions(DescribedScenes(source="scenes", num_expressions=NUM), "test")


def is_said_of(words: str, item: SceneObject) -> bool:
    """Whether a phrase without a relation is true of an object: size, colour and kind, each if it is said."""
    sizes = {word: size for size, known in SIZES.items() for word in known}
    shapes = {word: shape for shape, known in SHAPES.items() for word in known}
    assert words.startswith("the ")
    rest = words.removeprefix("the ")
    first, _, after = rest.partition(" ")
    if first in sizes:
        if sizes[first] != item.size:
            return False
        first, _, after = (rest := after).partition(" ")
    if first in COLORS:
        if first != item.color:
            return False
        rest = after
    return rest == "shape" or shapes[rest] == item.shape


def is_true_of(text: str, item: SceneObject, other: SceneObject) -> bool:
    """Read anew, from the words and the centres alone."""
    words, *related = RELATION.split(text)
    if not is_said_of(words, item):
        return False
    if not related:
        return True
    place, beside = related
    right, down = item.x - other.x, item.y - other.y
    sideways = abs(right) > abs(down)
    true = {
        "to the left of": sideways and right < 0,
        "to the right of": sideways and right > 0,
        "above": not sideways and down < 0,
        "below": not sideways and down > 0,
    }
    return true[place] and is_said_of(beside, other)


def objects(scene: Scene) -> tuple[tuple[SceneObject, SceneObject], ...]:
    first, second = scene.objects
    return (first, second), (second, first)


def test_every_expression_is_true_of_exactly_one_object(drawn: SceneExpressions) -> None:
    assert drawn.num_rows == NUM
    for item, scene in zip(drawn.items, drawn.scenes, strict=True):
        meant = [one for one, other in objects(scene) if is_true_of(item.text, one, other)]
        assert [one.box for one in meant] == [item.box], item.text


def test_shape_colour_size_and_relation_are_all_said_alone(drawn: SceneExpressions) -> None:
    shapes = {word for known in SHAPES.values() for word in known}
    sizes = {word for known in SIZES.values() for word in known}
    kinds = Counter[str]()
    for item in drawn.items:
        words = item.text.removeprefix("the ")
        kinds["relation"] += bool(re.match(r"shape (to the|above|below)", words))
        kinds["shape"] += words in shapes
        kinds["color"] += words.removesuffix(" shape") in COLORS
        kinds["size"] += words.removesuffix(" shape") in sizes
    assert all(kinds[kind] >= NUM // 40 for kind in ("relation", "shape", "color", "size")), kinds


def test_the_boxes_to_choose_from_are_both_objects_and_two_of_the_background(drawn: SceneExpressions) -> None:
    places = Counter[int]()
    for item, scene in zip(drawn.items, drawn.scenes, strict=True):
        assert item.candidates is not None
        assert len(item.candidates) == 4
        assert {one.box for one in scene.objects} <= set(item.candidates)
        right = [number for number, box in enumerate(item.candidates) if iou(item.box, box) >= 0.5]
        assert len(right) == 1
        places[right[0]] += 1
        for left, top, width, height in item.candidates:
            assert min(left, top) >= 0
            assert max(left + width, top + height) <= scene.picture_size
    assert min(places[place] for place in range(4)) > NUM // 6, "the true box has no place of its own"


def test_the_first_ones_are_the_same_however_many_there_are(drawn: SceneExpressions) -> None:
    few = SceneExpressions(DescribedScenes(source="scenes", num_expressions=7), "test")
    assert few.items == drawn.items[:7]
    assert (few.image(6) == drawn.image(6)).all()


def test_splits_and_seeds_have_other_scenes(drawn: SceneExpressions) -> None:
    contents = {scene.content for scene in drawn.scenes}
    assert len(contents) == NUM
    val = SceneExpressions(DescribedScenes(source="scenes", num_expressions=NUM), "val")
    assert contents.isdisjoint(scene.content for scene in val.scenes)
    other = SceneExpressions(DescribedScenes(source="scenes", num_expressions=7, seed=1), "test")
    assert other.items != drawn.items[:7]
