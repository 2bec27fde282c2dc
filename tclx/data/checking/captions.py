"""What do captions say? How many are empty, the same, or longer than what is read of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from tclx.data.captions import clean_caption

MOST_FREQUENT = 10
_ALL_WORDS = 1 << 30


class CaptionFacts(NamedTuple):
    """Of all captions of a split, as they are read: in small letters, without punctuation."""

    num_captions: int
    empty: int
    """Without a letter or digit."""
    too_long: int
    """Of more words than `data.max_caption_words`: the rest is not read."""
    repeated: int
    """Whose text an earlier one has."""
    most_frequent: tuple[tuple[str, int], ...]
    """Texts that are there more than once, as first written, with their number."""
    words: tuple[int, int, int]
    """Least, median and most words."""


def caption_facts(captions: Callable[[], Iterable[str]], *, max_words: int) -> CaptionFacts:
    """Count them; memory is 12 bytes a caption.

    Args:
        captions: all of them, in order, each time it is called.
        max_words: of a caption that are read.
    """
    read = (clean_caption(text, max_words=_ALL_WORDS) for text in captions())
    counted = np.fromiter(
        ((_digest(text), len(text.split())) for text in read), np.dtype([("digest", np.uint64), ("words", np.uint32)])
    )
    words = counted["words"]
    _, first, counts = np.unique(counted["digest"][words > 0], return_index=True, return_counts=True)
    spoken = np.flatnonzero(words > 0)
    best = np.lexsort((first, -counts))[:MOST_FREQUENT]
    wanted = {int(spoken[first[one]]): int(counts[one]) for one in best.tolist() if counts[one] > 1}
    written = {number: text for number, text in enumerate(captions()) if number in wanted} if wanted else {}
    return CaptionFacts(
        num_captions=len(words),
        empty=int((words == 0).sum()),
        too_long=int((words > max_words).sum()),
        repeated=int((counts - 1).sum()),
        most_frequent=tuple((written[number], count) for number, count in wanted.items()),
        words=(int(words.min()), int(np.median(words)), int(words.max())) if len(words) else (0, 0, 0),
    )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
