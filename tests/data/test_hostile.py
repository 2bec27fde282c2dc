"""What attackers and accidents make is refused in one line or read right, in bounded time: never a traceback or a wait."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tclx.data.annotations import read_annotations
from tclx.data.facts import examine
from tclx.data.formats.reading import JSON_LIST
from tclx.data.images import BadImage, Decoder, decode_image, read_image
from tclx.errors import InputError
from tests.data.hostile import ANNOTATIONS, IMAGES, hostile_annotations, hostile_image
from tests.data.small import data_section, encoded, files_source, photograph

BOUND_SECONDS = 20
"""Of CPU, for one file: what takes a second alone, on a crowded machine."""


def attack_annotations(folder: Path, number: int) -> str:
    """What became of it: "read", or the refusal; anything else is raised."""
    source = files_source(folder, "")
    path = Path(source.files[0])
    path.write_bytes(hostile_annotations(number))
    started, refused = time.process_time(), None
    try:
        read = read_annotations(source, key="data.train", training=True)
    except InputError as error:
        refused = error
    assert time.process_time() - started < BOUND_SECONDS
    if refused is not None:
        assert all(str(path) in problem.message or "hold no rows" in problem.message for problem in refused.problems)
        assert all("\n" not in str(problem) for problem in refused.problems)
        assert len(refused.problems) <= 21
        return str(refused)
    names = [read.images[one] for one in read.image_of_row]
    if read.formats == (JSON_LIST,):
        assert names == [row["image"] for row in json.loads(path.read_bytes())]
    else:
        assert names == ["a.jpg", *["b.jpg", "a.jpg"][: len(names) - 1]], path.read_bytes()
    return "read"


def attack_image(number: int) -> str:
    """What became of it: "shown", or the refusal; both decoders must agree."""
    content, ends = hostile_image(number), []
    started = time.process_time()
    decoders: tuple[Decoder, ...] = ("fast", "pil")
    for decoder in decoders:
        try:
            image = decode_image(content, "image", decoder=decoder, max_pixels=50_000_000)
        except BadImage as error:
            ends.append(error.reason)
        else:
            assert image.ndim == 3
            assert image.dtype == np.uint8
            ends.append("shown")
    assert all(end and "\n" not in end for end in ends)
    assert time.process_time() - started < BOUND_SECONDS
    assert len({end == "shown" for end in ends}) == 1, ends
    return ends[0]


def test_a_sample_of_hostile_annotation_files(tmp_path: Path) -> None:
    ends = [attack_annotations(tmp_path, number) for number in range(5 * len(ANNOTATIONS))]
    assert 0 < ends.count("read") < len(ends) / 2


def test_a_sample_of_hostile_images() -> None:
    ends = [attack_image(number) for number in range(len(IMAGES))]
    assert ends.count("shown") < len(ends) / 2
    for reason in ("more than 32 scans", "segments", "more than 100,000 chunks", "pixels", "blocks", "numbers", "run-length"):
        assert any(reason in end for end in ends), reason


@pytest.mark.faults
def test_hostile_annotation_files(tmp_path: Path) -> None:
    ends = [attack_annotations(tmp_path, number) for number in range(1_100)]
    print(f"annotation files: {len(ends)} tried, {ends.count('read')} read, the others refused in one line each problem")


@pytest.mark.faults
def test_hostile_images() -> None:
    ends = [attack_image(number) for number in range(340)]
    print(f"images: {len(ends)} tried, {ends.count('shown')} shown, the others refused")


# Files that are none


def special_files(folder: Path) -> list[tuple[str, str]]:
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    loop = folder / "loop"
    loop.symlink_to(loop)
    return [
        ("/dev/zero", "it is a device, not a file"),
        (str(folder / "pipe"), "it is a pipe, not a file"),
        (str(folder / "folder"), "it is a folder, not a file|holds no images"),
        (str(loop), "symbolic links"),
        (str(folder / ("x" * 300)), "too long"),
        (str(folder / "nothing"), "does not exist"),
        ("a\0b", "no path that a file can have"),
        ("a\ud800b", "no path that a file can have"),
    ]


def test_only_ordinary_files_are_images(tmp_path: Path) -> None:
    for path, reason in special_files(tmp_path):
        with pytest.raises(BadImage, match=reason):
            read_image(Path(path), decoder="fast", max_pixels=1_000_000)


def test_only_ordinary_files_are_annotations(tmp_path: Path) -> None:
    for path, reason in special_files(tmp_path):
        source = files_source(tmp_path, []).model_copy(update={"files": (path,)})
        with pytest.raises(InputError, match=reason):
            read_annotations(source, key="data.train", training=True)


def test_a_image_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadImage, match="has 1,099,511,627,776 bytes, more than the 75,108,864"):
        read_image(tmp_path / "large.jpg", decoder="fast", max_pixels=1_000_000)


@pytest.mark.parametrize("beginning", [b"", b"[", b'[{"image": "', b"[" + b" " * 4096, b"{", b"image,caption\n"])
def test_an_annotation_file_of_a_gibibyte_costs_neither_memory_nor_time(tmp_path: Path, beginning: bytes) -> None:
    """A sparse file: a gibibyte of NUL bytes after the beginning."""
    source = files_source(tmp_path, "")
    with Path(source.files[0]).open("wb") as file:
        file.write(beginning)
        file.truncate(1 << 30)
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read_annotations(source, key="data.train", training=True)
    assert time.process_time() - started < BOUND_SECONDS
    assert len(str(caught.value)) < 1000


def test_both_decoders_show_the_same_of_ordinary_images() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}):
        content = encoded(photograph(), **options)
        images = [decode_image(content, "image", decoder=decoder, max_pixels=1_000_000) for decoder in ("fast", "pil")]
        assert np.abs(images[0].astype(int) - images[1]).max() <= 2


def test_a_bad_caption_of_the_test_split_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photograph()))
    good = files_source(tmp_path, [{"image": "a.jpg", "caption": "x"}], name="train.json").model_dump(mode="json")
    bad = files_source(tmp_path, [{"image": "a.jpg", "caption": ["x", "half \ud83d"]}], name="test.json").model_dump(
        mode="json"
    )
    with pytest.raises(InputError, match=r"data.test.files: .*test.json:1: row 0: `caption` holds half a character"):
        examine(data_section(train=good, val=good, test=bad))
