"""Several sources as one: their rows one after the other, and how many of each an epoch draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, cast

from tclx.data.sources.source import ROWS_SHOWN, Description, SourceSize
from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tclx.data.forms.form import Item
    from tclx.data.images import Pixels
    from tclx.data.order import Block
    from tclx.data.sources.source import ItemRows, SingleSource, Source, StoredImage, TrainingRows
    from tclx.spec.data import MixtureSource
    from tclx.spec.experiment import ExperimentSpec


class Mixture:
    """The rows of all sources, in the order of the spec.

    Attributes:
        sources: by key path.
    """

    def __init__(self, source: MixtureSource, sources: Mapping[str, SingleSource], *, key: str) -> None:
        self._source, self.sources, self._key = source, sources, key

    @property
    def size_without_data(self) -> SourceSize:
        return self._size([source.size_without_data for source in self.sources.values()])

    @property
    def size(self) -> SourceSize:
        size = self._size([source.size for source in self.sources.values()])
        return size._replace(num_rows=sum(self.drawn))

    def _size(self, sizes: Sequence[SourceSize]) -> SourceSize:
        """Rows are those of an epoch."""
        rows, images, captions = (None if None in counts else sum(counts) for counts in zip(*sizes, strict=True))
        return SourceSize(self._source.rows_per_epoch or rows, images, captions)

    @cached_property
    def drawn(self) -> list[int]:
        """Rows of each source an epoch."""
        counts = [source.size.num_rows or 0 for source in self.sources.values()]
        shares = [one.share for one in self._source.sources.values()]
        total = self._source.rows_per_epoch or sum(counts)
        drawn = apportioned(total, [share for share in shares if share is not None] or counts)
        for name, count in zip(self._source.sources, drawn, strict=True):
            if not count:
                problem = f"of an epoch's {total:,} rows it would have none"
                raise InputError(Problem(f"{self._key}.sources.{name}.share", problem, "more, or a larger `rows_per_epoch`"))
        return drawn

    @property
    def description(self) -> Description:
        described = [source.description for source in self.sources.values()]
        parts = []
        for name, one, drawn in zip(self._source.sources, described, self.drawn, strict=True):
            passes = drawn / (one.size.num_rows or 1)
            parts.append(f"{name} ({one.what}): {drawn / sum(self.drawn):.1%}, {passes:.3g} passes an epoch")
        first = [row for rows in zip_longest(*(one.first_rows for one in described)) for row in rows if row is not None]
        return Description("; ".join(parts), self.size, tuple(first[:ROWS_SHOWN]))

    def captions(self) -> Iterable[str]:
        return chain.from_iterable(source.captions() for source in self.sources.values())

    def rows(self, spec: ExperimentSpec) -> MixedRows:
        return MixedRows([source.rows(spec) for source in self.sources.values()], self.drawn)

    @property
    def stored_images(self) -> Sequence[StoredImage]:
        return [image for source in self.sources.values() for image in source.stored_images]

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        for source in self.sources.values():
            yield from source.missing(all_needed=all_needed)

    def warnings(self) -> Iterator[str]:
        for source in self.sources.values():
            yield from source.warnings()


class MixedRows:
    """Every row under its number in the whole; those of different sources never show one image."""

    def __init__(self, parts: Sequence[TrainingRows], drawn: Sequence[int]) -> None:
        self._parts, self._drawn = parts, drawn

    @property
    def blocks(self) -> Sequence[Block]:
        start, blocks = 0, []
        for part, drawn in zip(self._parts, self._drawn, strict=True):
            (block,) = part.blocks
            blocks.append(replace(block, start=start, rows_per_epoch=drawn))
            start += part.num_rows
        return blocks

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self._parts)

    @cached_property
    def image_index(self) -> NDArray[np.int64]:
        import numpy as np

        first, indices = 0, []
        for part in self._parts:
            indices.append(part.image_index + first)
            first += int(part.image_index.max()) + 1
        return np.concatenate(indices)

    def captions(self, row: int) -> Sequence[str]:
        part, own = self._own(row)
        return part.captions(own)

    def image(self, row: int) -> Pixels:
        part, own = self._own(row)
        return part.image(own)

    def images(self, row: int) -> list[Pixels]:
        part, own = self._own(row)
        return cast("ItemRows", part).images(own)

    def item(self, row: int) -> Item:
        part, own = self._own(row)
        return cast("ItemRows", part).item(own)

    def _own(self, row: int) -> tuple[TrainingRows, int]:
        """The source that has the row, and its number there."""
        for part in self._parts:
            if row < part.num_rows:
                return part, row
            row -= part.num_rows
        raise IndexError(row)


def single_sources(source: Source, *, key: str) -> Mapping[str, SingleSource]:
    """What a source consists of, by key path: itself unless it is a mixture."""
    return source.sources if isinstance(source, Mixture) else {key: cast("SingleSource", source)}


def apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to shares that add up to the total; what rounding leaves goes to the largest remainders."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(each) for each in exact]
    by_remainder = sorted(range(len(shares)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts
