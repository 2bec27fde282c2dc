"""Which data are the same where they should differ? Warnings: nothing here stops a run, and a figure may mean nothing.

`tclx plan` looks at what paths and rows say, `tclx data check`, which opens every picture anyway, also at the files' bytes.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tclx.data.annotations import Annotations
from tclx.spec.data import DataSource, FilesSource, ScenesSource

MAX_EXAMPLES = 3
DUPLICATES_TOLERATED = 0.001
"""Share of duplicate rows without a word: COCO and Flickr have a few captions that were given twice."""


def overlaps(sources: Mapping[str, DataSource], read: Mapping[str, Annotations]) -> Iterator[str]:
    """What planning should say about data that are the same, one line each.

    Args:
        sources: by key path: `data.train` and so on.
        read: the annotations of those that are files.
    """
    for key, rows in read.items():
        yield from _within(key, rows)
    for first, second in (("data.train", "data.val"), ("data.train", "data.test"), ("data.val", "data.test")):
        if first in sources and second in sources:
            yield from _between(first, second, sources, read)


def _within(key: str, annotations: Annotations) -> Iterator[str]:
    """Ids and rows of one source."""
    num_pictures = len(annotations.pictures)
    ids, pictures = np.divmod(np.unique(annotations.image_index * num_pictures + annotations.picture_of_row), num_pictures)
    of_several = np.isin(ids, _repeated(ids))
    if of_several.any():
        names = _named(annotations, pictures[of_several])
        num_ids = len(np.unique(ids[of_several]))
        yield f"{key}: {num_ids:,} image ids stand for different pictures, which are taken for one: {names}"
    with_several = _repeated(pictures)
    if len(with_several):
        names = _named(annotations, with_several)
        yield f"{key}: {len(with_several):,} pictures have different image ids, and are taken for different ones: {names}"
    _, first, counts = np.unique(annotations.row_digests, return_index=True, return_counts=True)
    num_again = int((counts - 1).sum())
    if num_again > DUPLICATES_TOLERATED * annotations.num_rows:
        names = _named(annotations, annotations.picture_of_row[first[counts > 1]])
        yield f"{key}: {num_again:,} of {annotations.num_rows:,} rows repeat another's picture and caption: {names}"


def _repeated(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    values, counts = np.unique(numbers, return_counts=True)
    return values[counts > 1]


def _named(annotations: Annotations, numbers: NDArray[np.int64]) -> str:
    return examples([annotations.pictures[number] for number in np.unique(numbers)[: MAX_EXAMPLES + 1].tolist()])


def examples(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:MAX_EXAMPLES]) + (" and others" if len(names) > MAX_EXAMPLES else "")


def _between(first: str, second: str, sources: Mapping[str, DataSource], read: Mapping[str, Annotations]) -> Iterator[str]:
    one, other = sources[first], sources[second]
    if isinstance(one, ScenesSource) and isinstance(other, ScenesSource) and one.split == other.split:
        yield f"{second} draws from the same scenes as {first} (split: {one.split}){_consequence(first)}"
    if not (isinstance(one, FilesSource) and isinstance(other, FilesSource) and first in read and second in read):
        return
    files = {os.path.realpath(path) for path in one.files}
    same_files = [path for path in other.files if os.path.realpath(path) in files]
    if same_files:
        yield f"{second} reads files that {first} reads: {examples(same_files)}{_consequence(first)}"
        return
    shared = _shared(one, read[first], other, read[second])
    if shared:
        counted = f"{len(shared):,} of {len(read[second].pictures):,} pictures of {second}"
        yield f"{counted} are in {first} as well: {examples(shared)}{_consequence(first)}"


def _consequence(first: str) -> str:
    if first == "data.train":
        return ". They are trained on, so that figures on them, and what is chosen by them, say nothing about unseen pictures"
    return ". The test figures are then those by which the best checkpoint is chosen"


def _shared(one: FilesSource, first: Annotations, other: FilesSource, second: Annotations) -> list[str]:
    """Pictures of the second that the first has too, by path. Only paths with a common last name are compared in full."""
    paths = {_normal(other, image): image for image in second.pictures}
    names = {path.rpartition("/")[2] for path in paths}
    also = {_normal(one, image) for image in first.pictures if image.rpartition("/")[2] in names}
    return [image for path, image in paths.items() if path in also]


def _normal(source: FilesSource, image: str) -> str:
    return os.path.normpath(os.path.join(os.path.abspath(source.image_root), image))  # noqa: PTH100, PTH118 4 million of them


def content_overlaps(digests: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """What opening every picture adds: the same bytes under other paths.

    Args:
        digests: by key path of the source, then by the picture's path.
    """
    for first, second in (("data.train", "data.val"), ("data.train", "data.test"), ("data.val", "data.test")):
        contents = {digest: path for path, digest in digests.get(first, {}).items()}
        pairs = [(path, contents[digest]) for path, digest in digests.get(second, {}).items() if digest in contents]
        renamed = [f"{path} = {same}" for path, same in pairs if path not in digests[first]]
        if renamed:
            counted = f"{len(renamed):,} pictures of {second} have the bytes of others in {first}"
            yield f"{counted}: {examples(renamed)}{_consequence(first)}"
    for key, paths in digests.items():
        firsts: dict[bytes, str] = {}
        again = [f"{path} = {firsts[digest]}" for path, digest in paths.items() if firsts.setdefault(digest, path) != path]
        if len(again) > DUPLICATES_TOLERATED * len(paths):
            yield f"{key}: {len(again):,} pictures have the bytes of another and count as different ones: {examples(again)}"
