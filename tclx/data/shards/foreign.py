"""Tar files that others have made in WebDataset's manner: what is in them, found by one pass over their headers.

Members of one key (`000000017.jpg`, `000000017.txt`) are one sample: an image and its caption, in `.txt`, or in `.json` under
`caption`. The index is kept beside the tars, or in the user's cache where that cannot be written, and made again when a
tar's size or time has changed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tclx.data.kinds import open_ordinary
from tclx.data.problems import Problems
from tclx.data.shards.arrays import Texts
from tclx.data.shards.index import ShardIndex, read_index
from tclx.data.shards.tar import Damaged, Place, places
from tclx.errors import InputError, MachineError, Problem
from tclx.files import Unreadable, parse_json
from tclx.system import user_cache

INDEX_OF_TARS = ".tclx-tars.index"
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
MAX_CAPTION_BYTES = 16 << 20
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)


def index_of_tars(folder: Path, *, key: str) -> ShardIndex:
    """The index of a folder of tars, made if there is none that fits.

    Args:
        folder: that holds `*.tar`.
        key: of the source's folder in the spec, for messages.

    Raises:
        InputError: there is no tar, one is damaged, or no sample has both an image and a caption.
        MachineError: the index cannot be kept.
    """
    shards = [{"name": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns} for path, found in _tars(folder, key)]
    kept = (folder / INDEX_OF_TARS, _in_cache(folder))
    for path in kept:
        try:
            index = read_index(path, folder=folder)
        except Unreadable:  # there is none, or one that is made again
            continue
        if index.about["shards"] == shards:
            return index
    made = _make(folder, shards, key=key)
    try:
        made.write(kept[0])
        return made
    except MachineError as error:
        if getattr(error.__cause__, "errno", None) not in _NO_PLACE:
            raise
    try:
        kept[1].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the index of {folder} can be kept neither there nor in {kept[1].parent}: {error}") from error
    made.write(kept[1])
    return made


def _tars(folder: Path, key: str) -> list[tuple[Path, os.stat_result]]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
        if not paths:
            packed = next((path for path in folder.iterdir() if path.name.endswith((".tar.gz", ".tgz"))), None)
            hint = (
                f"{packed.name}: unpack it (gunzip), compressed tars can only be read from their beginning" if packed else None
            )
            inner = next((path.parent for path in sorted(folder.glob("*/*.tar"))), None)
            raise InputError(Problem(key, f"{folder} holds no .tar", f"name {inner}" if inner and not packed else hint))
        return [(path, path.stat()) for path in paths]
    except OSError as error:
        raise InputError(Problem(key, f"{folder}: {error.strerror}")) from error


def _in_cache(folder: Path) -> Path:
    return user_cache() / "tars" / f"{hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:32]}.index"


def _make(folder: Path, shards: list[dict[str, Any]], *, key: str) -> ShardIndex:
    problems, left_out = Problems(key), Counter[str]()
    offset, length, starts = array("q"), array("q"), [0]
    names: list[str] = []
    captions: list[str] = []
    num_captions = array("q", [0])
    for shard in shards:
        path = folder / shard["name"]
        try:
            with open_ordinary(path) as file:
                for image, texts in _samples(file.fileno(), left_out):
                    offset.append(image.offset)
                    length.append(image.length)
                    names.append(image.name)
                    captions += texts
                    num_captions.append(len(captions))
        except Damaged as error:
            problems.add(f"{path}{error}", "fetch or make it again")
        except OSError as error:
            problems.add(f"{path}: {error.strerror}")
        starts.append(len(names))
    problems.raise_if_any()
    if not names:
        hint = "a sample is KEY.jpg with KEY.txt, or with KEY.json that holds `caption`"
        raise InputError(Problem(key, f"no tar of {folder} has an image with a caption", hint))
    rows = np.arange(len(names))
    return ShardIndex(
        folder=folder,
        about={"shards": shards, "left_out": dict(left_out)},
        shard_start=np.array(starts),
        offset=np.frombuffer(offset, np.int64),
        length=np.frombuffer(length, np.int64),
        crc32=None,
        images=Texts.of(names),
        image_of_row=rows,
        image_index=rows,
        row_digests=rows,  # every sample is an image of its own
        caption_start=np.frombuffer(num_captions, np.int64),
        captions=Texts.of(captions),
    )


def _samples(descriptor: int, left_out: Counter[str]) -> Iterator[tuple[Place, list[str]]]:
    """Images with captions of one tar, in order; what has only one of them is counted.

    Raises:
        Damaged: the tar is.
    """
    samples: dict[str, dict[str, Place]] = {}
    for place in places(descriptor):
        folder, _, name = place.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if not stem or not suffix:  # side files of macOS and the like
            continue
        parts = samples.setdefault(f"{folder}/{stem}", {})
        if suffix.lower() in parts:
            raise Damaged(f": the member at byte {place.offset - 512:,} has the name of another, {place.name}")
        parts[suffix.lower()] = place
    for parts in samples.values():
        image = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
        if image is None:
            left_out["without an image"] += 1
        elif not (captions := _captions(descriptor, parts)):
            left_out["without a caption"] += 1
        else:
            yield image, captions


def _captions(descriptor: int, parts: dict[str, Place]) -> list[str]:
    """Of a sample; none where there is no usable one."""
    found: Any = None
    try:
        if "txt" in parts:
            found = _content(descriptor, parts["txt"]).decode("utf-8-sig").strip()
        elif "json" in parts:
            tree = parse_json(_content(descriptor, parts["json"]))
            found = tree.get("caption", tree.get("captions")) if isinstance(tree, dict) else None
    except ValueError:  # no UTF-8, no JSON
        return []
    texts = found if isinstance(found, list) else [found]
    return [text for text in texts if isinstance(text, str) and text.strip() and _is_text(text)]


def _is_text(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


def _content(descriptor: int, place: Place) -> bytes:
    return os.pread(descriptor, min(place.length, MAX_CAPTION_BYTES), place.offset)
