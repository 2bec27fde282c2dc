"""Two images and a statement: is it true of them?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from tclx.data.forms.form import Fault, Item, text
from tclx.data.forms.phrases import COUNTS, a_or_an, described
from tclx.data.scenes import COLORS, SHAPES

if TYPE_CHECKING:
    from tclx.data.scenes import Scene

LABELS = ("False", "True")


class NlvrForm:
    """NLVR2 as JSON: `{"images": [left, right], "sentence", "label": "True" or "False"}`."""

    keys = ("images", "sentence", "label")
    num_images = 2
    items_a_scene = len(LABELS)

    def read(self, row: dict[str, Any], *, training: bool) -> Item:
        images = row["images"]
        if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
            raise Fault(f"`images` is {images!r:.40}", "a list of two paths, the left image first")
        if len(images) != 2:
            count = f"{len(images)} image{'' if len(images) == 1 else 's'}"
            raise Fault(f"`images` holds {count}", "a left and a right one")
        label = str(row["label"])
        if label not in LABELS:
            raise Fault(f"`label` is {row['label']!r:.40}", "True or False")
        return Item((images[0], images[1]), text(row, "sentence"), LABELS.index(label))

    def write(self, item: Item) -> dict[str, Any]:
        return {"images": list(item.images), "sentence": item.text, "label": LABELS[item.target]}

    def words(self, target: Any) -> Sequence[str]:
        return ()

    def of_scenes(self, scenes: Sequence[Scene], random: Random) -> Iterator[Item]:
        """Of each scene a true and a false statement, each beside another scene; truth cannot be told from the words alone."""
        for number, left in enumerate(scenes):
            for truth in random.sample((False, True), 2):
                kind = random.choice(_KINDS)
                while True:
                    other = random.randrange(len(scenes))
                    sentence, holds = kind(random)
                    if holds(left, scenes[other]) == truth:
                        break
                yield Item((str(number), str(other)), sentence, int(truth))


Holds = Callable[["Scene", "Scene"], bool]


def _shows(scene: Scene, color: str, shape: str) -> bool:
    return any((item.color, item.shape) == (color, shape) for item in scene.objects)


def _one_side_color(random: Random) -> tuple[str, Holds]:
    side, color = random.randrange(2), random.choice(list(COLORS))
    return f"the {('left', 'right')[side]} image has a {color} shape".replace("a orange", "an orange"), (
        lambda left, right: any(item.color == color for item in (left, right)[side].objects)
    )


def _one_side_shape(random: Random) -> tuple[str, Holds]:
    side, shape = random.randrange(2), random.choice(list(SHAPES))
    return f"the {('left', 'right')[side]} image shows {a_or_an(shape)}", (
        lambda left, right: any(item.shape == shape for item in (left, right)[side].objects)
    )


def _same_number(random: Random) -> tuple[str, Holds]:
    if random.random() < 0.5:
        return "both images have the same number of shapes", lambda left, right: len(left.objects) == len(right.objects)
    return "the left image has more shapes than the right one", lambda left, right: len(left.objects) > len(right.objects)


def _in_all(random: Random) -> tuple[str, Holds]:
    total = random.randint(2, 4)
    return f"there are {COUNTS[total]} shapes in all", lambda left, right: len(left.objects) + len(right.objects) == total


def _backgrounds(random: Random) -> tuple[str, Holds]:
    return "both images have the same background", lambda left, right: left.background == right.background


def _exactly_one(random: Random) -> tuple[str, Holds]:
    color, shape = random.choice(list(COLORS)), random.choice(list(SHAPES))
    return f"exactly one of the images shows {described(color, shape)}", (
        lambda left, right: _shows(left, color, shape) != _shows(right, color, shape)
    )


_KINDS: tuple[Callable[[Random], tuple[str, Holds]], ...] = (
    _one_side_color,
    _one_side_shape,
    _same_number,
    _in_all,
    _backgrounds,
    _exactly_one,
)
