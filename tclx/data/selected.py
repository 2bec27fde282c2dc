"""Which rows of the files a source wants: those of its split and of its part."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from tclx.errors import Problem

if TYPE_CHECKING:
    from tclx.spec.data import OwnData

SPLITS = {
    "data.train": ("train", "training", "restval"),
    "data.val": ("val", "valid", "validation", "dev"),
    "data.test": ("test", "testing"),
}
"""Names of splits as published files have them; of COCO, `restval` is trained on as Karpathy and Fei-Fei (2015) do."""


class Selection:
    """What a source takes, and what of other splits it has met."""

    def __init__(self, source: OwnData, key: str) -> None:
        split = ".".join(key.split(".")[:2])
        self._names = {name.casefold() for name in source.split or SPLITS.get(split, ())}
        self._knows_splits = source.form == "captions"
        self._part = source.part
        self._takes_all = not self._knows_splits and self._part is None
        self._others: Counter[str] = Counter()

    def takes(self, row: dict[str, Any]) -> bool:
        """Whether a row is wanted; what its values are is checked later."""
        if self._takes_all:
            return True
        if self._knows_splits and isinstance(split := row.get("split"), str) and split.casefold() not in self._names:
            self._others[split] += 1
            return False
        image = row.get("image")
        return self._part is None or not isinstance(image, str) or self._part[0] <= place_of(image) < self._part[1]

    def nothing_left(self, key: str) -> Problem | None:
        """What is wrong where no row was taken and splits are why."""
        if not self._others:
            return None
        found = ", ".join(f"{name} ({count:,})" for name, count in self._others.most_common(8))
        wanted = ", ".join(sorted(self._names))
        return Problem(key, f"the files have no rows of the split {wanted}; they have {found}", "name one as `split`")


def place_of(image: str) -> float:
    """Of an image's path among all, from 0 up to 1: the same wherever and whenever it is asked for."""
    digest = hashlib.blake2b(image.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float has: never rounded up to 1
