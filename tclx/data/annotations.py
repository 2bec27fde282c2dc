"""Which pictures and captions do the annotation files name? Read once, checked row by row, kept in a few flat arrays.

The arrays matter: loader processes are forked, and four million Python strings would be copied into each of them as soon as
their reference counts are touched.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tclx.errors import InputError, Location, Problem
from tclx.spec.data import FilesSource

MAX_PROBLEMS_SHOWN = 20

_NOTHING_LEFT = str.maketrans("", "", " \t\r\n,.'!?\"()*#:;~-/")


class PackedStrings(Sequence[str]):
    """Strings in one UTF-8 buffer; indexing decodes one."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return self._buffer[start : self._ends[index]].decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Annotations:
    """R rows that name P different pictures and hold C captions."""

    pictures: PackedStrings
    """[P] image paths as written in the files, each once."""
    captions: PackedStrings
    """[C] captions, row after row."""
    caption_start: NDArray[np.int64]
    """[R + 1]: row r owns the captions caption_start[r] to caption_start[r + 1]."""
    picture_of_row: NDArray[np.int64]
    """[R] index into `pictures`."""
    image_index: NDArray[np.int64]
    """[R] equal for rows of one `image_id` (where the rows have one), else for rows of one picture; dense from 0."""
    num_empty_captions: int
    """Captions without a letter or digit; they train as [CLS] alone."""

    @property
    def num_rows(self) -> int:
        return len(self.picture_of_row)

    def captions_of(self, row: int) -> range:
        """The row's captions, as indices into `captions`."""
        return range(int(self.caption_start[row]), int(self.caption_start[row + 1]))


@dataclass(frozen=True)
class _Row:
    image: str
    captions: list[str]
    image_id: str | int | None


def read_annotations(source: FilesSource, *, key: str, training: bool) -> Annotations:
    """Read and check every row of a source's files.

    Args:
        source: the files and their form.
        key: the source's key path in the spec, for messages: `data.train`.
        training: whether rows are to be trained on; the retrieval form differs between training and evaluation.

    Raises:
        InputError: a file is missing or no JSON list, rows lack keys or have wrong types: up to 20 problems and their number.
    """
    problems = _Problems(f"{key}.files")
    rows = [row for path in source.files for row in _read_file(Path(path), source, problems, training=training)]
    problems.raise_if_any()
    if not rows:
        expected = "expected JSON lists of objects with `image` and `caption`"
        raise InputError(Problem(f"{key}.files", "the files hold no rows", expected))
    return _pack(rows)


def picture_path(source: FilesSource, image: str) -> Path:
    """Where a row's picture lies: absolute as written, relative from the image root."""
    return Path(source.image_root, image)


class _Problems:
    """Collects problems, keeps the first 20 and counts them all."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.kept: list[Problem] = []
        self.count = 0

    def add(self, message: str, hint: str | None = None, where: Location | None = None) -> None:
        self.count += 1
        if len(self.kept) < MAX_PROBLEMS_SHOWN:
            self.kept.append(Problem(self.key, message, hint, where))

    def raise_if_any(self) -> None:
        if self.count > len(self.kept):
            self.kept.append(Problem(self.key, f"{self.count:,} problems in all; the first {len(self.kept)} are shown"))
        if self.kept:
            raise InputError(*self.kept)


def _read_file(path: Path, source: FilesSource, problems: _Problems, *, training: bool) -> Iterator[_Row]:
    for number, item in enumerate(_read_list(path, problems)):
        faults = list(_faults(item, source, training=training))
        for message, hint in faults:
            problems.add(f"{path}, row {number}: {message}", hint)
        if not faults:
            captions = item["caption"]
            yield _Row(item["image"], [captions] if isinstance(captions, str) else captions, item.get("image_id"))


def _read_list(path: Path, problems: _Problems) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        problems.add(f"{path} does not exist", _similar_file(path))
    except OSError as error:
        problems.add(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.add(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        problems.add(f"not valid JSON: {error.msg}", _json_hint(error), Location(path, error.lineno, error.colno))
    except RecursionError:
        problems.add(f"{path} is nested too deeply to be a list of rows")
    else:
        if isinstance(content, list):
            return content
        problems.add(f"{path} holds {_kind(content)}", "expected a list of objects with `image` and `caption`")
    return []


def _faults(item: Any, source: FilesSource, *, training: bool) -> Iterator[tuple[str, str | None]]:
    """What is wrong with one row: message and hint."""
    if not isinstance(item, dict):
        yield f"is {_kind(item)}", "expected an object with `image` and `caption`"
        return
    row_per_caption = source.form == "retrieval" and training
    for name in ("image", "caption", "image_id") if row_per_caption else ("image", "caption"):
        if name not in item:
            yield f"`{name}` is missing", _similar_key(name, item)
    if "image" in item and (not isinstance(item["image"], str) or not item["image"]):
        yield f"`image` is {_kind(item['image'])}", "expected the picture's path"
    if not isinstance(item.get("image_id"), str | int | None):
        yield f"`image_id` is {_kind(item['image_id'])}", "expected text or a whole number, equal for captions of one picture"
    if "caption" in item:
        yield from _caption_faults(item["caption"], row_per_caption=row_per_caption)


def _caption_faults(caption: Any, *, row_per_caption: bool) -> Iterator[tuple[str, str | None]]:
    if isinstance(caption, str):
        return
    if row_per_caption:
        lists_elsewhere = "one row per caption in the retrieval form; `form: pretrain` takes lists"
        yield f"`caption` is {_kind(caption)}", lists_elsewhere if isinstance(caption, list) else "expected text"
    elif not isinstance(caption, list):
        yield f"`caption` is {_kind(caption)}", "expected text or a list of texts"
    elif not caption:
        yield "`caption` is an empty list", "expected at least one text"
    else:
        wrong = [(place, text) for place, text in enumerate(caption) if not isinstance(text, str)]
        for place, text in wrong[:1]:
            yield f"`caption[{place}]` is {_kind(text)}", "expected text"


def _pack(rows: list[_Row]) -> Annotations:
    pictures: dict[str, int] = {}
    identities: dict[tuple[str, str | int], int] = {}
    picture_of_row = np.empty(len(rows), np.int64)
    image_index = np.empty(len(rows), np.int64)
    for number, row in enumerate(rows):
        picture_of_row[number] = pictures.setdefault(row.image, len(pictures))
        identity = ("path", row.image) if row.image_id is None else ("id", row.image_id)
        image_index[number] = identities.setdefault(identity, len(identities))
    captions = [caption for row in rows for caption in row.captions]
    return Annotations(
        pictures=PackedStrings(pictures),
        captions=PackedStrings(captions),
        caption_start=np.cumsum([0, *(len(row.captions) for row in rows)], dtype=np.int64),
        picture_of_row=picture_of_row,
        image_index=image_index,
        num_empty_captions=sum(not caption.translate(_NOTHING_LEFT) for caption in captions),
    )


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    if value == "":
        return "empty"
    return "null" if value is None else names[type(value)]


def _similar_key(name: str, item: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, item, n=1)
    return f"did the row's `{near[0]}` mean that?" if near else f"the row has: {', '.join(item) or 'no keys'}"


def _similar_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"nor does its folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {near[0]}?" if near else None


def _json_hint(error: json.JSONDecodeError) -> str | None:
    if not error.doc.strip():
        return "the file is empty"
    return "one object per line is JSON Lines; expected one list" if error.msg == "Extra data" else None
