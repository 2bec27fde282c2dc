"""Annotation files and a folder of images as a source, a folder with both, and a data set of the `datasets` library."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tclx.data.annotations import Annotations, read_annotations, stored_image
from tclx.data.forms.form import Item
from tclx.data.forms.table import FORMS
from tclx.data.order import Block
from tclx.data.overlap import examples, repeats
from tclx.data.presence import missing_images
from tclx.data.sources.source import ROWS_SHOWN, Description, SourceSize, StoredImage
from tclx.spec.data import DatasetsSource

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.errors import Problem
    from tclx.spec.data import OwnData
    from tclx.spec.experiment import ExperimentSpec


MAX_FILES_NAMED = 4


class Files:
    """One row an entry of the files."""

    def __init__(self, source: OwnData, *, key: str, training: bool) -> None:
        self._source, self._key, self._training = source, key, training

    @cached_property
    def annotations(self) -> Annotations:
        """
        Raises:
            InputError: the files are wrong.
        """
        return read_annotations(self._source, key=self._key, training=self._training)

    @property
    def size_without_data(self) -> SourceSize:
        return SourceSize(self._source.approximate_rows, self._source.approximate_rows, None)

    @property
    def size(self) -> SourceSize:
        rows = self.annotations
        return SourceSize(rows.num_rows, int(rows.image_index.max()) + 1, len(rows.captions))

    @property
    def description(self) -> Description:
        rows = self.annotations
        named = [f"{_short(file)}: {taken}" for file, taken in zip(self._source.files, rows.formats, strict=True)]
        more = f" and {len(named) - MAX_FILES_NAMED} more" if len(named) > MAX_FILES_NAMED else ""
        numbers = range(min(ROWS_SHOWN, rows.num_rows))
        first = [(rows.images[rows.image_of_row[row]], rows.captions[rows.caption_start[row]]) for row in numbers]
        return Description(", ".join(named[:MAX_FILES_NAMED]) + more, self.size, tuple(first))

    def captions(self) -> Iterable[str]:
        rows = self.annotations
        yield from rows.captions
        if rows.targets is not None:
            for target in rows.targets:
                yield from FORMS[self._source.form].words(json.loads(target))

    def rows(self, spec: ExperimentSpec) -> FileRows:
        # The published pre-training tells pairs apart by row: an image that is listed twice is its own negative there.
        by_row = self._training and self._source.form == "pretrain" and spec.compat == "official"
        return FileRows(self._source, self.annotations, spec, by_row=by_row)

    @property
    def stored_images(self) -> Sequence[StoredImage]:
        return [stored_image(self._source, name) for name in self.annotations.images]

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        if not isinstance(self._source, DatasetsSource):  # which has its images with it
            yield from missing_images(self._source, self.annotations, key=self._key, all_needed=all_needed)

    def warnings(self) -> Iterator[str]:
        for cause, number in self.annotations.left_out.items():
            if number:
                yield f"{self._key}: {number:,} images {cause} are left out"
        yield from repeats(self.annotations, key=self._key)

    def shares_with(self, other: Files, *, names: tuple[str, str]) -> str | None:
        mine, others = self._source, other._source
        files = {os.path.realpath(path) for path in mine.files}
        if (mine.split, mine.part) != (others.split, others.part) or "captions" in (mine.form, others.form):
            files = set()  # parts of the same files may well be meant; the images tell
        if same_files := [path for path in other._source.files if os.path.realpath(path) in files]:
            return f"{names[1]} reads files that {names[0]} reads: {examples(same_files)}"
        # By path; only those with a common last name are compared in full.
        paths = {other._normal(image): image for image in other.annotations.images}
        last_names = {image.rpartition("/")[2] for image in paths.values()}
        also = {self._normal(image) for image in self.annotations.images if image.rpartition("/")[2] in last_names}
        if shared := [image for path, image in paths.items() if path in also]:
            counted = f"{len(shared):,} of {len(other.annotations.images):,} images of {names[1]}"
            return f"{counted} are in {names[0]} as well: {examples(shared)}"
        return None

    def _normal(self, image: str) -> str:
        if isinstance(self._source, DatasetsSource):
            return str(stored_image(self._source, image))
        root = os.path.abspath(self._source.image_root)  # noqa: PTH100 4 million of them
        return os.path.normpath(os.path.join(root, image))  # noqa: PTH118


def _short(file: str) -> str:
    """A file's own name; of a data set all of it."""
    return Path(file).name if file.startswith("/") else file


class FileRows:
    """Images are decoded when asked for."""

    def __init__(self, source: OwnData, annotations: Annotations, spec: ExperimentSpec, *, by_row: bool) -> None:
        from tclx.data.images import image_decoder  # planning needs none of it

        self._source, self._annotations = source, annotations
        self.image_index = np.arange(annotations.num_rows) if by_row else annotations.image_index
        self._decode, self._max_pixels = image_decoder(spec, reduces=True), spec.data.bad_images.max_pixels

    @property
    def num_rows(self) -> int:
        return self._annotations.num_rows

    @property
    def blocks(self) -> Sequence[Block]:
        return (Block.of(self.num_rows),)

    def captions(self, row: int) -> Sequence[str]:
        return [self._annotations.captions[number] for number in self._annotations.captions_of(row)]

    def image(self, row: int) -> Pixels:
        return self._read(self._annotations.names_of(row)[0])

    def images(self, row: int) -> list[Pixels]:
        return [self._read(name) for name in self._annotations.names_of(row)]

    def _read(self, name: str) -> Pixels:
        stored = stored_image(self._source, name)
        return self._decode(stored.read_bytes(max_pixels=self._max_pixels), str(stored))

    def item(self, row: int) -> Item:
        return self._annotations.item(row)
