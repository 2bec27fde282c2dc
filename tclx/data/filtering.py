"""Which images does a source leave out for their size? Their headers say how large they are; none is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclx.data.hosted import StoredRow
    from tclx.data.sources.source import StoredFile
    from tclx.spec.data import OwnData

TOO_SMALL = "below `min_side`"
TOO_LONG = "above `max_aspect`"


class SizeFilter:
    """A source's `min_side` and `max_aspect`.

    Args:
        source: the source.
        stored: where an image of that name is.

    Attributes:
        left_out: images so far, by cause.
    """

    def __init__(self, source: OwnData, stored: Callable[[str], StoredFile | StoredRow]) -> None:
        self._stored, self._min_side, self._max_aspect = stored, source.min_side or 0, source.max_aspect
        self._takes_all = source.min_side is None and source.max_aspect is None
        self._judged: dict[str, bool] = {}
        self.left_out: Counter[str] = Counter()

    def takes(self, images: Iterable[str]) -> bool:
        """Whether all images of a row are wanted; each is asked once.

        An image that tells no size is: what becomes of it, `data.bad_images` says.
        """
        if self._takes_all:
            return True
        wanted = [self._takes(image) for image in images]  # all are asked, and so counted
        return all(wanted)

    def _takes(self, image: str) -> bool:
        if image not in self._judged:
            cause = self._cause(image)
            self._judged[image] = cause is None
            if cause is not None:
                self.left_out[cause] += 1
        return self._judged[image]

    def _cause(self, image: str) -> str | None:
        from tclx.data.images import BadImage  # planning opens no image where nothing is asked of its size

        try:
            shorter, longer = sorted(self._stored(image).read_size())
        except BadImage:
            return None
        if shorter < self._min_side:
            return TOO_SMALL
        return TOO_LONG if self._max_aspect is not None and longer > self._max_aspect * shorter else None
