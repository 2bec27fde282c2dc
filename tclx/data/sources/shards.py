"""Shards as a source: packed by `tclx data pack`, or tars that others have made."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tclx.data.order import Block
from tclx.data.overlap import examples, repeats
from tclx.data.sources.source import ROWS_SHOWN, Description, SourceSize
from tclx.errors import InputError, Problem
from tclx.spec.data import ShardCacheSpec, ShardsSource
from tclx.spec.stores import scheme_of

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.data.shards.index import ShardIndex
    from tclx.data.shards.member import Member
    from tclx.spec.experiment import ExperimentSpec


class Shards:
    """The rows of what was packed, in their order; of tars without an index one row a sample."""

    def __init__(self, source: ShardsSource, *, key: str, training: bool) -> None:
        self._source, self._key, self._training = source, key, training

    @cached_property
    def index(self) -> ShardIndex:
        """
        Raises:
            InputError: there is none, it is damaged, does not fit the shards, or is of rows in another form.
        """
        from tclx.data.shards.foreign import index_of_tars
        from tclx.data.shards.index import INDEX, REPORT, STATE, index_of_store, read_index

        key = f"{self._key}.folder"
        if scheme_of(self._source.folder) is not None:
            return self._checked(index_of_store(self._source.folder, key=key))
        folder = Path(self._source.folder)
        if (folder / INDEX).exists():
            index = read_index(folder / INDEX, folder=folder)
        elif unfinished := [name for name in (STATE, REPORT) if (folder / name).exists()]:
            what = "is not packed to the end" if STATE in unfinished else f"has lost its {INDEX}"
            raise InputError(Problem(key, f"{folder} {what}", "run the same `tclx data pack` again, it continues"))
        else:
            index = index_of_tars(folder, key=key)
        return self._checked(index)

    def _checked(self, index: ShardIndex) -> ShardIndex:
        from tclx.data.shards.index import check_shards

        check_shards(index, key=f"{self._key}.folder")
        form = index.about.get("form", "captions")
        if form != self._source.form:
            problem = f"{self._source.folder} holds rows of `form: {form}`"
            raise InputError(Problem(f"{self._key}.form", problem, f"form: {form}"))
        return index

    @property
    def size_without_data(self) -> SourceSize:
        return SourceSize(self._source.approximate_rows, self._source.approximate_rows, None)

    @property
    def size(self) -> SourceSize:
        index = self.index
        return SourceSize(len(index.image_of_row), int(index.image_index.max()) + 1, len(index.captions))

    @property
    def description(self) -> Description:
        index, folder = self.index, Path(self._source.folder)
        numbers = range(min(ROWS_SHOWN, len(index.image_of_row)))
        first = [(index.images[index.image_of_row[row]], index.captions_of(row)[0]) for row in numbers]
        return Description(f"{folder.name}: {len(index.shards):,} shards", self.size, tuple(first))

    def captions(self) -> Iterable[str]:
        return iter(self.index.captions)

    def rows(self, spec: ExperimentSpec) -> ShardRows:
        # As with files: the published pre-training tells pairs apart by row.
        by_row = self._training and self._source.form == "pretrain" and spec.compat == "official"
        return ShardRows(self._source, self.index, spec, by_row=by_row)

    @property
    def stored_images(self) -> Sequence[Member]:
        return [self.index.member(number) for number in range(len(self.index.images))]

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        return iter(())  # `size` refuses shards that are missing or cut short

    def warnings(self) -> Iterator[str]:
        yield from self._thrashing()
        for what, number in self.index.about["left_out"].items():
            yield f"{self._key}: {number:,} samples {what} are left out"
        yield from repeats(self.index, key=self._key)

    def _thrashing(self) -> Iterator[str]:
        """Where a cache does not hold what is read at a time."""
        cache, at_once = cache_of(self._source), self._source.shards_at_once
        if cache is None or not self._training:
            return
        sizes = sorted((shard["size"] / 2**30 for shard in self.index.about["shards"]), reverse=True)
        together = sum(sizes[: at_once and 2 * at_once])
        if together > cache.max_gib:
            read = "rows of all shards are mixed" if at_once is None else f"{at_once} are mixed while the next are fetched"
            hint = "a larger one, or `shards_at_once`" if at_once is None else "a larger one, or fewer `shards_at_once`"
            room = f"{self._key}.cache holds {cache.max_gib:g} GiB of shards, and {read}, {together:.3g} GiB"
            yield f"{room}: many are fetched again and again ({hint})"

    def shares_with(self, other: Shards, *, names: tuple[str, str]) -> str | None:
        if os.path.realpath(self._source.folder) == os.path.realpath(other._source.folder):
            return f"{names[1]} reads the shards that {names[0]} reads"
        if self.index.crc32 is None or other.index.crc32 is None:
            return None  # `tclx data check` compares what it reads
        shared = np.flatnonzero(np.isin(_contents(other.index), _contents(self.index)))
        if not len(shared):
            return None
        counted = f"{len(shared):,} of {len(other.index.images):,} images of {names[1]}"
        some = [other.index.images[number] for number in shared[:4].tolist()]
        return f"{counted} have the bytes of images in {names[0]}: {examples(some)}"


def _contents(index: ShardIndex) -> NDArray[np.uint64]:
    """[P] length and CRC-32 in one number: of a million images against a million, 0.002 pairs agree by chance."""
    if index.crc32 is None:
        raise TypeError("nobody has read these images")
    return index.length.astype(np.uint64) << np.uint64(32) | index.crc32


def cache_of(source: ShardsSource) -> ShardCacheSpec | None:
    """How its shards are kept: of a store with the defaults where nothing else is said."""
    return source.cache or (ShardCacheSpec() if scheme_of(source.folder) is not None else None)


class ShardRows:
    """Images are read from their place and decoded when asked for."""

    def __init__(self, source: ShardsSource, index: ShardIndex, spec: ExperimentSpec, *, by_row: bool) -> None:
        from tclx.data.images import image_decoder  # planning needs none of it
        from tclx.data.shards.cache import ShardCache, own_disk
        from tclx.data.shards.member import OpenShards

        kept = cache_of(source)
        self._cache: ShardCache | None = None
        if kept is not None:
            sizes = {path: shard["size"] for path, shard in zip(index.shards, index.about["shards"], strict=True)}
            where = Path(kept.folder) if kept.folder else own_disk()
            self._cache = ShardCache(where, max_bytes=int(kept.max_gib * 2**30), sizes=sizes)
        self._source, self._index, self._max_pixels = source, index, spec.data.bad_images.max_pixels
        self._decode, self.shards = image_decoder(spec, reduces=True), OpenShards(self._cache)
        self.image_index: NDArray[np.int64] = np.arange(self.num_rows) if by_row else index.image_index

    @property
    def num_rows(self) -> int:
        return len(self._index.image_of_row)

    @property
    def blocks(self) -> Sequence[Block]:
        index, block = self._index, Block.of(self.num_rows)
        if self._source.shards_at_once is None and self._cache is None:
            return (block,)
        shard_of_row = np.searchsorted(index.shard_start, index.image_of_row, side="right") - 1
        fetch = None if self._cache is None else self._fetch
        return (replace(block, shard_of_row=shard_of_row, shards_at_once=self._source.shards_at_once, fetch=fetch),)

    def _fetch(self, shard: int) -> None:
        if self._cache is not None:
            self._cache.copy_of(self._index.shards[shard])

    def captions(self, row: int) -> Sequence[str]:
        return self._index.captions_of(row)

    def image(self, row: int) -> Pixels:
        member = self._index.member(int(self._index.image_of_row[row]))
        return self._decode(self.shards.read(member, max_pixels=self._max_pixels), str(member))
