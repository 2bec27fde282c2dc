"""Which data are the same where they should differ? Warnings: nothing here stops a run, and a metric may mean nothing.

`tclx plan` looks at what paths and rows say, `tclx data check`, which opens every image anyway, also at the files' bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclx.data.sources.source import Source

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
        yield from source.repeats()
    for first, second in PAIRS:
        one, other = sources.get(first), sources.get(second)
        if one is not None and type(one) is type(other):
            shared = one.shares_with(other, names=(first, second))
            if shared is not None:
                yield f"{shared}{_consequence(first)}"


def examples(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:MAX_EXAMPLES]) + (" and others" if len(names) > MAX_EXAMPLES else "")


def _consequence(first: str) -> str:
    if first == "data.train":
        return ". They are trained on, so that metrics on them, and what is chosen by them, say nothing about unseen images"
    return ". The test metrics are then those by which the best checkpoint is chosen"


def content_overlaps(digests: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """What opening every image adds: the same bytes under other paths.

    Args:
        digests: by key path of the source, then by the image's path.
    """
    for first, second in PAIRS:
        contents = {digest: path for path, digest in digests.get(first, {}).items()}
        pairs = [(path, contents[digest]) for path, digest in digests.get(second, {}).items() if digest in contents]
        renamed = [f"{path} = {same}" for path, same in pairs if path not in digests[first]]
        if renamed:
            counted = f"{len(renamed):,} images of {second} have the bytes of others in {first}"
            yield f"{counted}: {examples(renamed)}{_consequence(first)}"
    for key, paths in digests.items():
        firsts: dict[bytes, str] = {}
        again = [f"{path} = {firsts[digest]}" for path, digest in paths.items() if firsts.setdefault(digest, path) != path]
        if len(again) > DUPLICATES_TOLERATED * len(paths):
            yield f"{key}: {len(again):,} images have the bytes of another and count as different ones: {examples(again)}"
