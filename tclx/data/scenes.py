"""What can be learned from without any download? Generated images of coloured shapes with five varied captions each.

A scene is facts first (which shapes, where, on what background); its image and its captions are drawn from the facts, so that
questions, statements and boxes can be derived from the same facts later.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from tclx.errors import InputError, Problem
from tclx.files import machine_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.ImageDraw import ImageDraw

    from tclx.spec.data import ScenesSource

Split = Literal["train", "val", "test"]

COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 98, 214),
    "yellow": (245, 205, 40),
    "purple": (136, 58, 180),
    "orange": (245, 130, 32),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
BACKGROUNDS = {"gray": (150, 150, 150), "pink": (250, 196, 206), "brown": (140, 98, 60), "sky": (160, 210, 240)}
SHAPES = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
}
"""Each shape and the words for it."""
SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large")}
"""Each size and the words for it."""
RADII = {"small": 0.16, "big": 0.25}
"""Share of the image's side. Shapes half this large were not learnable at 32 pixels."""
NUM_CAPTIONS = 5

NUM_OBJECTS = (1, 2, 2)
"""Drawn uniformly: a third of the scenes has one object."""
PLACEMENT_TRIES = 60
SIZE_MENTIONED, COLOR_MENTIONED, BACKGROUND_MENTIONED = 0.45, 0.95, 0.7
"""How often a caption says so. Captions that name fewer colours made the scenes too alike to be learned in a minute."""
NOISE = 10
"""Largest pixel noise, of 255."""
CELLS = 4
"""Scenes that agree in everything but positions within the same cells of a CELLS x CELLS grid count as the same scene."""
SPLIT_SHARES: dict[Split, range] = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
"""Tenths of all possible scenes. Which tenth a scene falls into depends on its content alone, so splits share no scene."""
MAX_REJECTIONS = 200_000
"""Draws in a row without a new scene after which the split counts as exhausted; it holds far more than 100,000 scenes."""


@dataclass(frozen=True)
class SceneObject:
    """One shape: its centre and radius in pixels, x to the right and y down."""

    shape: str
    color: str
    size: str
    x: int
    y: int
    radius: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        return self.x - self.radius, self.y - self.radius, 2 * self.radius, 2 * self.radius


@dataclass(frozen=True)
class Scene:
    """The facts of an image: one or two shapes that do not overlap, on a plain background."""

    objects: tuple[SceneObject, ...]
    background: str
    picture_size: int
    """Side in pixels."""
    noise_seed: int
    """Decides the pixel noise."""

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two scenes the same: equal contents differ by noise and a few pixels at most."""
        cell = self.picture_size / CELLS
        objects = sorted((o.shape, o.color, o.size, int(o.x / cell), int(o.y / cell)) for o in self.objects)
        return self.background, tuple(objects)


class Scenes:
    """The scenes of one source: facts, images and captions, each a pure function of the source's fields and a number.

    The first n of N scenes are the same for every N >= n.

    Raises:
        InputError: more scenes asked for than there are.
    """

    def __init__(self, source: ScenesSource) -> None:
        self.source = source
        self.facts: list[Scene] = list(draw_scenes(source))
        self.captions = [draw_captions(scene, self._random("captions", number)) for number, scene in enumerate(self.facts)]

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """[N, S, S, 3] uint8 RGB, drawn once when first asked for."""
        return draw_images(self.facts)

    def _random(self, purpose: str, number: int) -> Random:
        return _random(self.source, purpose, str(number))


def draw_images(scenes: Iterable[Scene]) -> NDArray[np.uint8]:
    """[N, S, S, 3] uint8 RGB."""
    import numpy as np

    return np.stack([draw_image(scene) for scene in scenes])


def draw_scenes(source: ScenesSource) -> Iterator[Scene]:
    """The facts of `source.num_images` different scenes that belong to its split."""
    random = _random(source, "facts")
    seen: set[tuple[object, ...]] = set()
    rejections = 0
    while len(seen) < source.num_images:
        scene = draw_scene(random, picture_size=source.picture_size)
        if scene.content in seen or not belongs_to(scene, source.split):
            rejections += 1
            _refuse_when_exhausted(rejections, num_drawn=len(seen), source=source)
            continue
        rejections = 0
        seen.add(scene.content)
        yield scene


def belongs_to(scene: Scene, split: Split) -> bool:
    """Whether the scene's content falls into the split's share, whatever the seed."""
    digest = hashlib.blake2b(repr(scene.content).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 in SPLIT_SHARES[split]


def draw_scene(random: Random, *, picture_size: int) -> Scene:
    """Any scene: a background and one or two shapes, each placed where it overlaps nothing (left out where nothing fits)."""
    background = random.choice(list(BACKGROUNDS))
    objects: list[SceneObject] = []
    for _ in range(random.choice(NUM_OBJECTS)):
        placed = _place(random, objects, picture_size)
        if placed is not None:
            objects.append(placed)
    return Scene(tuple(objects), background, picture_size, noise_seed=random.getrandbits(32))


def _place(random: Random, others: list[SceneObject], picture_size: int) -> SceneObject | None:
    for _ in range(PLACEMENT_TRIES):
        size = random.choice(list(SIZES))
        radius = round(RADII[size] * picture_size)
        x, y = (random.randint(radius + 2, picture_size - radius - 3) for _ in range(2))
        if all((x - o.x) ** 2 + (y - o.y) ** 2 > (radius + o.radius + 2) ** 2 for o in others):
            return SceneObject(random.choice(list(SHAPES)), random.choice(list(COLORS)), size, x, y, radius)
    return None


def draw_image(scene: Scene) -> NDArray[np.uint8]:
    """[S, S, 3] uint8 RGB: the shapes on their background, with the same grey noise in every channel."""
    import numpy as np
    from PIL import Image, ImageDraw

    side = scene.picture_size
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    canvas = ImageDraw.Draw(image)
    for item in scene.objects:
        _draw_shape(canvas, item)
    noise = np.random.default_rng(scene.noise_seed).integers(-NOISE, NOISE + 1, size=(side, side, 1))
    noisy: NDArray[np.uint8] = np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    return noisy


def _draw_shape(canvas: ImageDraw, item: SceneObject) -> None:
    x, y, r, color = item.x, item.y, item.radius, COLORS[item.color]
    match item.shape:
        case "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=color)
        case "ring":
            canvas.ellipse((x - r, y - r, x + r, y + r), outline=color, width=max(3, r // 3))
        case "square":
            canvas.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=color)
        case "cross":
            canvas.rectangle((x - r, y - 0.32 * r, x + r, y + 0.32 * r), fill=color)
            canvas.rectangle((x - 0.32 * r, y - r, x + 0.32 * r, y + r), fill=color)
        case "triangle":
            canvas.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=color)
        case "diamond":
            canvas.polygon([(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)], fill=color)
        case "star":
            canvas.polygon(_star(x, y, r), fill=color)
        case "heart":
            canvas.ellipse((x - r, y - 0.9 * r, x, y + 0.1 * r), fill=color)
            canvas.ellipse((x, y - 0.9 * r, x + r, y + 0.1 * r), fill=color)
            canvas.polygon([(x - 0.93 * r, y - 0.2 * r), (x + 0.93 * r, y - 0.2 * r), (x, y + r)], fill=color)


def _star(x: int, y: int, radius: int) -> list[tuple[float, float]]:
    """Five points, the inner corners at 0.42 of the radius."""
    corners = []
    for corner in range(10):
        reach, angle = radius * (0.42 if corner % 2 else 1.0), corner * math.pi / 5
        corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    return corners


def draw_captions(scene: Scene, random: Random) -> tuple[str, ...]:
    """NUM_CAPTIONS true captions; they may be partial, and two may be equal."""
    return tuple(draw_caption(scene, random) for _ in range(NUM_CAPTIONS))


def draw_caption(scene: Scene, random: Random) -> str:
    """A true sentence about the scene: objects with some attributes, their places or relation, maybe the background."""
    objects = random.sample(scene.objects, len(scene.objects))
    text = _one_object(scene, objects[0], random) if len(objects) == 1 else _two_objects(scene, objects, random)
    return f"{text} on a {scene.background} background" if random.random() < BACKGROUND_MENTIONED else text


def _one_object(scene: Scene, item: SceneObject, random: Random) -> str:
    if random.random() < 0.6:
        return f"{_phrase(item, random)} {position(scene, item)}"
    return f"there is {_phrase(item, random)}"


def _two_objects(scene: Scene, objects: list[SceneObject], random: Random) -> str:
    first, second = objects
    kind = random.random()
    if kind < 0.45:
        return f"{_phrase(first, random)} {relation(first, second)} {_phrase(second, random)}"
    if kind < 0.75:
        return f"{_phrase(first, random)} and {_phrase(second, random)}"
    if kind < 0.9:
        return f"two shapes with {_phrase(first, random)} {position(scene, first)}"
    return f"{_phrase(first, random)} {position(scene, first)} and {_phrase(second, random)}"


def _phrase(item: SceneObject, random: Random) -> str:
    """`a small red disc`: size and colour only sometimes, the shape under one of its names."""
    words = []
    if random.random() < SIZE_MENTIONED:
        words.append(random.choice(SIZES[item.size]))
    if random.random() < COLOR_MENTIONED:
        words.append(item.color)
    words.append(random.choice(SHAPES[item.shape]))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def relation(first: SceneObject, second: SceneObject) -> str:
    """Where the first is from the second, along the axis on which they are further apart."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) > abs(down):
        return "to the left of" if right < 0 else "to the right of"
    return "above" if down < 0 else "below"


def position(scene: Scene, item: SceneObject) -> str:
    """The ninth of the image that holds the centre, in words."""
    third = scene.picture_size / 3
    vertical = "top" if item.y < third else "bottom" if item.y > 2 * third else ""
    horizontal = "left" if item.x < third else "right" if item.x > 2 * third else ""
    if not vertical and not horizontal:
        return "in the middle"
    return f"in the {vertical} {horizontal} corner" if vertical and horizontal else f"at the {vertical or horizontal}"


Row = dict[str, str | list[str]]


def write_scenes(folder: Path, source: ScenesSource) -> Path:
    """Write a source as images and ALBEF JSON, to look at or to train on as files.

    `images/<split>/*.png`, and beside them `pretrain.json` and `retrieval_train.json` for the train split, `val.json` or
    `test.json` for the others; image paths start at `folder`.

    Returns:
        The (first) JSON file written.

    Raises:
        MachineError: the folder cannot be written.
    """
    scenes = Scenes(source)
    paths = [f"images/{source.split}/{number:06d}.png" for number in range(len(scenes))]
    rows: list[Row] = [{"image": path, "caption": [*texts]} for path, texts in zip(paths, scenes.captions, strict=True)]
    try:
        _write_images(folder, paths, scenes.images)
        if source.split != "train":
            return _write_rows(folder / f"{source.split}.json", rows)
        per_caption: list[Row] = [
            {"image": row["image"], "image_id": f"scene-{number}", "caption": caption}
            for number, row in enumerate(rows)
            for caption in row["caption"]
        ]
        _write_rows(folder / "retrieval_train.json", per_caption)
        return _write_rows(folder / "pretrain.json", rows)
    except OSError as error:
        raise machine_error(error, f"could not write the scenes to {folder}") from error


def _write_images(folder: Path, paths: list[str], images: NDArray[np.uint8]) -> None:
    from PIL import Image

    (folder / paths[0]).parent.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(folder / path)


def _write_rows(path: Path, rows: list[Row]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def _random(source: ScenesSource, *purpose: str) -> Random:
    """A stream of its own for every source and purpose; string seeds are hashed with SHA-512, equal on every machine."""
    return Random("/".join(("scenes", str(source.seed), source.split, str(source.picture_size), *purpose)))


def _refuse_when_exhausted(rejections: int, *, num_drawn: int, source: ScenesSource) -> None:
    if rejections > MAX_REJECTIONS:
        raise InputError(
            Problem(
                "num_images",
                f"there are not {source.num_images:,} different scenes in the {source.split} split",
                f"about {num_drawn:,} is the most",
            )
        )
