"""Words for scenes: statements whose truth is known because they are made of the facts."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING

from tclx.data.scenes import BACKGROUNDS, COLORS, SHAPES

if TYPE_CHECKING:
    from tclx.data.scenes import Scene, SceneObject

COUNTS = ("no", "one", "two", "three", "four")
UNSEEN = ("and it is heavy", "and it is warm", "drawn this morning", "drawn by a child", "that belongs to anna", "made of wood")
"""What no image shows."""


def a_or_an(words: str) -> str:
    """`a star`, `an orange star`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def described(color: str, shape: str) -> str:
    """`a red circle`."""
    return a_or_an(f"{color} {shape}")


def statement(scene: Scene, random: Random, *, truth: bool) -> str:
    """One that the image shows to be true, or to be false; both speak of the same things in the same words."""
    item: SceneObject = random.choice(scene.objects)
    kind = random.randrange(4)
    if kind == 0:
        colors = {one.color for one in scene.objects if one.shape == item.shape}
        return f"there is {described(_pick(random, COLORS, colors, truth=truth), item.shape)}"
    if kind == 1:
        shapes = {one.shape for one in scene.objects if one.color == item.color}
        return f"there is {described(item.color, _pick(random, SHAPES, shapes, truth=truth))}"
    if kind == 2:
        background = _pick(random, BACKGROUNDS, {scene.background}, truth=truth)
        return f"{described(item.color, item.shape)} on a {background} background"
    number = len(scene.objects) if truth else 3 - len(scene.objects)
    return f"there {'is' if number == 1 else 'are'} {COUNTS[number]} shape{'' if number == 1 else 's'}"


def _pick(random: Random, known: Iterable[str], there: set[str], *, truth: bool) -> str:
    return random.choice([one for one in known if (one in there) == truth])
