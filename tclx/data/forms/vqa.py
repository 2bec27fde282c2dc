"""Questions about an image, and their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.data.forms.form import Fault, Item, text
from tclx.data.forms.phrases import COUNTS, described
from tclx.data.scenes import COLORS, SHAPES, position, relation

if TYPE_CHECKING:
    from tclx.data.scenes import Scene

WEIGHT_OF_VISUAL_GENOME = 0.5
"""Of an answer that nobody confirmed, as in the published code."""


class Answers(NamedTuple):
    """What is right."""

    given: tuple[str, ...]
    """As people gave them, ten in VQA; empty where nobody tells."""
    weights: dict[str, float]
    """What training makes of them: each different answer with its share."""
    question_id: Any
    """As the file has it; None where it has none."""


class VqaForm:
    """VQA as JSON: `{"image", "question", "answer": text or list, "question_id", "dataset": "vqa" or "vg"}`."""

    keys = ("image", "question")
    num_images = 1
    items_a_scene = 4

    def read(self, row: dict[str, Any], *, training: bool) -> Item:
        given = row.get("answer")
        if given is None:
            if training:
                raise Fault("`answer` is missing", "text, or a list of texts")
            given = []
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
            raise Fault(f"`answer` is {row['answer']!r:.40}", "text, or a list of texts")
        if training and not given:
            raise Fault("`answer` is an empty list", "at least one text")
        question_id = row.get("question_id")
        if not isinstance(question_id, str | int | None):
            raise Fault(f"`question_id` is {question_id!r:.40}", "text or a whole number")
        unconfirmed = row.get("dataset") == "vg"
        return Item((text(row, "image"),), text(row, "question"), [given, question_id, unconfirmed])

    def write(self, item: Item) -> dict[str, Any]:
        given, question_id, unconfirmed = item.target
        row = {"image": item.images[0], "question": item.text}
        row |= {"answer": given} if given else {}
        row |= {"question_id": question_id} if question_id is not None else {}
        return row | ({"dataset": "vg"} if unconfirmed else {})

    def words(self, target: Any) -> Sequence[str]:
        given: list[str] = target[0]
        return given

    def of_scenes(self, scenes: Sequence[Scene], random: Random) -> Iterator[Item]:
        """Of each scene a few questions that its facts answer in one way."""
        for number, scene in enumerate(scenes):
            asked: dict[str, str] = {}
            while len(asked) < self.items_a_scene:
                if (found := random.choice(_KINDS)(scene, random)) is not None:
                    asked.setdefault(*found)
            for question, answer in asked.items():
                yield Item((str(number),), question, [[answer], None, False])


def answers_of(target: Any) -> Answers:
    """What an item's target says."""
    given, question_id, unconfirmed = target
    if unconfirmed:
        weights = dict.fromkeys(given, WEIGHT_OF_VISUAL_GENOME)
    else:
        weights = {answer: count / len(given) for answer, count in Counter(given).items()}
    return Answers(tuple(given), weights, question_id)


_Asked = tuple[str, str] | None


def _what_color(scene: Scene, random: Random) -> _Asked:
    item = random.choice(scene.objects)
    if sum(one.shape == item.shape for one in scene.objects) > 1:
        return None
    return f"what color is the {random.choice(SHAPES[item.shape])}?", item.color


def _what_shape(scene: Scene, random: Random) -> _Asked:
    item = random.choice(scene.objects)
    if sum(one.color == item.color for one in scene.objects) > 1:
        return None
    return f"what shape is {item.color}?", item.shape


def _how_many(scene: Scene, random: Random) -> _Asked:
    return "how many shapes are there?", COUNTS[len(scene.objects)]


def _background(scene: Scene, random: Random) -> _Asked:
    return "what color is the background?", scene.background


def _is_there(scene: Scene, random: Random) -> _Asked:
    if random.random() < 0.5:
        item = random.choice(scene.objects)
        return f"is there {described(item.color, item.shape)}?", "yes"
    color, shape = random.choice(list(COLORS)), random.choice(list(SHAPES))
    there = any((one.color, one.shape) == (color, shape) for one in scene.objects)
    return f"is there {described(color, shape)}?", "yes" if there else "no"


def _where(scene: Scene, random: Random) -> _Asked:
    item = random.choice(scene.objects)
    if sum(one.color == item.color for one in scene.objects) > 1:
        return None
    return f"where is the {item.color} shape?", position(scene, item).removeprefix("in the ").removeprefix("at the ")


def _which_side(scene: Scene, random: Random) -> _Asked:
    if len(scene.objects) < 2:
        return None
    first, second = random.sample(scene.objects, 2)
    if first.color == second.color:
        return None
    return f"where is the {first.color} shape from the {second.color} one?", relation(first, second)


_KINDS: tuple[Callable[[Scene, Random], _Asked], ...] = (
    _what_color,
    _what_shape,
    _how_many,
    _background,
    _is_there,
    _where,
    _which_side,
)
