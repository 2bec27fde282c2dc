"""A data set checked: what every image and caption says, which are the same, and which are odd."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tclx.data.checking.captions import CaptionFacts, caption_facts
from tclx.data.checking.duplicates import Duplicates, Same, across, find_duplicates, within
from tclx.data.checking.kept import Kept
from tclx.data.checking.look import LOOK, Looks
from tclx.data.checking.looking import Images, look_at
from tclx.data.images import BadImage
from tclx.data.overlap import DUPLICATES_TOLERATED, PAIRS, consequence, examples
from tclx.data.sources.opening import open_source
from tclx.data.sources.source import StoredFile
from tclx.spec.data import DatasetsSource, ShardsSource
from tclx.tasks.task import CAPTION_FORMS

if TYPE_CHECKING:
    from tclx.data.sources.source import SingleSource, StoredImage
    from tclx.spec.data import DataSpec
    from tclx.spec.data import SingleSource as SourceSpec

SIDES = (1, 32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048, 4096)
"""Where the classes of the histogram of shorter sides begin, in pixels."""
NUM_ODD = 8
"""Of the smallest and of the most extreme images, so many are named."""


class Part(NamedTuple):
    """A source of a spec, or image files of an evaluation, and its images among all."""

    key: str
    """`data.train`, or of a mixture `data.train.sources.NAME.data`."""
    split: str
    """`data.train`, or the key of an evaluation's own images."""
    section: SourceSpec | None
    source: SingleSource | None
    images: Sequence[StoredImage]
    first: int
    """Number of its first image."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        return np.arange(self.first, self.first + len(self.images))


def parts_of(data: DataSpec, others: Mapping[str, Sequence[Path]]) -> list[Part]:
    """All sources of a spec in their order, those of mixtures one by one, then other images.

    Raises:
        InputError: annotation files or shards are wrong.
    """
    parts, first = list[Part](), 0
    for key, one in data.single_sources():
        source: Any = open_source(one, key=key)
        images = source.stored_images
        parts.append(Part(key, ".".join(key.split(".")[:2]), one, source, images, first))
        first += len(images)
    for key, paths in others.items():
        parts.append(Part(key, key, None, None, [StoredFile(path) for path in paths], first))
        first += len(paths)
    return parts


class Bad(NamedTuple):
    """An image that cannot be used."""

    key: str
    path: str
    reason: str
    cause: str
    """`missing`, `decoding` or `size`."""


@dataclass(frozen=True)
class Checked:
    """What was found; the same for any number of processes, and whatever was known before.

    Attributes:
        parts: the data.
        looks: [N] of all images, part after part.
        bad: those that cannot be used, by their number, in order.
        duplicates: groups of the same images.
        captions: by split, of those with captions that were written by somebody.
        max_words: of a caption that are read.
    """

    parts: Sequence[Part]
    looks: Looks
    bad: Mapping[int, BadImage]
    duplicates: Duplicates
    captions: Mapping[str, CaptionFacts]
    max_words: int

    @property
    def splits(self) -> list[str]:
        """Those with stored images."""
        return list(dict.fromkeys(part.split for part in self.parts if len(part.images)))

    def numbers(self, split: str) -> NDArray[np.int64]:
        """Of its images."""
        return np.concatenate([np.empty(0, np.int64), *(part.numbers for part in self.parts if part.split == split)])

    def part(self, number: int) -> Part:
        """That an image is of."""
        return next(part for part in reversed(self.parts) if part.first <= number and len(part.images))

    def image(self, number: int) -> StoredImage:
        part = self.part(number)
        return part.images[number - part.first]

    def name(self, number: int) -> str:
        return str(self.image(number))

    @property
    def bad_images(self) -> list[Bad]:
        return [Bad(self.part(n).split, str(error.path), error.reason, error.cause) for n, error in self.bad.items()]

    def unreadable(self, split: str) -> dict[str, int]:
        """Images of a split that cannot be used, by cause."""
        return dict(sorted(Counter(bad.cause for bad in self.bad_images if bad.key == split).items()))

    def usable(self, split: str) -> NDArray[np.int64]:
        numbers = self.numbers(split)
        return numbers[self.looks["width"][numbers] > 0]

    def sides(self, split: str) -> list[tuple[int, int | None, int]]:
        """A histogram of shorter sides: from, below (None: whatever is larger), number of images."""
        looks = self.looks[self.usable(split)]
        counts = np.histogram(np.minimum(looks["width"], looks["height"]), [*SIDES, 1 << 32])[0].tolist()
        return [(low, high, count) for (low, high), count in zip(pairwise([*SIDES, None]), counts, strict=True)]  # type: ignore[misc]

    def leaks(self) -> Iterator[tuple[str, str, Same, Same]]:
        """Of two splits the images of the second that are in the first: the same bytes, and those that only look the same."""
        for first, second in PAIRS:
            exact = across(self.duplicates.exact, self.numbers(first), self.numbers(second))
            near = _without(across(self.duplicates.near, self.numbers(first), self.numbers(second)), exact)
            if len(exact.images) or len(near.images):
                yield first, second, exact, near

    def repeated(self, split: str) -> tuple[Same, Same]:
        """Images of a split that repeat an earlier one: the same bytes, and those that only look the same."""
        exact = within(self.duplicates.exact, self.numbers(split))
        return exact, _without(within(self.duplicates.near, self.numbers(split)), exact)

    def smallest(self) -> list[int]:
        """A few usable images, those with the shortest sides, shorter than the median."""
        return self._odd(np.minimum(self.looks["width"], self.looks["height"]))

    def most_extreme(self) -> list[int]:
        """A few usable images, those of the longest shapes, longer than the median."""
        return self._odd(-self.aspects)

    @property
    def aspects(self) -> NDArray[np.float64]:
        """[N] longer by shorter side; 0 where an image cannot be used."""
        width, height = self.looks["width"].astype(np.float64), self.looks["height"].astype(np.float64)
        aspects: NDArray[np.float64] = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1)
        return aspects

    def _odd(self, values: NDArray[Any]) -> list[int]:
        usable = np.flatnonzero(self.looks["width"] > 0)
        odd = usable[values[usable] < np.median(values[usable])] if len(usable) else usable
        order: list[int] = odd[np.argsort(values[odd], kind="stable")][:NUM_ODD].tolist()
        return order

    def warnings(self) -> Iterator[str]:
        """Images that are the same where they should differ, one line each."""
        for first, second, exact, near in self.leaks():
            # Of those with the same path planning warns.
            renamed = [pair for pair in self.pairs(exact) if pair[0] != pair[1]]
            for pairs, how in ((renamed, "have the bytes of others in"), (self.pairs(near), "look like others in")):
                if pairs:
                    counted = f"{len(pairs):,} images of {second} {how} {first}"
                    yield f"{counted}: {examples([f'{name} = {same}' for name, same in pairs])}{consequence(first)}"
        for split in self.splits:
            exact, _ = self.repeated(split)
            if len(exact.images) > DUPLICATES_TOLERATED * len(self.numbers(split)):
                again = examples([f"{name} = {same}" for name, same in self.pairs(exact)])
                yield f"{split}: {len(exact.images):,} images have the bytes of another and count as different ones: {again}"

    def pairs(self, same: Same) -> list[tuple[str, str]]:
        """Names of images and of what they are the same as."""
        return [(self.name(one), self.name(other)) for one, other in zip(same.images.tolist(), same.of.tolist(), strict=True)]

    def tree(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "num_images": len(self.looks),
            "bad": [bad._asdict() for bad in self.bad_images],
            "warnings": list(self.warnings()),
            "splits": {split: self._split_tree(split) for split in dict.fromkeys([*self.splits, *self.captions])},
            "leaks": [
                {"from": first, "to": second, "exact": self.pairs(exact), "near": self.pairs(near)}
                for first, second, exact, near in self.leaks()
            ],
            "smallest": [self._odd_tree(number) for number in self.smallest()],
            "most_extreme": [self._odd_tree(number) for number in self.most_extreme()],
        }

    def _split_tree(self, split: str) -> dict[str, Any]:
        exact, near = self.repeated(split)
        captions = self.captions.get(split)
        return {
            "num_images": len(self.numbers(split)),
            "unreadable": self.unreadable(split),
            "shorter_side": [{"from": low, "below": high, "num_images": count} for low, high, count in self.sides(split)],
            "duplicates": {"exact": self.pairs(exact), "near": self.pairs(near)},
            "captions": None if captions is None else _captions_tree(captions),
        }

    def _odd_tree(self, number: int) -> dict[str, Any]:
        one = self.looks[number]
        return {
            "key": self.part(number).split,
            "path": self.name(number),
            "width": int(one["width"]),
            "height": int(one["height"]),
        }


def _captions_tree(facts: CaptionFacts) -> dict[str, Any]:
    frequent = [{"caption": text, "count": count} for text, count in facts.most_frequent]
    words = dict(zip(("min", "median", "max"), facts.words, strict=True))
    return {**facts._asdict(), "most_frequent": frequent, "words": words}


def _without(same: Same, others: Same) -> Same:
    kept = ~np.isin(same.images, others.images)
    return Same(same.images[kept], same.of[kept])


class Progress(NamedTuple):
    """How far a check is."""

    done: int
    total: int
    known: int
    """Of those that are done, how many an earlier check has looked at."""


def check_data(
    data: DataSpec,
    *,
    others: Mapping[str, Sequence[Path]] | None = None,
    num_processes: int | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Checked:
    """Look at every image and caption that a spec reads, and compare all images with one another.

    Generated scenes need no check. What was looked at is kept in the user's cache as it goes.

    Args:
        data: the data section; what its sources select is looked at.
        others: more image files, by key path.
        num_processes: defaults to the CPUs that this process may use.
        report: called now and then.

    Raises:
        InputError: annotation files or shards are wrong.
        MachineError: a checking process died.
    """
    parts = parts_of(data, others or {})
    max_pixels = data.bad_images.max_pixels
    images = [Images(part.images, Kept(_place(part), decoder=data.decoder, max_pixels=max_pixels)) for part in parts]
    total, done, known = sum(len(part.images) for part in parts), 0, 0
    looks, bad = np.zeros(total, LOOK), dict[int, BadImage]()
    report(Progress(done, total, known))
    for found in look_at(images, decoder=data.decoder, max_pixels=max_pixels, num_processes=num_processes):
        looks[done : done + len(found.looks)] = found.looks
        bad.update(found.bad)
        done, known = done + len(found.looks), known + found.num_known
        report(Progress(done, total, known))
    written: dict[str, list[SingleSource]] = {}
    for part in parts:
        if part.section is not None and part.source is not None and part.section.form in CAPTION_FORMS and len(part.images):
            written.setdefault(part.split, []).append(part.source)
    captions = {
        split: caption_facts(
            lambda sources=sources: chain.from_iterable(source.captions() for source in sources),  # type: ignore[misc]
            max_words=data.max_caption_words,
        )
        for split, sources in written.items()
    }
    return Checked(parts, looks, bad, find_duplicates(looks), captions, data.max_caption_words)


def _place(part: Part) -> str:
    """The folder of a part's images, whatever is selected of them."""
    if part.section is None:
        return str(next((Path(str(image)).parent for image in part.images), ""))
    if isinstance(part.section, DatasetsSource):
        return part.section.name
    root = part.section.folder if isinstance(part.section, ShardsSource) else getattr(part.section, "image_root", "")
    return os.path.abspath(root)  # noqa: PTH100 no links are followed: a stamp names an image as the spec does
