"""Which data are the same where they should differ? Warnings: nothing here stops a run, and a metric may mean nothing.

What paths and rows say; `tclx data check`, which opens every image, compares what is in them (tclx/data/checking).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Protocol

from tclx.data.sources.mixture import single_sources

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tclx.data.sources.source import SingleSource, Source

PAIRS = (("data.train", "data.val"), ("data.train", "data.test"), ("data.val", "data.test"))
MAX_EXAMPLES = 3
DUPLICATES_TOLERATED = 0.001
"""Share of duplicate rows without a word: COCO and Flickr have a few captions that were given twice."""


def overlaps(sources: Mapping[str, Source]) -> Iterator[str]:
    """What planning should say about data that are the same, one line each.

    Args:
        sources: by key path: `data.train` and so on.
    """
    for source in sources.values():
        yield from source.warnings()
    single = {key: single_sources(source, key=key) for key, source in sources.items()}
    for mixed in single.values():
        for shared in _shared(combinations(mixed.items(), 2)):
            yield f"{shared}. In a batch they count as different images"
    for first, second in PAIRS:
        for shared in _shared(product(single.get(first, {}).items(), single.get(second, {}).items())):
            yield f"{shared}{consequence(first)}"


def _shared(pairs: Iterable[tuple[tuple[str, SingleSource], tuple[str, SingleSource]]]) -> Iterator[str]:
    for (key, one), (other_key, other) in pairs:
        if type(one) is type(other) and (shared := one.shares_with(other, names=(key, other_key))):
            yield shared


class NamedRows(Protocol):
    """R rows that name P images; docs of the fields with `Annotations`."""

    @property
    def images(self) -> Sequence[str]: ...
    @property
    def image_of_row(self) -> NDArray[np.int64]: ...
    @property
    def image_index(self) -> NDArray[np.int64]: ...
    @property
    def row_digests(self) -> NDArray[np.int64]: ...


def repeats(rows: NamedRows, *, key: str) -> Iterator[str]:
    """Rows and ids of one source that are the same where they should differ, one line each.

    Args:
        rows: of the source.
        key: its key path in the spec.
    """
    import numpy as np  # planning generated data needs none

    num_rows, num_images = len(rows.image_of_row), len(rows.images)

    def named(numbers: NDArray[np.int64]) -> str:
        return examples([rows.images[number] for number in np.unique(numbers)[: MAX_EXAMPLES + 1].tolist()])

    ids, images = np.divmod(np.unique(rows.image_index * num_images + rows.image_of_row), num_images)
    of_several = np.isin(ids, _repeated(ids))
    if of_several.any():
        num_ids = len(np.unique(ids[of_several]))
        yield f"{key}: {num_ids:,} image ids stand for different images, which are taken for one: {named(images[of_several])}"
    with_several = _repeated(images)
    if len(with_several):
        counted = f"{len(with_several):,} images have different image ids"
        yield f"{key}: {counted}, and are taken for different ones: {named(with_several)}"
    _, first, counts = np.unique(rows.row_digests, return_index=True, return_counts=True)
    num_again = int((counts - 1).sum())
    if num_again > DUPLICATES_TOLERATED * num_rows:
        names = named(rows.image_of_row[first[counts > 1]])
        yield f"{key}: {num_again:,} of {num_rows:,} rows repeat another's image and caption: {names}"


def _repeated(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    values, counts = np.unique(numbers, return_counts=True)
    return values[counts > 1]


def examples(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:MAX_EXAMPLES]) + (" and others" if len(names) > MAX_EXAMPLES else "")


def consequence(first: str) -> str:
    """What follows where images of another split are also in this one."""
    if first == "data.train":
        return ". They are trained on, so that metrics on them, and what is chosen by them, say nothing about unseen images"
    return ". The test metrics are then those by which the best checkpoint is chosen"
