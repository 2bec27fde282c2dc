"""Images with right and wrong captions: read from published files, or made of generated scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path, PurePath
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.data.forms.form import Fault, text
from tclx.data.problems import Problems
from tclx.data.scenes import COLORS, SHAPES, Scene, SceneObject, draw_scenes, relation
from tclx.errors import InputError, Problem
from tclx.spec.data import ScenesSource

if TYPE_CHECKING:
    from tclx.tasks.selection import SelectionFile, SelectionScenes
    from tclx.tasks.task import Split

RELATIONS = ("to the left of", "to the right of", "above", "below")


class SelectionImage(NamedTuple):
    """An image of an item."""

    path: Path | None
    """None for a generated one."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the part that is meant; None for all of it."""
    scene: Scene | None = None


class SelectionItem(NamedTuple):
    """What is to be chosen."""

    images: tuple[SelectionImage, ...]
    """One, or two that belong to the two captions in their order."""
    captions: tuple[str, ...]
    """With one image the right one first; with two images one each."""
    category: str
    """What is wrong with the wrong one, where the file says so."""


# ------------------------------------------------------------------------------------------------------------- published files


def read_items(data: SelectionFile, *, key: str) -> list[SelectionItem]:
    """The items of a file, in its order.

    Raises:
        InputError: it is no JSON of the form, up to 20 items and their number.
    """
    path, problems = Path(data.file), Problems(f"{key}.file")
    items: list[SelectionItem] = []
    for number, row in _rows(path, key=f"{key}.file"):
        try:
            items.append(_READERS[data.source](row, Path(data.image_root)))
        except Fault as fault:
            problems.add(f"{path}: item {number}: {fault.message}", fault.hint)
    problems.raise_if_any()
    if not items:
        raise InputError(Problem(f"{key}.file", f"{path} holds no items"))
    return items


def _rows(path: Path, *, key: str) -> Iterator[tuple[str, Any]]:
    """Entries with what they are called: of a list or of lines their number, of an object their key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(key, f"{path} cannot be read: {error}")) from error
    try:
        whole = json.loads(text)
        is_lines = isinstance(whole, dict) and not all(isinstance(one, dict) for one in whole.values())
    except (ValueError, RecursionError):
        whole, is_lines = None, True
    if isinstance(whole, list):
        yield from ((str(number), row) for number, row in enumerate(whole))
    elif isinstance(whole, dict) and not is_lines:
        yield from whole.items()
    else:
        for number, line in enumerate(line for line in text.splitlines() if line.strip()):
            try:
                yield str(number), json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"{path}: line {number + 1} is not JSON: {error}"
                raise InputError(Problem(key, message, "a JSON list, an object of objects, or an object a line")) from error


def _texts(row: Any, *names: str) -> list[str]:
    if not isinstance(row, dict):
        raise Fault(f"is {row!r:.40}", f"an object with {', '.join(names)}")
    for name in names:
        if name not in row:
            found = [source for source, keys in _KEYS.items() if set(keys) <= row.keys()]
            hint = f"it is an item of `source: {found[0]}`" if found else f"it has: {', '.join(map(str, row)) or 'no keys'}"
            raise Fault(f"`{name}` is missing", hint)
    return [text(row, name) for name in names]


def _different(*captions: str) -> tuple[str, ...]:
    if len(set(captions)) < len(captions):
        raise Fault(f"both captions are {captions[0]!r:.60}", "a right one and a wrong one")
    return captions


def _sugarcrepe(row: Any, root: Path) -> SelectionItem:
    name, right, wrong = _texts(row, *_KEYS["sugarcrepe"])
    return SelectionItem((SelectionImage(root / name),), _different(right, wrong), "")


def _aro(row: Any, root: Path) -> SelectionItem:
    name, right, wrong = _texts(row, *_KEYS["aro"])
    sides = [row.get(f"bbox_{side}") for side in "xywh"]
    box = None
    if any(side is not None for side in sides):
        if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in sides) or min(sides[2:]) <= 0:
            raise Fault(f"its box is {sides}", "bbox_x, bbox_y, bbox_w and bbox_h in pixels, the last two above 0")
        x, y, width, height = (round(side) for side in sides)
        box = (x, y, width, height)
    category = row.get("relation_name") or "_".join(map(str, row.get("attributes") or ()))
    return SelectionItem((SelectionImage(root / name, box),), _different(right, wrong), str(category))


def _winoground(row: Any, root: Path) -> SelectionItem:
    first, second, left, right = _texts(row, *_KEYS["winoground"])
    images = tuple(SelectionImage(root / (name if PurePath(name).suffix else f"{name}.png")) for name in (left, right))
    return SelectionItem(images, _different(first, second), str(row.get("collapsed_tag", "")))


_KEYS = {
    "sugarcrepe": ("filename", "caption", "negative_caption"),
    "aro": ("image_path", "true_caption", "false_caption"),
    "winoground": ("caption_0", "caption_1", "image_0", "image_1"),
}
_READERS: dict[str, Callable[[Any, Path], SelectionItem]] = {"sugarcrepe": _sugarcrepe, "aro": _aro, "winoground": _winoground}


# -------------------------------------------------------------------------------------------------------------- made of scenes


class Said(NamedTuple):
    """What a caption says of one object; None leaves it open."""

    color: str | None
    shape: str

    def fits(self, item: SceneObject) -> bool:
        return item.shape == self.shape and self.color in (None, item.color)

    def __str__(self) -> str:
        words = self.shape if self.color is None else f"{self.color} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class Claim(NamedTuple):
    """A caption by its parts: two objects, how the first lies from the second, and perhaps a third."""

    first: Said
    relation: str
    second: Said
    third: Said | None = None

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of a scene."""
        pairs = [(one, other) for one in scene.objects for other in scene.objects if one is not other]
        found = [
            (one, other)
            for one, other in pairs
            if self.first.fits(one) and self.second.fits(other) and relation(one, other) == self.relation
        ]
        if self.third is None:
            return bool(found)
        return any(self.third.fits(item) for pair in found for item in scene.objects if item not in pair)

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}" + (f" and {self.third}" if self.third else "")


def _swap_attribute(right: Claim, random: Random) -> Claim:
    first, second = right.first, right.second
    return right._replace(first=Said(second.color, first.shape), second=Said(first.color, second.shape))


def _swap_object(right: Claim, random: Random) -> Claim:
    return right._replace(first=right.second, second=right.first)


def _replace_attribute(right: Claim, random: Random) -> Claim:
    return right._replace(first=right.first._replace(color=random.choice(list(COLORS))))


def _replace_object(right: Claim, random: Random) -> Claim:
    return right._replace(second=right.second._replace(shape=random.choice(list(SHAPES))))


def _replace_relation(right: Claim, random: Random) -> Claim:
    return right._replace(relation=random.choice(RELATIONS))


def _add_attribute(right: Claim, random: Random) -> Claim:
    return right._replace(second=right.second._replace(color=random.choice(list(COLORS))))


def _add_object(right: Claim, random: Random) -> Claim:
    return right._replace(third=Said(random.choice(list(COLORS)), random.choice(list(SHAPES))))


CHANGES: dict[str, Callable[[Claim, Random], Claim]] = {
    "swap_attribute": _swap_attribute,
    "swap_object": _swap_object,
    "replace_attribute": _replace_attribute,
    "replace_object": _replace_object,
    "replace_relation": _replace_relation,
    "add_attribute": _add_attribute,
    "add_object": _add_object,
}
"""How a right caption becomes a wrong one, by category."""


def claims(scene: Scene, category: str, random: Random) -> tuple[Claim, Claim] | None:
    """A right and a wrong caption of a scene; None where its facts leave no such pair."""
    first, second = random.sample(scene.objects, 2)
    # What is added to must be left open before.
    color = None if category == "add_attribute" else second.color
    right = Claim(Said(first.color, first.shape), relation(first, second), Said(color, second.shape))
    for _ in range(20):
        wrong = CHANGES[category](right, random)
        if str(wrong) != str(right) and not wrong.holds(scene):
            return right, wrong
    return None


def scene_items(data: SelectionScenes, split: Split) -> list[SelectionItem]:
    """Items of generated scenes, the categories in turn."""
    random = Random(f"selection/{data.seed}/{split}/{data.picture_size}")
    # Two thirds of the scenes have two objects; some of those suit no change, as swapping equal colours.
    source = ScenesSource(
        source="scenes", split=split, num_images=4 * data.num_items + 64, picture_size=data.picture_size, seed=data.seed
    )
    scenes = (scene for scene in draw_scenes(source) if len(scene.objects) == 2)
    items: list[SelectionItem] = []
    for category in islice(cycle(CHANGES), data.num_items):
        suited = ((scene, pair) for scene in scenes if (pair := claims(scene, category, random)) is not None)
        if (found := next(suited, None)) is None:
            break
        scene, pair = found
        items.append(SelectionItem((SelectionImage(None, scene=scene),), tuple(map(str, pair)), category))
    return items


def items_of(data: SelectionFile | SelectionScenes, split: Split, *, key: str) -> Sequence[SelectionItem]:
    """The items of a source.

    Raises:
        InputError: as `read_items`.
    """
    return scene_items(data, split) if data.source == "scenes" else read_items(data, key=key)
