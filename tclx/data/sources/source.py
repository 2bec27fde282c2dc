"""What every kind of data answers: before an image is opened, and row by row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tclx.data.forms.form import Item
    from tclx.data.images import Pixels
    from tclx.data.order import Block
    from tclx.errors import Problem
    from tclx.spec.experiment import ExperimentSpec


class SourceSize(NamedTuple):
    """How much a source holds; None where that is not known without its files."""

    num_rows: int | None
    num_images: int | None
    num_captions: int | None


class Description(NamedTuple):
    """What a source was taken for, so that a mistake is seen before it is trained on."""

    what: str
    """Its files and their formats."""
    size: SourceSize
    first_rows: tuple[tuple[str, str], ...]
    """Image and first caption of its first `ROWS_SHOWN` rows."""


ROWS_SHOWN = 3


class StoredImage(Protocol):
    """One image where it is stored: a few words that another process can be handed. Messages name it by its `str`."""

    def read_bytes(self, *, max_pixels: int) -> bytes:
        """What is stored, at most as much as an image of `max_pixels` can need.

        Raises:
            BadImage: it is not there, cannot be read, or is not what was stored.
        """
        ...

    def stamp(self) -> bytes | None:
        """Its place, size and time: as long as this is the same, so are its bytes. None where that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An image in a file of its own."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self, *, max_pixels: int) -> bytes:
        from tclx.data.images import read_bytes  # planning opens none

        return read_bytes(self.path, max_pixels=max_pixels)

    def read_size(self) -> tuple[int, int]:
        """Width and height from the header; raises as `read_bytes`."""
        from tclx.data.images import read_size

        return read_size(self.path)

    def stamp(self) -> bytes | None:
        return stamp_of(self.path)


def stamp_of(path: Path) -> bytes | None:
    """Place, size and time of a file; None where it is not there or may not be looked at."""
    try:
        found = path.stat()
        return os.fsencode(path.absolute()) + f"\0{found.st_size}\0{found.st_mtime_ns}".encode()
    except (OSError, ValueError):  # a NUL or half a character in the path: reading it says so
        return None


class Rows(Protocol):
    """Rows of captions, each with an image. Cheap to fork: flat arrays, no file handles."""

    @property
    def num_rows(self) -> int: ...

    @property
    def image_index(self) -> NDArray[np.int64]:
        """[num_rows] equal for rows that must not be each other's negatives, those of one image; dense from 0."""
        ...

    def captions(self, row: int) -> Sequence[str]:
        """The row's captions as written, at least one."""
        ...

    def image(self, row: int) -> Pixels:
        """[H, W, 3] uint8 RGB.

        Raises:
            BadImage: it cannot be used.
        """
        ...


class TrainingRows(Rows, Protocol):
    """Rows that can be learned from."""

    @property
    def blocks(self) -> Sequence[Block]:
        """How they are drawn: of a single source one block."""
        ...


class ItemRows(Rows, Protocol):
    """Rows of a downstream task: each a text about an image or two, with what is to be said of it."""

    def images(self, row: int) -> list[Pixels]:
        """All images of the row; raises as `image`."""
        ...

    def item(self, row: int) -> Item:
        """The row as its form reads it."""
        ...


class Source(Protocol):
    """One source of a spec. Made at once; what it holds is read when it is first asked for."""

    @property
    def size_without_data(self) -> SourceSize:
        """What the spec alone says."""
        ...

    @property
    def size(self) -> SourceSize:
        """
        Raises:
            InputError: its files are wrong, up to 20 problems and their number.
        """
        ...

    @property
    def description(self) -> Description:
        """What it was taken for; raises as `size`."""
        ...

    def captions(self) -> Iterable[str]:
        """Every caption as written; raises as `size`."""
        ...

    def rows(self, spec: ExperimentSpec) -> TrainingRows:
        """What is trained or evaluated on; the experiment says how images are decoded. Raises as `size`."""
        ...

    @property
    def stored_images(self) -> Sequence[StoredImage]:
        """The images that can be read to check them, each once; none where images are generated."""
        ...

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        """At most one problem: images that were looked for are not there.

        Args:
            all_needed: whether one missing image is too many; else only all of them are.
        """
        ...

    def warnings(self) -> Iterator[str]:
        """Rows and ids that are the same where they should differ, and what was left out: one line each."""
        ...


class SingleSource(Source, Protocol):
    """A source that is no mixture of others."""

    def shares_with(self, other: Self, *, names: tuple[str, str]) -> str | None:
        """What this source has that another of the same kind has, too, in words that end without a full stop.

        Args:
            other: the later one of train, val and test.
            names: key paths of both.
        """
        ...
