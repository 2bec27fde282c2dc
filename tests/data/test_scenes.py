from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from tclx.data import scenes as module
from tclx.data.annotations import read_annotations
from tclx.data.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Scenes,
    belongs_to,
    draw_caption,
    draw_image,
    draw_scenes,
    position,
    relation,
    write_scenes,
)
from tclx.errors import InputError, MachineError
from tclx.spec.data import FilesSource, ScenesSource

SHAPE_OF_WORD = {word: shape for shape, words in SHAPES.items() for word in words}
SIZE_OF_WORD = {word: size for size, words in SIZES.items() for word in words}
PHRASE = re.compile(
    rf"an? (?:(?P<size>{'|'.join(SIZE_OF_WORD)}) )?(?:(?P<color>{'|'.join(COLORS)}) )?(?P<shape>{'|'.join(SHAPE_OF_WORD)})"
    r"(?: (?P<place>in the middle|in the \w+ \w+ corner|at the \w+))?(?= |$)"
)


def source(
    num_images: int = 40, split: Literal["train", "val", "test"] = "train", *, size: int = 32, seed: int = 0
) -> ScenesSource:
    return ScenesSource(source="scenes", num_images=num_images, split=split, picture_size=size, seed=seed)


def test_the_same_source_gives_the_same_scenes_and_a_longer_one_continues_it() -> None:
    once, again, longer = Scenes(source()), Scenes(source()), Scenes(source(60))
    assert once.facts == again.facts == longer.facts[:40]
    assert once.captions == again.captions == longer.captions[:40]
    assert np.array_equal(once.images, longer.images[:40])


def test_another_seed_is_another_world() -> None:
    assert Scenes(source()).facts != Scenes(source(seed=1)).facts


def test_no_scene_comes_twice_within_or_across_splits_and_seeds() -> None:
    worlds = {
        (split, seed): [scene.content for scene in draw_scenes(source(150, split, seed=seed))]
        for split in ("train", "val", "test")
        for seed in (0, 1)
    }
    assert all(len(set(contents)) == len(contents) == 150 for contents in worlds.values())
    for split in ("val", "test"):
        seen = set(worlds["train", 0]) | set(worlds["train", 1])
        assert not seen & (set(worlds[split, 0]) | set(worlds[split, 1]))


def test_every_scene_belongs_to_exactly_one_split() -> None:
    random = Random(0)
    for scene in (module.draw_scene(random, picture_size=32) for _ in range(200)):
        assert sum(belongs_to(scene, split) for split in ("train", "val", "test")) == 1


def test_objects_lie_inside_the_image_and_do_not_overlap() -> None:
    for scene in draw_scenes(source(100)):
        assert 1 <= len(scene.objects) <= 2
        for item in scene.objects:
            left, top, width, height = item.box
            assert left >= 0
            assert top >= 0
            assert left + width < 32
            assert top + height < 32
        if len(scene.objects) == 2:
            first, second = scene.objects
            assert np.hypot(first.x - second.x, first.y - second.y) > first.radius + second.radius


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_caption_is_true_of_its_scene(split: Literal["train", "val"]) -> None:
    scenes = Scenes(source(150, split))
    for scene, captions in zip(scenes.facts, scenes.captions, strict=True):
        assert len(captions) == 5
        for caption in captions:
            check_caption(scene, caption)


def check_caption(scene: Scene, caption: str) -> None:
    text, _, rest = caption.partition(" on a ")
    assert rest in ("", f"{scene.background} background")
    phrases = list(PHRASE.finditer(text))
    assert 1 <= len(phrases) <= len(scene.objects), caption
    assert ("two shapes" not in text) or len(scene.objects) == 2
    candidates = [[item for item in scene.objects if fits(scene, item, phrase)] for phrase in phrases]
    assert all(candidates), caption
    if len(phrases) == 2:
        pairs = [(a, b) for a in candidates[0] for b in candidates[1] if a is not b]
        between = text[phrases[0].end() : phrases[1].start()].strip()
        assert any(between in ("and", relation(a, b)) for a, b in pairs), caption


def fits(scene: Scene, item: SceneObject, phrase: re.Match[str]) -> bool:
    return (
        SHAPE_OF_WORD[phrase["shape"]] == item.shape
        and phrase["color"] in (None, item.color)
        and (phrase["size"] is None or SIZE_OF_WORD[phrase["size"]] == item.size)
        and phrase["place"] in (None, position(scene, item))
    )


def test_captions_vary_and_use_the_whole_vocabulary() -> None:
    scenes = Scenes(source(400))
    words = {word for captions in scenes.captions for caption in captions for word in caption.split()}
    assert {*COLORS, *BACKGROUNDS, *(name.split()[0] for name in SHAPE_OF_WORD), *SIZE_OF_WORD} <= words
    assert sum(len(set(captions)) > 2 for captions in scenes.captions) > 0.9 * len(scenes)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_image_shows_its_object_and_nothing_else(shape: str) -> None:
    item = SceneObject(shape, "red", "big", x=16, y=15, radius=8)
    image = draw_image(Scene((item,), "gray", 32, noise_seed=0)).astype(int)
    red = np.abs(image - COLORS["red"]).max(axis=-1) <= module.NOISE
    gray = np.abs(image - BACKGROUNDS["gray"]).max(axis=-1) <= module.NOISE
    rows, columns = np.nonzero(red)
    left, top, width, height = item.box
    assert (red ^ gray).all()
    assert red.sum() > 60
    assert left <= columns.min()
    assert columns.max() <= left + width
    assert top <= rows.min()
    assert rows.max() <= top + height


def test_shapes_differ_from_each_other() -> None:
    masks = [draw_image(Scene((SceneObject(shape, "red", "big", 16, 15, 8),), "gray", 32, noise_seed=0)) for shape in SHAPES]
    for number, mask in enumerate(masks):
        assert all((mask != other).any(axis=-1).sum() > 15 for other in masks[:number])


def test_places_and_relations_in_words() -> None:
    left_top, right_top, middle = (SceneObject("star", "red", "small", x, y, 5) for x, y in ((8, 8), (24, 9), (16, 16)))
    scene = Scene((left_top, right_top), "pink", 32, noise_seed=0)
    assert position(scene, left_top) == "in the top left corner"
    assert position(scene, middle) == "in the middle"
    assert relation(left_top, right_top) == "to the left of"
    assert relation(right_top, left_top) == "to the right of"
    assert relation(SceneObject("star", "red", "small", 8, 20, 5), left_top) == "below"


def test_a_caption_is_drawn_from_its_own_stream() -> None:
    scene = next(draw_scenes(source()))
    assert draw_caption(scene, Random(1)) == draw_caption(scene, Random(1))


@pytest.mark.parametrize("size", [16, 48])
def test_other_image_sizes(size: int) -> None:
    assert Scenes(source(3, size=size)).images.shape == (3, size, size, 3)


def test_more_scenes_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REJECTIONS", 5)
    with pytest.raises(InputError, match="not 5,000 different scenes in the val split"):
        Scenes(source(5000, "val"))


def test_written_scenes_read_back_as_annotation_files(tmp_path: Path) -> None:
    first = write_scenes(tmp_path, source(12))
    rows = json.loads(first.read_text())
    scenes = Scenes(source(12))
    assert [tuple(row["caption"]) for row in rows] == scenes.captions
    assert np.array_equal(np.asarray(Image.open(tmp_path / rows[3]["image"])), scenes.images[3])
    retrieval = FilesSource(
        source="files", form="retrieval", files=(str(tmp_path / "retrieval_train.json"),), image_root=str(tmp_path)
    )
    annotations = read_annotations(retrieval, key="data.train", training=True)
    assert annotations.num_rows == 60
    assert len(annotations.images) == 12


def test_written_evaluation_scenes_have_their_splits_name(tmp_path: Path) -> None:
    assert write_scenes(tmp_path, source(2, "val")) == tmp_path / "val.json"


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where a folder should be")
    with pytest.raises(MachineError, match="could not write the scenes"):
        write_scenes(tmp_path, source(2))
