"""The images and captions that annotation files name, read once, checked row by row, kept in a few flat arrays.

The arrays matter: loader processes are forked, and four million Python strings would be copied into each of them as soon as
their reference counts are touched.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tclx.data.filtering import SizeFilter
from tclx.data.formats.entry import ROWS_WANTED, Unreadable
from tclx.data.formats.naming import Naming
from tclx.data.formats.reading import JSON_LIST, open_rows
from tclx.data.forms.form import Fault, Faults, Item
from tclx.data.forms.table import FORMS, forms_with
from tclx.data.hosted import Place, StoredRow
from tclx.data.problems import Problems
from tclx.data.selected import Selection
from tclx.data.sources.source import StoredFile
from tclx.errors import InputError, Problem
from tclx.spec.data import DatasetsSource

if TYPE_CHECKING:
    from tclx.spec.data import OwnData

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTHING_LEFT = str.maketrans("", "", " \t\r\n,.'!?\"()*#:;~-/")


class PackedStrings(Sequence[str]):
    """Strings in one UTF-8 buffer; indexing decodes one."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._buffer = bytearray()
        self._ends = array("q")
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add one at the end."""
        self._buffer += string.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._buffer))

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
    """R rows that name P different images and hold C captions."""

    images: PackedStrings
    """[P] image paths as written in the files, each once."""
    captions: PackedStrings
    """[C] captions, row after row."""
    caption_start: NDArray[np.int64]
    """[R + 1]: row r owns the captions caption_start[r] to caption_start[r + 1]."""
    image_of_row: NDArray[np.int64]
    """[R] index into `images`."""
    image_index: NDArray[np.int64]
    """[R] equal for rows of one `image_id` (where the rows have one), else for rows of one image; dense from 0."""
    row_digests: NDArray[np.int64]
    """[R] equal for rows of one image with the same captions; of this process alone."""
    file_start: NDArray[np.int64]
    """[F]: the first row of each file."""
    num_empty_captions: int
    """Captions without a letter or digit; they train as [CLS] alone."""
    formats: tuple[str, ...]
    """[F] what each file was taken for, in words."""
    left_out: Mapping[str, int]
    """Images that are not among them, by cause; the cause completes `images ...`."""
    images_of_row: NDArray[np.int64]
    """[R, n] indices into `images`: of a row with several all of them, the first one that of `image_of_row`."""
    targets: PackedStrings | None = None
    """[R] JSON: of the rows of a downstream task what is to be said of them."""

    @property
    def num_rows(self) -> int:
        return len(self.image_of_row)

    @cached_property
    def tells_apart_by_path(self) -> bool:
        """Whether rows have the same `image_index` exactly where they have the same image."""
        pairs = np.unique(np.stack([self.image_of_row, self.image_index]), axis=1)
        return bool(pairs.shape[1] == len(np.unique(self.image_of_row)) == len(np.unique(self.image_index)))

    def item(self, row: int) -> Item:
        """The row of a downstream task.

        Raises:
            TypeError: the rows are captions.
        """
        if self.targets is None:
            raise TypeError("rows of captions are no items of a task")
        return Item(self.names_of(row), self.captions[self.caption_start[row]], json.loads(self.targets[row]))

    def names_of(self, row: int) -> tuple[str, ...]:
        """The row's images, as the files name them."""
        return tuple(self.images[number] for number in self.images_of_row[row].tolist())

    def captions_of(self, row: int) -> range:
        """The row's captions, as indices into `captions`."""
        return range(int(self.caption_start[row]), int(self.caption_start[row + 1]))


def read_annotations(source: OwnData, *, key: str, training: bool) -> Annotations:
    """Read and check every row of a source's files.

    Args:
        source: the files and their form.
        key: the source's key path in the spec, for messages: `data.train`.
        training: whether rows are to be trained on; the retrieval form differs between training and evaluation.

    Raises:
        InputError: a file is missing or of no known format, rows lack keys or have wrong types: up to 20 problems and their
            number.
    """
    problems = Problems(f"{key}.{source.files_key}")
    formats = list[str]()
    reader = _Reader(source, Naming.of(source), Selection(source, key), training=training)
    for path in source.files:
        reader.packer.begin_file()
        try:
            opened = open_rows(source, path)
            formats.append(opened.format)
            for entry in opened.entries:
                try:
                    if not reader.take(entry.value, of_a_list=opened.format == JSON_LIST):
                        break
                except Faults as found:
                    for fault in found.faults:
                        problems.add(f"{path}{entry.place}: {fault.message}", fault.hint)
        except Unreadable as error:
            problems.add(f"{path}{error.message}", error.hint)
    problems.raise_if_any()
    if not reader.packer.image_index:
        raise InputError(reader.nothing_left(problems.key))
    return replace(reader.packer.packed(tuple(formats)), left_out=reader.left_out)


class _Reader:
    """Values of entries -> rows of a form, chosen as the spec says, into a packer."""

    def __init__(self, source: OwnData, naming: Naming, selection: Selection, *, training: bool) -> None:
        self._source, self._naming, self._training = source, naming, training
        self._form = FORMS.get(source.form)
        self._selection, self._sizes = selection, SizeFilter(source, lambda image: stored_image(source, image))
        self._num_without_caption = 0
        self.packer = _Packer(num_images=self._form.num_images if self._form else 1, gathers=source.form == "captions")

    @property
    def left_out(self) -> dict[str, int]:
        """Images by cause."""
        return {"without a caption": self._num_without_caption, **self._sizes.left_out}

    def nothing_left(self, key: str) -> Problem:
        """Why no row was taken."""
        if self._sizes.left_out:
            counted = ", ".join(f"{count:,} are {cause}" for cause, count in self._sizes.left_out.items())
            return Problem(key, f"no image is left: {counted}", "let smaller or longer ones in")
        return self._selection.nothing_left(key) or Problem(key, "the files hold no rows", ROWS_WANTED)

    def take(self, value: Any, *, of_a_list: bool) -> bool:
        """Whether another one may follow.

        Args:
            value: of an entry.
            of_a_list: it stands in a JSON list, whose rows are taken as they are.

        Raises:
            Faults: what is wrong with it.
        """
        if isinstance(value, Fault):
            raise Faults([value])
        try:
            if not isinstance(value, dict):
                return self._pack(value)
            row = self._naming.named(value)
            if not self._selection.takes(row):
                return True
            if self._source.form == "retrieval" and self._training and not of_a_list:
                return all(self._pack(each) for each in list(_a_row_a_caption(row)))
            return self._pack(row)
        except Fault as fault:
            raise Faults([fault]) from fault

    def _pack(self, row: Any) -> bool:
        if faults := [Fault(*one) for one in _faults(row, self._source, training=self._training)]:
            raise Faults(faults)
        if self._source.limit is not None and self._is_full(row, self._source.limit):
            return False
        item = self._form.read(row, training=self._training) if self._form is not None else None
        if not self._sizes.takes(item.images if item is not None else (row["image"],)):
            return True
        if item is not None:
            self.packer.add_item(item)
        elif not row["caption"] and not isinstance(row["caption"], str):
            self._num_without_caption += 1
        else:
            self.packer.add(row)
        return True

    def _is_full(self, row: dict[str, Any], limit: int) -> bool:
        """Whether the row would be of one image more than the spec wants."""
        return self.packer.num_different == limit and not self.packer.knows(row)


def _a_row_a_caption(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is told of an image, as the retrieval form has it to train on."""
    captions = row.get("caption")
    for caption in captions if isinstance(captions, list) else [captions]:
        yield {"image_id": row.get("image"), **row, "caption": caption}


def stored_image(source: OwnData, image: str) -> StoredFile | StoredRow:
    """A row's image: of a data set its row; else a file, absolute as written, relative from the image root."""
    if isinstance(source, DatasetsSource):
        return StoredRow(Place.of(source), source.image_column, image)
    return StoredFile(Path(source.image_root, image))


def _faults(item: Any, source: OwnData, *, training: bool) -> Iterator[tuple[str, str | None]]:
    """What is wrong with one row: message and hint."""
    form = FORMS.get(source.form)
    if not isinstance(item, dict):
        wanted = " and ".join(f"`{name}`" for name in (form.keys if form else ("image", "caption")))
        yield f"is {_kind(item)}", f"expected an object with {wanted}"
        return
    if form is not None:
        for name in form.keys:
            if name not in item:
                others = [other for other in forms_with(set(item)) if other != source.form]
                yield f"`{name}` is missing", f"it is a row of `form: {others[0]}`" if others else _similar_key(name, item)
                return
        for name, value in item.items():
            yield from _text_faults(name, value)
        return
    row_per_caption = source.form == "retrieval" and training
    for name in ("image", "caption", "image_id") if row_per_caption else ("image", "caption"):
        if name not in item:
            others = [other for other in forms_with(set(item)) if other in FORMS]
            yield f"`{name}` is missing", f"it is a row of `form: {others[0]}`" if others else _similar_key(name, item)
            if others:
                return
    if "image" in item and (not isinstance(item["image"], str) or not item["image"]):
        held = isinstance(item["image"], dict) and "bytes" in item["image"]
        way_on = "the file holds the images themselves: `tclx data import` takes them out"
        yield f"`image` is {_kind(item['image'])}", way_on if held else "expected the image's path"
    if not isinstance(item.get("image_id"), str | int | None) or isinstance(item.get("image_id"), bool):
        yield f"`image_id` is {_kind(item['image_id'])}", "expected text or a whole number, equal for captions of one image"
    if "caption" in item:
        yield from _caption_faults(item["caption"], row_per_caption=row_per_caption, may_be_none=source.form == "captions")
    for name in ("image", "image_id", "caption"):
        yield from _text_faults(name, item.get(name))


def _caption_faults(caption: Any, *, row_per_caption: bool, may_be_none: bool) -> Iterator[tuple[str, str | None]]:
    if isinstance(caption, str):
        return
    if row_per_caption:
        lists_elsewhere = "one row per caption in the retrieval form; `form: pretrain` takes lists"
        yield f"`caption` is {_kind(caption)}", lists_elsewhere if isinstance(caption, list) else "expected text"
    elif not isinstance(caption, list):
        yield f"`caption` is {_kind(caption)}", "expected text or a list of texts"
    elif not caption and not may_be_none:
        yield "`caption` is an empty list", "expected at least one text"
    else:
        wrong = [(place, text) for place, text in enumerate(caption) if not isinstance(text, str)]
        for place, text in wrong[:1]:
            yield f"`caption[{place}]` is {_kind(text)}", "expected text"


class _Packer:
    """Rows one after the other into flat arrays.

    Args:
        num_images: of a row.
        gathers: all captions of an image become one row, whichever rows they came from, in the order in which the images came.
    """

    def __init__(self, *, num_images: int, gathers: bool) -> None:
        self._num_images, self._gathers = num_images, gathers
        self._images_of_row = array("q")
        self._targets = PackedStrings()
        self.image_index = array("q")
        self._images: dict[str, int] = {}
        self._identities: dict[tuple[str, str | int], int] = {}
        self._captions = PackedStrings()
        self._caption_start = array("q", [0])
        self._row_digests = array("q")
        self._file_start = array("q")
        self._num_empty_captions = 0

    def begin_file(self) -> None:
        self._file_start.append(len(self._images) if self._gathers else len(self.image_index))

    @property
    def num_different(self) -> int:
        """Images so far."""
        return len(self._images)

    def knows(self, row: dict[str, Any]) -> bool:
        """Whether there was a row of the same image."""
        return row.get("image", row.get("images", [""])[0]) in self._images

    def add(self, row: dict[str, Any]) -> None:
        image, image_id, caption = row["image"], row.get("image_id"), row["caption"]
        captions = [caption] if isinstance(caption, str) else caption
        number = self._images.setdefault(image, len(self._images))
        identity = ("path", image) if image_id is None else ("id", image_id)
        self.image_index.append(self._identities.setdefault(identity, len(self._identities)))
        self._images_of_row.append(number)
        self._add_texts(captions)
        self._row_digests.append(hash((number, *captions)))

    def add_item(self, item: Item) -> None:
        numbers = [self._images.setdefault(image, len(self._images)) for image in item.images]
        identity = ("path", item.images[0])
        self.image_index.append(self._identities.setdefault(identity, len(self._identities)))
        self._images_of_row.extend(numbers)
        self._add_texts([item.text])
        self._targets.append(json.dumps(item.target))
        self._row_digests.append(hash((*numbers, item.text)))

    def _add_texts(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._captions.append(text)
            self._num_empty_captions += not text.translate(_NOTHING_LEFT)
        self._caption_start.append(len(self._captions))

    def packed(self, formats: tuple[str, ...]) -> Annotations:
        images_of_row = np.frombuffer(self._images_of_row, np.int64).reshape(-1, self._num_images)
        rows = Annotations(
            images=PackedStrings(self._images),
            captions=self._captions,
            caption_start=np.frombuffer(self._caption_start, np.int64),
            image_of_row=images_of_row[:, 0],
            image_index=np.frombuffer(self.image_index, np.int64),
            row_digests=np.frombuffer(self._row_digests, np.int64),
            file_start=np.frombuffer(self._file_start, np.int64),
            num_empty_captions=self._num_empty_captions,
            formats=formats,
            left_out={},
            images_of_row=images_of_row,
            targets=self._targets if len(self._targets) else None,
        )
        return _gathered(rows) if self._gathers and rows.num_rows > len(rows.images) else rows


def _gathered(rows: Annotations) -> Annotations:
    """One row an image, with the captions of all its rows in their order."""
    order = np.argsort(rows.image_of_row, kind="stable")
    captions = PackedStrings(rows.captions[number] for row in order.tolist() for number in rows.captions_of(row))
    num_images = len(rows.images)
    counts = np.bincount(rows.image_of_row, np.diff(rows.caption_start), minlength=num_images).astype(np.int64)
    firsts = order[np.searchsorted(rows.image_of_row[order], np.arange(num_images))]
    return replace(
        rows,
        captions=captions,
        caption_start=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        image_of_row=np.arange(num_images),
        image_index=np.unique(rows.image_index[firsts], return_inverse=True)[1],
        row_digests=np.arange(num_images),
        images_of_row=np.arange(num_images)[:, None],
    )


def _text_faults(name: str, value: Any) -> Iterator[tuple[str, str | None]]:
    """Text that no path and no tokenizer takes."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and "\0" in text:
            yield f"`{name}` holds a NUL character", "it is no text; was the file damaged?"
        elif isinstance(text, str) and not text.isascii() and _SURROGATE.search(text):
            yield (
                f"`{name}` holds half a character, a lone surrogate (`\\ud800` to `\\udfff`)",
                "was an emoji cut in two?",
            )
        else:
            continue
        return


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, a missing value as pandas writes it" if math.isnan(value) else f"{value}"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    if value == "":
        return "empty"
    return "null" if value is None else names[type(value)]


def _similar_key(name: str, item: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, item, n=1)
    return f"did the row's `{near[0]}` mean that?" if near else f"the row has: {', '.join(item) or 'no keys'}"
