"""How much data is there, and can every image be read? Counted and checked before anything starts, without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tclx.data.overlap import overlaps
from tclx.data.sources.opening import sources_of
from tclx.data.sources.source import Description, SourceSize, StoredFile, StoredImage
from tclx.errors import InputError, Problem
from tclx.plan import DataFacts

if TYPE_CHECKING:
    from tclx.data.scenes import Split
    from tclx.spec.data import DataSource, DataSpec

MAX_BAD_SHOWN = 20


class Examination(NamedTuple):
    """What planning learns from the annotation files."""

    facts: DataFacts
    warnings: tuple[str, ...]
    """Data that are the same where they should differ, one line each."""
    described: tuple[tuple[str, Description], ...]
    """What each source was taken for, by key path; empty without the data."""


def collect_facts(data: DataSpec, *, without_data: bool = False) -> DataFacts:
    """As `examine`, without the warnings."""
    return examine(data, without_data=without_data).facts


def examine(data: DataSpec, *, without_data: bool = False, some_may_be_missing: bool = False) -> Examination:
    """Count rows, images and captions of every split, and look for a few of the images; none is opened.

    Args:
        data: the data section.
        without_data: believe `approximate_rows` and open no file.
        some_may_be_missing: refuse only where none of the images looked for is there.

    Raises:
        InputError: annotation files are wrong or the images are elsewhere (all problems of all splits), or
            `approximate_rows` is needed and missing.
    """
    problems: list[Problem] = []
    sources = dict(sources_of(data))
    sizes: dict[str, SourceSize] = {}
    for key, source in sources.items():
        try:
            sizes[key] = source.size_without_data if without_data else source.size
            if not without_data:
                skipped = key == "data.train" and data.bad_images.policy == "skip"
                problems += source.missing(all_needed=not (skipped or some_may_be_missing))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    train, val, test = (sizes.get(f"data.{split}", SourceSize(None, None, None)) for split in ("train", "val", "test"))
    if train.num_rows is None or train.num_images is None:
        hint = "say roughly how many rows the training files hold"
        raise InputError(Problem("data.train.approximate_rows", "is needed to plan without the data", hint))
    facts = DataFacts(
        num_train_rows=train.num_rows,
        num_train_images=train.num_images,
        num_val_images=val.num_images,
        num_val_captions=val.num_captions,
        num_test_images=test.num_images,
        num_test_captions=test.num_captions,
    )
    if without_data:
        return Examination(facts, (), ())
    return Examination(facts, tuple(overlaps(sources)), tuple((key, source.description) for key, source in sources.items()))


class BadImageFile(NamedTuple):
    """An image that cannot be used."""

    key: str
    """Of its source: `data.train`."""
    path: str
    reason: str


class ImageCheck(NamedTuple):
    """What opening every image found."""

    num_images: int
    bad: list[BadImageFile]
    """In the order of the files."""
    seconds: float

    def summary(self) -> str:
        """One line for people."""
        rate = self.num_images / max(self.seconds, 1e-9)
        found = f"{len(self.bad):,} bad" if self.bad else "all readable"
        return f"{self.num_images:,} images checked in {self.seconds:.1f} s ({rate:,.0f} a second): {found}"


def check_images(
    data: DataSpec,
    *,
    splits: tuple[Split, ...] = ("train", "val", "test"),
    others: Mapping[str, Sequence[Path]] | None = None,
    num_processes: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> ImageCheck:
    """Decode every image of the splits in full, in parallel; generated scenes need no check.

    Args:
        data: the data section.
        splits: which of its sources.
        others: more image files to open, by key path.
        num_processes: defaults to the CPUs that this process may use.
        report: called with the number of images done and their total, for a progress display.

    Raises:
        InputError: annotation files are wrong.
        MachineError: a checking process died.
    """
    from tclx.data.checking.looking import Images, look_at  # planning opens none

    started = time.monotonic()
    stored: dict[str, Sequence[StoredImage]] = {
        key: source.stored_images for key, source in sources_of(data) if key.removeprefix("data.") in splits
    }
    stored |= {key: [StoredFile(path) for path in paths] for key, paths in (others or {}).items()}
    keys = [key for key, images in stored.items() for _ in images]
    done, bad = 0, list[BadImageFile]()
    parts = [Images(images) for images in stored.values()]
    for found in look_at(parts, decoder=data.decoder, max_pixels=data.bad_images.max_pixels, num_processes=num_processes):
        bad += [BadImageFile(keys[number], str(error.path), error.reason) for number, error in found.bad]
        done += len(found.looks)
        if report is not None:
            report(done, len(keys))
    return ImageCheck(len(keys), bad, time.monotonic() - started)


def refuse_bad_images(
    data: DataSpec,
    *,
    others: Mapping[str, Sequence[Path]] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> ImageCheck:
    """Check what the policy wants checked before training.

    Under `skip` that is only what is evaluated on: a test set with holes gives metrics that compare with nothing.

    Args:
        data, others, report: as `check_images`.

    Raises:
        InputError: with the first 20 bad images and their number.
        MachineError: a checking process died.
    """
    skips = data.bad_images.policy == "skip"
    wanted: tuple[Split, ...] = ("val", "test") if skips else ("train", "val", "test")
    # What is in a store was decoded when it was packed, and is compared with its checksum when it is read.
    splits = tuple(split for split in wanted if not has_addresses(getattr(data, split)))
    check = check_images(data, splits=splits, others=others, report=report)
    if check.bad:
        shown = [Problem(bad.key, f"{bad.path}: {bad.reason}") for bad in check.bad[:MAX_BAD_SHOWN]]
        hint = "mend or remove them" if skips else "mend or remove them, or train past them with data.bad_images.policy: skip"
        if len(check.bad) == check.num_images:
            hint = "when none can be used, look at image_root, or where else data.train and data.val have images"
        raise InputError(*shown, Problem("", f"{len(check.bad):,} of {check.num_images:,} images cannot be used", hint))
    return check


def has_addresses(source: DataSource | None) -> bool:
    """Whether some of it lies in a store."""
    return source is not None and next(source.addresses(), None) is not None
