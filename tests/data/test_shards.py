"""Promises of `source: shards`: the same samples as from files, damage is seen, tars of others are indexed once."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tclx.data.dataset import train_batches
from tclx.data.facts import check_images, collect_facts, examine, refuse_bad_images
from tclx.data.images import BadImage
from tclx.data.shards import foreign
from tclx.data.shards.arrays import Texts, read_arrays, write_arrays
from tclx.data.shards.index import INDEX, ShardIndex, read_index
from tclx.data.shards.member import OpenShards
from tclx.data.sources.opening import open_source
from tclx.data.tokenizer import train_wordpiece
from tclx.errors import InputError, RunFailed
from tclx.files import Unreadable
from tclx.spec.data import DataSpec
from tclx.spec.experiment import ExperimentSpec
from tests.data.packing import on_shards, packed, photographs, reading
from tests.data.small import data_section, encoded, equal, photograph
from tests.disk import small_disk

TOKENIZER = train_wordpiece(["photograph no the second again"], vocab_size=64)


@pytest.fixture
def files(tmp_path: Path) -> ExperimentSpec:
    (tmp_path / "images").mkdir()
    return reading(tmp_path / "images", photographs(tmp_path / "images", 24))


@pytest.fixture
def shards(files: ExperimentSpec, tmp_path: Path) -> ExperimentSpec:
    return on_shards(files, packed(files, tmp_path / "shards").folder)


def stream(spec: ExperimentSpec, *, start: int = 0, number: int = 9, num_workers: int = 0, **processes: int) -> list[Any]:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"num_workers": num_workers})})
    batches = train_batches(spec, tokenizer=TOKENIZER, start_micro_step=start, **processes)
    found = list(islice(batches, number))
    batches.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_files_from_wherever_they_begin(
    files: ExperimentSpec, shards: ExperimentSpec, num_workers: int
) -> None:
    """Whoever loads them: after a fork the shards that are open are read on."""
    expected = stream(files)
    assert all(map(equal, stream(shards, num_workers=num_workers), expected))
    assert all(map(equal, stream(shards, start=4, number=5, num_workers=num_workers), expected[4:]))


def test_one_process_and_two_see_the_same_rows_in_the_same_order(shards: ExperimentSpec) -> None:
    def rows(spec: ExperimentSpec, **processes: int) -> list[list[int]]:
        return [batch.row.tolist() for batch in stream(spec, number=4, **processes)]

    alone = rows(shards)
    half = shards.model_copy(update={"training": shards.training.model_copy(update={"batch_size_per_gpu": 3})})
    first, second = (rows(half, rank=rank, world_size=2) for rank in (0, 1))
    assert [one + other for one, other in zip(first, second, strict=True)] == alone


def test_a_shard_that_is_open_is_read_on_after_a_fork(shards: ExperimentSpec) -> None:
    rows = open_source(shards.data.train, key="data.train").rows(shards)
    expected = [rows.image(row).sum() for row in range(24)]
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, bytes([expected == [rows.image(row).sum() for row in range(24)]]))
        os._exit(0)
    assert expected == [rows.image(row).sum() for row in range(24)]
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"\1"
    os.close(read)
    os.close(write)


def test_a_started_process_opens_its_own(shards: ExperimentSpec) -> None:
    rows = open_source(shards.data.train, key="data.train").rows(shards)
    expected = rows.image(3)
    assert np.array_equal(pickle.loads(pickle.dumps(rows)).image(3), expected)


def test_only_so_many_shards_stay_open(shards: ExperimentSpec) -> None:
    index = open_source(shards.data.train, key="data.train").index  # type: ignore[attr-defined]
    few = OpenShards()
    few._most = 2
    for _ in range(2):
        for number in range(24):
            assert len(few.read(index.member(number), max_pixels=10_000)) == index.length[number]
    assert len(few._descriptors) == 2
    assert few.num_opened == 2 * len(index.shards)


def damage(spec: ExperimentSpec, image: int) -> str:
    """Change one byte of a member; its name."""
    index = open_source(spec.data.train, key="data.train").index  # type: ignore[attr-defined]
    member = index.member(image)
    with member.shard.open("r+b") as file:
        file.seek(member.offset + member.length // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return str(member)


def test_a_damaged_member_is_refused_before_training(shards: ExperimentSpec) -> None:
    name = damage(shards, 7)
    with pytest.raises(InputError, match="1 of 24 images cannot be used") as caught:
        refuse_bad_images(shards.data)
    assert f"data.train: {name}: is damaged: its checksum is another" in str(caught.value)
    assert [(bad.path, check_images(shards.data).num_images) for bad in check_images(shards.data).bad] == [(name, 24)]
    with pytest.raises(RunFailed, match="turned bad during training"):
        stream(shards, number=5)


def test_a_damaged_member_is_skipped_and_counted(shards: ExperimentSpec) -> None:
    damage(shards, 7)
    skipping = {"policy": "skip", "limit": 0.5}
    spec = ExperimentSpec.model_validate_json(
        json.dumps({**(tree := shards.model_dump(mode="json")), "data": {**tree["data"], "bad_images": skipping}})
    )
    batches = stream(spec, number=4)
    assert sum(batch.num_bad_images for batch in batches) == 1
    assert 8 in [row for batch in batches for row in batch.row.tolist()]


def test_a_shard_that_is_missing_or_cut_short_is_refused_when_planning(shards: ExperimentSpec) -> None:
    folder = Path(shards.data.train.folder)  # type: ignore[union-attr]
    (folder / "train-000001.tar").unlink()
    size = (folder / "train-000003.tar").stat().st_size
    os.truncate(folder / "train-000003.tar", size - 512)
    with pytest.raises(InputError) as caught:
        collect_facts(shards.data)
    assert f"data.train.folder: {folder}/train-000001.tar: No such file" in str(caught.value)
    assert f"train-000003.tar has {size - 512:,} bytes where the index says {size:,}: it was cut short" in str(caught.value)


def test_a_shard_that_is_cut_short_while_it_is_read_is_a_bad_image(shards: ExperimentSpec) -> None:
    rows = open_source(shards.data.train, key="data.train").rows(shards)
    folder = Path(shards.data.train.folder)  # type: ignore[union-attr]
    os.truncate(folder / "train-000000.tar", 600)
    with pytest.raises(BadImage, match="cut short"):
        rows.image(0)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(BadImage, match="the shard does not exist"):
        rows.image(4)


def test_a_damaged_index_is_refused_wherever_the_damage_is(shards: ExperimentSpec) -> None:
    path = Path(shards.data.train.folder) / INDEX  # type: ignore[union-attr]
    content = path.read_bytes()
    arrays = read_arrays(path)
    held = sum(array.nbytes for array in arrays.arrays.values())
    places = range(0, len(content), 97)
    refused = 0
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            read_index(path, folder=path.parent)
        except Unreadable:
            refused += 1
    assert refused >= len(places) * held / len(content) * 0.9  # the rest is padding
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match="cut short"):
        collect_facts(shards.data)


def test_an_index_whose_parts_contradict_each_other_is_refused(shards: ExperimentSpec, tmp_path: Path) -> None:
    path = Path(shards.data.train.folder) / INDEX  # type: ignore[union-attr]
    about, arrays = read_arrays(path)
    for name in set(arrays) - {"crc32", "row_digests", "captions_buffer", "images_buffer"}:
        wrong = arrays[name].copy()
        wrong[-1] = 10**15
        write_arrays(tmp_path / "index", about, {**arrays, name: wrong})
        if name == "image_index":
            continue  # any number is an identity
        with pytest.raises(Unreadable, match="contradict"):
            read_index(tmp_path / "index", folder=path.parent)


def test_the_same_bytes_in_two_splits_are_warned_of(files: ExperimentSpec, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    rows = photographs(tmp_path / "other", 24)
    packed(files, tmp_path / "train")
    packed(reading(tmp_path / "other", rows[2:4]), tmp_path / "val")
    train, val = ({"source": "shards", "folder": str(tmp_path / name), "form": "pretrain"} for name in ("train", "val"))
    (warning,) = examine(data_section(train=train, val=val)).warnings
    assert "2 of 2 images of data.val have the bytes of images in data.train: 2.webp, 3.bmp" in warning


def test_a_million_samples_open_without_being_read_one_by_one(tmp_path: Path) -> None:
    """Opening takes what its checksums take: here a hundredth of the second that a loop over the rows would."""
    number = 20_000
    rows = np.arange(number)
    about = {"shards": [{"name": "0.tar", "size": 10**9}], "left_out": {}}
    texts = Texts.of(map(str, range(number)))
    starts = np.arange(number + 1)
    ones = np.ones(number, np.int64)
    crc32 = rows.astype(np.uint32)
    fields = (np.array([0, number]), rows, ones, crc32, texts, rows, rows, rows, starts, texts)
    ShardIndex(tmp_path, about, *fields).write(tmp_path / "index")
    index = read_index(tmp_path / "index", folder=tmp_path)
    assert not index.offset.flags.owndata
    assert index.captions_of(12_345) == ["12345"]
    assert index.member(number - 1).name == str(number - 1)


# --- tars that others have made


def write_tar(path: Path, members: dict[str, bytes], *, kind: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(number: int, key: str = "{:09d}") -> dict[str, bytes]:
    """As img2dataset writes it."""
    stem, caption = key.format(number), f"photograph {number}"
    about = json.dumps({"caption": f"{caption} of the json", "url": "x", "status": "success"}).encode()
    return {f"{stem}.jpg": encoded(photograph(seed=number)), f"{stem}.txt": caption.encode(), f"{stem}.json": about}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    (folder := tmp_path / "tars").mkdir()
    for shard in range(2):
        members = {name: content for n in range(3) for name, content in sample(3 * shard + n).items()}
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def data_of(folder: Path) -> DataSpec:
    return data_section(train={"source": "shards", "folder": str(folder)})


def captions_of(folder: Path) -> list[str]:
    return list(open_source(data_of(folder).train, key="data.train").captions())


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["{:09d}", "deep/folder/{}", "ä" * 90 + "{}", "x" * 120 + "/y{}"])
def test_tars_of_others_are_read_whatever_wrote_them(tmp_path: Path, kind: int, key: str) -> None:
    if kind == tarfile.USTAR_FORMAT and len(key.encode()) > 120:
        pytest.skip("ustar has no place for such names")
    write_tar(tmp_path / "0.tar", {**sample(0, key), **sample(1, key)}, kind=kind)
    source = open_source(data_of(tmp_path).train, key="data.train")
    assert list(source.captions()) == ["photograph 0", "photograph 1"]
    assert [image.read_bytes(max_pixels=10_000) for image in source.stored_images] == [
        encoded(photograph(seed=number)) for number in range(2)
    ]


def test_a_caption_is_the_text_else_the_json(tmp_path: Path) -> None:
    members = {**sample(0), **sample(1), "000000002.jpg": b"", "000000002.json": b'{"captions": ["one", "", "two"]}'}
    del members["000000001.txt"]
    write_tar(tmp_path / "0.tar", members)
    assert captions_of(tmp_path) == ["photograph 0", "photograph 1 of the json", "one", "two"]


def test_what_lacks_a_caption_or_an_image_is_left_out_and_said(tars: Path) -> None:
    pixels = encoded(photograph())
    bad = {"a.jpg": pixels, "b.txt": b"x", "c.png": pixels, "c.json": b"{", "d.jpg": pixels, "d.txt": b"\xff", "e.jpg": pixels}
    write_tar(tars / "7.tar", {**bad, "e.txt": b"  ", "README": b"text", "._f.jpg": pixels})
    examined = examine(data_of(tars))
    assert examined.facts.num_train_rows == 6
    assert set(examined.warnings) == {
        "data.train: 4 samples without a caption are left out",
        "data.train: 1 samples without an image are left out",
    }


def test_the_headers_are_walked_once_and_again_when_a_tar_changes(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    places = foreign.places

    def counted(descriptor: int) -> Iterator[Any]:
        walked.append(descriptor)
        return places(descriptor)

    monkeypatch.setattr(foreign, "places", counted)
    first = captions_of(tars)
    assert (captions_of(tars), len(walked)) == (first, 2)
    write_tar(tars / "00001.tar", {**sample(3), **sample(8), **sample(5)})
    assert captions_of(tars)[4] == "photograph 8"
    assert len(walked) == 4
    (tars / foreign.INDEX_OF_TARS).write_bytes(b"damaged")
    assert captions_of(tars)[4] == "photograph 8"


@pytest.mark.parametrize("cut", [511, 512 + 700, -10_240])
def test_a_tar_that_is_cut_short_is_refused_with_name_and_byte(tars: Path, cut: int) -> None:
    path = tars / "00001.tar"
    os.truncate(path, cut if cut > 0 else path.stat().st_size + cut)
    with pytest.raises(InputError, match=rf"data\.train\.folder: {path}.* byte [\d,]+.*cut short"):
        captions_of(tars)


def test_a_header_that_is_damaged_is_refused_with_name_and_byte(tars: Path) -> None:
    path = tars / "00000.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: no header of a tar at byte {offset:,} \(bad checksum\)"):
        captions_of(tars)


def test_where_the_folder_cannot_be_written_the_index_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with small_disk(tmp_path / "disk", size="1m") as disk:
        write_tar(disk / "0.tar", {**sample(0), **sample(1)})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert captions_of(disk) == captions_of(disk) == ["photograph 0", "photograph 1"]
        assert len(list((tmp_path / "cache").rglob("*.index"))) == 1


def test_a_folder_without_tars_is_refused_with_the_way_on(tmp_path: Path, tars: Path) -> None:
    with pytest.raises(InputError, match=rf"holds no \.tar \(name {tars}\)"):
        captions_of(tmp_path)
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "0.tar.gz").touch()
    with pytest.raises(InputError, match=r"holds no \.tar \(0\.tar\.gz: unpack it"):
        captions_of(tmp_path / "gz")
