"""Are the images where the spec says? A few of each annotation file are looked for, before anything is planned with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tclx.data.annotations import Annotations
from tclx.errors import Problem

if TYPE_CHECKING:
    from tclx.spec.data import FileData

LOOKED_AT = 16
"""Images of one file: its first, its last, and others evenly between."""
MAX_LISTED = 10_000
"""Names of a folder that are compared with the one that is missing, and folders that are tried instead of image_root."""


def missing_images(source: FileData, annotations: Annotations, *, key: str, all_needed: bool) -> Iterator[Problem]:
    """At most one problem: the images looked for are not there.

    Args:
        source: where they should be.
        annotations: the rows that name them.
        key: the source's key path in the spec.
        all_needed: whether one missing image is too many; else only all of them are.
    """
    images = _sample(annotations)
    missing = [image for image in images if not _is_there(source, image)]
    if len(missing) == len(images):
        root = Path(source.image_root)
        example = f"none of {len(images)} images looked for is there: {_path(source, missing[0])} does not exist"
        yield Problem(f"{key}.{source.root_key}", example, way_on(root, missing))
    elif missing and all_needed:
        example = f"{len(missing)} of {len(images)} images looked for do not exist, the first: {_path(source, missing[0])}"
        hint = near_name(_path(source, missing[0])) or "`tclx data check` names all that are missing"
        yield Problem(f"{key}.{source.files_key}", example, hint)


def _sample(annotations: Annotations) -> list[str]:
    """Images of rows spread over every file."""
    ends = [*annotations.file_start[1:], annotations.num_rows]
    rows = [
        np.linspace(start, end - 1, LOOKED_AT, dtype=int)
        for start, end in zip(annotations.file_start, ends, strict=True)
        if end > start
    ]
    numbers = dict.fromkeys(annotations.image_of_row[np.concatenate(rows)].tolist())
    return [annotations.images[number] for number in numbers]


def _path(source: FileData, image: str) -> Path:
    """Absolute as written, relative from the image root."""
    return Path(source.image_root, image)


def _is_there(source: FileData, image: str) -> bool:
    """Anything of that name; whether it is an image is seen when it is opened."""
    try:
        return _path(source, image).exists()
    except OSError:  # a folder that may not be entered: opening says so
        return True


def way_on(root: Path, images: Sequence[str]) -> str:
    """What would make images be found of which none is under the root."""
    if any("\\" in image for image in images):
        return f"the paths have backslashes, as written on Windows: write {images[0].replace(chr(92), '/')}"
    if images[0].startswith(("http://", "https://", "s3://", "gs://")):
        return "these are web addresses: fetch the images, and name the files"
    if Path(images[0]).is_absolute():
        return "the paths are absolute, as on the machine where they were written: image_root does not count for them"
    for other in _other_roots(root):
        if any((other / image).exists() for image in images):
            return f"image_root: {other}: found there"
    for image in images[:1]:
        for skipped in range(1, len(Path(image).parts)):
            rest = Path(*Path(image).parts[skipped:])
            if (root / rest).exists():
                return f"{root / rest} exists: the rows' paths begin with a folder too much"
    return near_name(root / images[0]) or (
        "nor does the folder" if not root.is_dir() else "image_root and the rows' paths together name them"
    )


def _other_roots(root: Path) -> Iterator[Path]:
    """The folders around and inside the root."""
    yield from list(root.parents)[:3]
    for level in ("*", "*/*"):
        try:
            yield from islice((path for path in islice(root.glob(level), MAX_LISTED) if path.is_dir()), 100)
            yield from islice((path for path in islice(root.parent.glob(level), MAX_LISTED) if path.is_dir()), 100)
        except OSError:
            return


def near_name(path: Path) -> str | None:
    """What a folder holds in place of a name that it does not hold: other capitals, another suffix, other Unicode."""
    parent = next((folder for folder in path.parents if folder.is_dir()), None)
    if parent is None:
        return None
    name = path.relative_to(parent).parts[0]
    try:
        names = [entry.name for entry in islice(parent.iterdir(), MAX_LISTED)]
    except OSError:
        return None
    same = unicodedata.normalize("NFC", name)
    for other in names:
        composed = unicodedata.normalize("NFC", other)
        if composed == same and other != name:
            return f"{parent} holds the same name in another Unicode form (NFD, as macOS writes it): rename it, or write it so"
        if composed.casefold() == same.casefold() and other != name:
            return f"{parent} holds {other}: capital letters count"
    for other in names:
        if "." in other and other.rpartition(".")[0] in (name, name.rpartition(".")[0]) and not other.startswith("._"):
            return f"{parent} holds {other}"
    return None
