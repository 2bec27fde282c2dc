"""A folder of images with their captions beside them: a text file for each, or one table for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tclx.data.formats.entry import Entry, Unreadable
from tclx.data.kinds import IMAGE_SUFFIXES, image_files, open_ordinary
from tclx.files import Unreadable as UnreadableFile
from tclx.files import read_object

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json", "metadata.parquet")
"""What `datasets` calls an image folder has one of them."""
TEXT_SUFFIXES = (".txt", ".caption")
MAX_TEXT_BYTES = 1 << 20


def table_of(folder: Path) -> Path | None:
    """The file that holds the captions of all images, where there is one."""
    return next((path for name in TABLES if (path := folder / name).is_file()), None)


def read_folder(folder: Path) -> Iterator[Entry]:
    """An entry an image, in the order of their paths, with the captions of its text file (`a.jpg`, `a.txt`: a caption a line)
    or with the `caption` of `a.json`, as img2dataset writes them; without any for one that has none.

    Raises:
        Unreadable: the folder cannot be read, has no images, or none of them has captions.
    """
    number = num_with = 0
    try:
        names = image_files(folder)
    except OSError as error:
        raise Unreadable(f" cannot be read: {error.filename}: {error.strerror}") from error
    for number, name in enumerate(names, 1):
        captions = _captions_beside(folder / name)
        num_with += bool(captions)
        yield Entry(number - 1, None, {"image": name, "caption": captions}, "image")
    if not number:
        raise Unreadable(" holds no images", f"files that end with {', '.join(IMAGE_SUFFIXES)}")
    if not num_with:
        hint = "write them into a text file beside each image (`a.jpg`, `a.txt`), or into metadata.csv with file_name and text"
        raise Unreadable(f" holds {number:,} images, and no captions", hint)


def _captions_beside(image: Path) -> list[Any]:
    """
    Raises:
        Unreadable: a file beside it is not what it should be.
    """
    for suffix in TEXT_SUFFIXES:
        if (path := image.with_suffix(suffix)).is_file():
            return [line.strip() for line in _text(path).splitlines() if line.strip()]
    if (path := image.with_suffix(".json")).is_file():
        try:
            caption = read_object(path).get("caption")
        except UnreadableFile as error:
            raise Unreadable(f": {path}: {error.why}") from error
        return caption if isinstance(caption, list) else [caption] if caption else []
    return []


def _text(path: Path) -> str:
    try:
        with open_ordinary(path) as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Unreadable(f": {path} cannot be read: {reason}", "save it as UTF-8") from error
