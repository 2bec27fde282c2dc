"""Visual entailment: does an image entail a statement, contradict it, or leave it open?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from random import Random
from typing import TYPE_CHECKING, Any

from tclx.data.forms.form import Item, one_of, text
from tclx.data.forms.phrases import UNSEEN, statement

if TYPE_CHECKING:
    from tclx.data.scenes import Scene

LABELS = ("contradiction", "neutral", "entailment")
"""By their numbers in the published code."""


class EntailmentForm:
    """SNLI-VE as JSON: `{"image", "sentence", "label"}`; an image without an ending is a `.jpg`."""

    keys = ("image", "sentence", "label")
    num_images = 1
    items_a_scene = len(LABELS)

    def read(self, row: dict[str, Any], *, training: bool) -> Item:
        image = text(row, "image")
        image = image if PurePath(image).suffix else f"{image}.jpg"
        return Item((image,), text(row, "sentence"), one_of(row, "label", LABELS))

    def write(self, item: Item) -> dict[str, Any]:
        return {"image": item.images[0], "sentence": item.text, "label": LABELS[item.target]}

    def words(self, target: Any) -> Sequence[str]:
        return ()

    def of_scenes(self, scenes: Sequence[Scene], random: Random) -> Iterator[Item]:
        """Of each scene a statement of every label; the neutral ones say what no image shows, such as what a shape weighs."""
        for number, scene in enumerate(scenes):
            said = (
                statement(scene, random, truth=False),
                f"{statement(scene, random, truth=True)} {random.choice(UNSEEN)}",
                statement(scene, random, truth=True),
            )
            for label, sentence in enumerate(said):
                yield Item((str(number),), sentence, label)
