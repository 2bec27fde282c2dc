"""Expressions for generated scenes: which of two objects is meant? Each names exactly one of them.

The boxes to choose from are those of both objects and a few of the background, none of which overlaps an object enough to be
taken for it: a box drawn at random is right once in four times.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tclx.data.scenes import RADII, SHAPES, SIZES, Scene, SceneObject, draw_image, draw_scenes, relation
from tclx.spec.data import ScenesSource
from tclx.tasks.grounding.boxes import ENOUGH_OVERLAP, Box, iou
from tclx.tasks.grounding.expressions import Expression, Expressions

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.tasks.grounding.task import DescribedScenes
    from tclx.tasks.task import Split

NUM_DISTRACTORS = 2
"""Boxes of the background."""
ANYTHING = "shape"
"""What an object is called whose shape is not said."""


class Description(NamedTuple):
    """What is said of an object; None for what is not."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None
    relation: str | None = None
    """Where it is from the other one, whose colour and shape are said then."""

    def fits(self, item: SceneObject, other: SceneObject, *, beside: SceneObject) -> bool:
        """Whether it is true of one object of a scene.

        Args:
            item, other: both of the scene.
            beside: the one whose colour and shape are said.
        """
        own = all(said in (None, true) for said, true in zip(self[:3], (item.size, item.color, item.shape), strict=True))
        alike = (other.color, other.shape) == (beside.color, beside.shape)
        return own and (self.relation is None or (alike and relation(item, other) == self.relation))


def _descriptions(item: SceneObject, other: SceneObject) -> Iterator[Description]:
    """What can be said of an object that tells it from the other."""
    place = relation(item, other)
    for one in (
        Description(shape=item.shape),
        Description(color=item.color),
        Description(size=item.size),
        Description(size=item.size, shape=item.shape),
        Description(color=item.color, shape=item.shape),
        Description(size=item.size, color=item.color, shape=item.shape),
        Description(shape=item.shape, relation=place),
        Description(color=item.color, shape=item.shape, relation=place),
        Description(relation=place),
    ):
        if not one.fits(other, item, beside=other):
            yield one


def _words(size: str | None, color: str | None, shape: str | None, random: Random) -> str:
    said = [random.choice(SIZES[size])] if size else []
    said += [color] if color else []
    said.append(random.choice(SHAPES[shape]) if shape else ANYTHING)
    return f"the {' '.join(said)}"


def draw_expression(scene: Scene, number: int, random: Random) -> Expression:
    """An expression that names one of a scene's two objects, by whatever tells it from the other, drawn uniformly."""
    item, other = random.sample(scene.objects, 2)
    chosen = random.choice(list(_descriptions(item, other)))
    text = _words(*chosen[:3], random)
    if chosen.relation is not None:
        text = f"{text} {chosen.relation} {_words(None, other.color, other.shape, random)}"
    candidates: list[Box] = [item.box, other.box, *_distractors(scene, random)]
    random.shuffle(candidates)
    return Expression(number, text, item.box, tuple(candidates))


def _distractors(scene: Scene, random: Random) -> Iterator[Box]:
    """Squares as large as the objects may be, within the image."""
    found = 0
    while found < NUM_DISTRACTORS:
        side = 2 * round(random.choice(list(RADII.values())) * scene.picture_size)
        left, top = (random.randint(0, scene.picture_size - side) for _ in range(2))
        box = (left, top, side, side)
        if all(iou(box, item.box) < ENOUGH_OVERLAP for item in scene.objects):
            found += 1
            yield box


class SceneExpressions(Expressions):
    """One expression for each scene; the images are drawn when this is made."""

    def __init__(self, described: DescribedScenes, split: Split) -> None:
        size, seed, count = described.picture_size, described.seed, described.num_expressions
        # Two thirds of the scenes have two objects.
        source = ScenesSource(source="scenes", split=split, num_images=3 * count + 64, picture_size=size, seed=seed)
        self.scenes = list(islice((scene for scene in draw_scenes(source) if len(scene.objects) == 2), count))
        items = [
            draw_expression(scene, number, Random(f"grounding/{seed}/{split}/{size}/{number}"))
            for number, scene in enumerate(self.scenes)
        ]
        super().__init__(items, [(size, size)] * len(items))
        self._images = [draw_image(scene) for scene in self.scenes]

    def image(self, row: int) -> Pixels:
        return self._images[row]
