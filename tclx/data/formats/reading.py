"""Annotation files of every format: what a file is, told from its content, and the rows that it holds."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tclx.data.formats import folder as folders
from tclx.data.formats.arrow import is_saved_to_disk, read_parquet, read_saved
from tclx.data.formats.coco import read_coco, read_karpathy
from tclx.data.formats.entry import CHUNK_BYTES, ROWS_WANTED, Entry, Unreadable, text_encoding, whole_object
from tclx.data.formats.flickr import TOKEN, read_tokens
from tclx.data.formats.json_text import read_lines, read_list
from tclx.data.formats.naming import Naming
from tclx.data.formats.tables import LINES_LOOKED_AT, read_table, recognise_table
from tclx.data.hosted import Place
from tclx.data.hosted import entries as hosted_entries
from tclx.data.hosted import opened as opened_data_set
from tclx.data.kinds import kind_of_file, open_ordinary
from tclx.spec.data import DatasetsSource, OwnData


class Opened(NamedTuple):
    """An annotation file that has been recognised."""

    format: str
    """In words: "CSV"."""
    entries: Iterator[Entry]
    """Raises Unreadable while it is iterated over."""


def open_rows(source: OwnData, file: str) -> Opened:
    """The rows of one of a source's files.

    Raises:
        Unreadable: as `open_entries`, or of a data set `tclx.data.hosted.entries`.
    """
    if isinstance(source, DatasetsSource):
        place = Place.of(source)
        return Opened(opened_data_set(place).what, hosted_entries(place, source.image_column))
    return open_entries(Path(file), Naming.of(source))


def open_entries(path: Path, naming: Naming) -> Opened:
    """Recognise an annotation file by what it holds, whatever it is called.

    Args:
        path: a file, or a folder of images with their captions.
        naming: of its columns or keys.

    Raises:
        Unreadable: it is missing, cannot be read, or is of no known format.
    """
    try:
        if path.is_dir() and is_saved_to_disk(path):
            return Opened("a folder that `datasets` saved", read_saved(path))
        if path.is_dir():
            table = folders.table_of(path)
            if table is None:
                return Opened("a folder of images with captions beside them", folders.read_folder(path))
            opened = open_entries(table, naming)
            return opened._replace(format=f"a folder of images with {table.name}")
        with open_ordinary(path) as file:
            head = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        raise Unreadable(" does not exist", _similar_file(path)) from None
    except OSError as error:
        raise Unreadable(f" cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise Unreadable(f" is no path that a file can have: {error}") from None
    recognised = _recognised(path, head, naming)
    return Opened(recognised.format, _entries(path, recognised.read))


def json_list(path: Path) -> Iterator[Entry]:
    """The entries of a file that must be a JSON list.

    Raises:
        Unreadable: it is something else; or as `open_entries`.
    """
    opened = open_entries(path, Naming(None, (), "pretrain"))
    if opened.format != JSON_LIST:
        raise Unreadable(f" looks like {opened.format}, not like a JSON list of rows")
    return opened.entries


JSON_LIST = "a JSON list"


class _Recognised(NamedTuple):
    format: str
    read: Callable[[BinaryIO, bytes], Iterator[Entry]]
    """Of the open file, read up to its head, and that."""


def _recognised(path: Path, head: bytes, naming: Naming) -> _Recognised:
    kind = kind_of_file(head)
    if kind == "a Parquet table":
        return _Recognised("Parquet", lambda _file, _head: read_parquet(path))
    if kind is not None:
        hint = "unpack it first" if kind.endswith("archive") else ROWS_WANTED
        raise Unreadable(f" is {kind}, no annotation file", hint)
    if b"\0" in head[:4096] and text_encoding(head) in ("utf-8", "utf-8-sig"):
        raise Unreadable(" is not text: it holds NUL bytes", ROWS_WANTED)
    text = head.decode(text_encoding(head), "replace").removeprefix("\ufeff")
    start = text.lstrip()[:1]
    if start == "[":
        return _Recognised(JSON_LIST, read_list)
    if start == "{":
        return _recognised_object(head, text.lstrip())
    if not start:
        raise Unreadable(" is empty", ROWS_WANTED)
    lines = [line.removesuffix("\r") for line in text[:200_000].split("\n")[:LINES_LOOKED_AT]]
    if TOKEN.fullmatch(lines[0]):
        return _Recognised("Flickr's token text", read_tokens)
    if lines[0].startswith(("- ", "---")):
        raise Unreadable(":1:1: looks like YAML, which holds no rows", ROWS_WANTED)
    table = recognise_table(lines[: max(1, len(lines) - 1)], naming)
    if table is None:
        raise Unreadable(f":1: is of no known format: {lines[0][:60]!r}", ROWS_WANTED)
    return _Recognised(table.title, partial(read_table, table=table, naming=naming))


def _recognised_object(head: bytes, text: str) -> _Recognised:
    """JSON Lines, COCO, Karpathy, or something else that begins with a brace."""
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        if len(head) < CHUNK_BYTES:
            return _Recognised("JSON Lines", read_lines)  # which says where it is damaged
        keys = {*_TOP_KEYS.findall(text)}
        return (
            _Recognised("Karpathy's splits", _read_karpathy)
            if "sentences" in keys
            else _Recognised("COCO's captions", _read_coco)
        )
    if text[end:].strip():
        return _Recognised("JSON Lines", read_lines)
    if isinstance(first.get("images"), list):
        if "annotations" in first:
            return _COCO
        if any(isinstance(image, dict) and "sentences" in image for image in first["images"][:1]):
            return _KARPATHY
    if all(isinstance(value, dict | list) for value in first.values()):
        raise _named_object(first)
    return _Recognised("JSON Lines", read_lines)


_TOP_KEYS = re.compile(r'"(images|annotations|sentences)"\s*:')
"""In the first mebibyte of a large object, whose end is not at hand."""


def _read_coco(file: BinaryIO, head: bytes) -> Iterator[Entry]:
    tree = whole_object(file, head)
    if not isinstance(tree.get("images"), list) or "annotations" not in tree:
        raise _named_object(tree)
    yield from read_coco(tree)


def _read_karpathy(file: BinaryIO, head: bytes) -> Iterator[Entry]:
    tree = whole_object(file, head)
    if "images" not in tree:
        raise _named_object(tree)
    yield from read_karpathy(tree)


_COCO, _KARPATHY = _Recognised("COCO's captions", _read_coco), _Recognised("Karpathy's splits", _read_karpathy)


def _named_object(tree: dict[str, Any]) -> Unreadable:
    seen = f" holds one object with the keys {', '.join([*tree][:8])}" if tree else " holds an empty object"
    if all(isinstance(value, dict) for value in tree.values()) and tree:
        return Unreadable(f"{seen}, not rows", "a table of pandas is written with orient='records'")
    return Unreadable(seen, ROWS_WANTED)


def _entries(path: Path, read: Callable[[BinaryIO, bytes], Iterator[Entry]]) -> Iterator[Entry]:
    try:
        with open_ordinary(path) as file:
            yield from read(file, file.read(CHUNK_BYTES))
    except OSError as error:
        raise Unreadable(f" cannot be read: {error.strerror}") from error


def _similar_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"nor does its folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {near[0]}?" if near else None
