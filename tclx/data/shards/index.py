"""Which image lies where in which shard, and which rows have it? Mapped from one file, checked against the shards' sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tclx.data.problems import Problems
from tclx.data.shards.arrays import Texts, read_arrays, write_arrays
from tclx.data.shards.member import Member
from tclx.data.shards.remote import PART_BYTES, Unreachable, info_of, read_part, size_of
from tclx.errors import InputError, Problem
from tclx.files import Unreadable, machine_error, read_json, replacing, write_atomically
from tclx.system import user_cache

INDEX = "index.tclx"
"""Of packed shards; a folder without it is not packed to the end, or holds tars of others."""

STATE = ".packing.json"
"""What is being packed; gone when the index is there."""
REPORT = "report.json"
"""Which images could not be packed; written before the index."""


@dataclass(frozen=True)
class ShardIndex:
    """R rows with C captions of P images in S shards."""

    folder: Path | str
    """An address where they lie in a store."""
    about: Mapping[str, Any]
    """`shards`: name and size of each; and what its writer adds."""
    shard_start: NDArray[np.int64]
    """[S + 1]: shard s has the images shard_start[s] to shard_start[s + 1]."""
    offset: NDArray[np.int64]
    """[P] where in its shard an image begins."""
    length: NDArray[np.int64]
    """[P] bytes."""
    crc32: NDArray[np.uint32] | None
    """[P]; None where nobody has read the images."""
    images: Texts
    """[P] names: paths as the annotation files had them, or members of the tar."""
    image_of_row: NDArray[np.int64]
    """[R]"""
    image_index: NDArray[np.int64]
    """[R] equal for rows that show the same; dense from 0."""
    row_digests: NDArray[np.int64]
    """[R] equal for rows of one image with the same captions."""
    caption_start: NDArray[np.int64]
    """[R + 1]: row r owns the captions caption_start[r] to caption_start[r + 1]."""
    captions: Texts
    """[C]"""

    @cached_property
    def shards(self) -> list[Path | str]:
        return [within(self.folder, each["name"]) for each in self.about["shards"]]

    def member(self, image: int) -> Member:
        """Where an image lies."""
        shard = int(np.searchsorted(self.shard_start, image, side="right")) - 1
        crc32 = None if self.crc32 is None else int(self.crc32[image])
        return Member(self.shards[shard], int(self.offset[image]), int(self.length[image]), crc32, self.images[image])

    def captions_of(self, row: int) -> list[str]:
        """As they were written."""
        return [self.captions[number] for number in range(int(self.caption_start[row]), int(self.caption_start[row + 1]))]

    def write(self, path: Path) -> None:
        """Write the file from which `read_index` reads it.

        Raises:
            MachineError: it cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _NUMBERS}
        arrays |= {f"{name}_{part}": getattr(getattr(self, name), part) for name in _TEXTS for part in ("ends", "buffer")}
        if self.crc32 is not None:
            arrays["crc32"] = self.crc32
        write_arrays(path, self.about, arrays)


_NUMBERS = ("shard_start", "offset", "length", "image_of_row", "image_index", "row_digests", "caption_start")
_TEXTS = ("images", "captions")


def within(folder: Path | str, name: str) -> Path | str:
    """A file of a folder, or of an address."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def read_index(path: Path, *, folder: Path | str) -> ShardIndex:
    """Map an index; whether the shards are as it says is asked by `check_shards`.

    Args:
        path: the file.
        folder: of the shards, or its address.

    Raises:
        Unreadable: it is missing, cut short or damaged.
    """
    about, arrays = read_arrays(path)
    try:
        texts = {name: Texts(arrays[f"{name}_ends"], arrays[f"{name}_buffer"]) for name in _TEXTS}
        parts: dict[str, Any] = {**{name: arrays[name] for name in _NUMBERS}, **texts, "crc32": arrays.get("crc32")}
        index = ShardIndex(folder, about, **parts)
        fits = _fits(index)
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(path, f"it is no index of shards ({error})") from error
    if not fits:
        raise Unreadable(path, "its parts contradict each other")
    return index


def index_of_store(folder: str, *, key: str) -> ShardIndex:
    """The index of shards that `tclx data pack` wrote, from a copy that is renewed when the store has another.

    Args:
        folder: the address.
        key: the source's folder in the spec, for messages.

    Raises:
        InputError: there is none, it is damaged, or the store does not answer.
        MachineError: the copy cannot be kept.
    """
    address = str(within(folder, INDEX))
    copy = user_cache() / "stores" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.index"
    try:
        version = info_of(address)
        if _version_of(copy) != version:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.with_suffix(".json").unlink(missing_ok=True)
            size = int(version["size"])
            with replacing(copy) as file:
                for offset in range(0, size, PART_BYTES):
                    file.write(read_part(address, offset, min(PART_BYTES, size - offset)))
            write_atomically(copy.with_suffix(".json"), json.dumps(version))
        return read_index(copy, folder=folder)
    except Unreachable as error:
        raise InputError(Problem(key, f"{address}: {error}", "the folder of shards that `tclx data pack` wrote")) from error
    except OSError as error:
        raise machine_error(error, f"could not keep {copy}") from error


def _version_of(copy: Path) -> Any:
    try:
        return read_json(copy.with_suffix(".json")) if copy.exists() else None
    except Unreadable:
        return None


def _fits(index: ShardIndex) -> bool:
    """Whether every number of the index names something that is there."""
    sizes = np.array([shard["size"] for shard in index.about["shards"]], np.int64)
    num_images, num_rows = len(index.images), len(index.image_of_row)
    return bool(
        num_rows
        and _climbs(index.shard_start, len(sizes), num_images)
        and _climbs(index.caption_start, num_rows, len(index.captions))
        and all(_climbs([0, *texts.ends[-1:]], 1, len(texts.buffer)) for texts in (index.images, index.captions))
        and all((np.diff(texts.ends) >= 0).all() for texts in (index.images, index.captions))
        and len(index.offset) == len(index.length) == num_images
        and (index.crc32 is None or len(index.crc32) == num_images)
        and len(index.image_index) == len(index.row_digests) == num_rows
        and index.image_of_row.min() >= 0
        and index.image_of_row.max() < num_images
        and index.image_index.min() >= 0
        and index.offset.min() >= 0
        and index.length.min() >= 0
        and (index.offset + index.length <= np.repeat(sizes, np.diff(index.shard_start))).all()
    )


def _climbs(starts: Sequence[int] | NDArray[np.int64], number: int, end: int) -> bool:
    return len(starts) == number + 1 and starts[0] == 0 and starts[-1] == end and bool((np.diff(starts) >= 0).all())


def check_shards(index: ShardIndex, *, key: str) -> None:
    """Is every shard there, and as long as the index says?

    Args:
        index: of the folder.
        key: the source's folder in the spec, for messages: `data.train.folder`.

    Raises:
        InputError: up to 20 that are not, and their number.
    """
    problems = Problems(key)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:  # a store takes its time with each
        sizes = list(pool.map(_size, index.shards)) if isinstance(index.folder, str) else list(map(_size, index.shards))
    for path, shard, size in zip(index.shards, index.about["shards"], sizes, strict=True):
        if isinstance(size, str):
            problems.add(f"{path}: {size}", "the index counts on it: copy it again, or pack again")
        elif size != shard["size"]:
            how = "it was cut short" if size < shard["size"] else "it is another file"
            problems.add(f"{path} has {size:,} bytes where the index says {shard['size']:,}: {how}", "copy it again")
    problems.raise_if_any()


ASKED_AT_ONCE = 16
"""Shards of a store."""


def _size(shard: Path | str) -> int | str:
    """In bytes, or why nobody knows."""
    try:
        return shard.stat().st_size if isinstance(shard, Path) else size_of(shard)
    except OSError as error:
        return error.strerror or str(error)
    except Unreachable as error:
        return str(error)
