"""Embeddings of files: which images a folder holds, and vectors with their names on the disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tclx.data.images import BadImage, Pixels
from tclx.data.kinds import IMAGE_SUFFIXES, image_files
from tclx.errors import InputError, MachineError, Problem
from tclx.files import machine_error, replacing

if TYPE_CHECKING:
    from tclx.use.loaded import Vectors, VisionLanguageModel

Say = Callable[[str], None]

WRITTEN = (".npy", ".npz", ".parquet")
"""What the name of an output ends with."""
SAY_EVERY_SECONDS = 10.0
MAX_READERS = 8
"""Threads that decode images while others are decoded; the decoders let go of Python meanwhile."""


class Embedded(NamedTuple):
    """What became of some images."""

    paths: list[Path]
    """Of the readable ones, in the order asked for."""
    vectors: Vectors
    """[N, D], of these."""
    bad: list[BadImage]


def images_in(places: Iterable[Path], *, key: str = "") -> list[Path]:
    """The image files that paths stand for, each once.

    A file is itself. Of a folder, all files below it whose names end as images do, sorted; what is hidden (`.name`) is left
    out.

    Raises:
        InputError: nothing is at a path, or a folder holds no image.
        MachineError: a folder cannot be read.
    """
    found: dict[str, Path] = {}
    problems = []
    for place in places:
        if place.is_dir():
            inside = _below(place)
            if not inside:
                problems.append(
                    Problem(key, f"there are no images in {place}", f"files that end with {', '.join(IMAGE_SUFFIXES)}")
                )
        elif place.exists():
            inside = [place]
        else:
            inside = []
            problems.append(Problem(key, f"there is no file or folder {place}"))
        for path in inside:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100  (links stay what they are called)
    if problems:
        raise InputError(*problems)
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in image_files(folder)]
    except OSError as error:
        raise machine_error(error, f"could not read the folder {error.filename}") from error


def embed_files(
    model: VisionLanguageModel, paths: Sequence[Path], *, batch_size: int, skip_bad: bool, say: Say = lambda _: None
) -> Embedded:
    """Embeddings of image files.

    Args:
        skip_bad: leave unreadable images out; otherwise nothing more is embedded after the first, and all of them are found.
        say: is told now and then how many are done.

    Raises:
        InputError: as `VisionLanguageModel.embed_images`, but for bad images.
    """
    kept, bad = list[Path](), list[BadImage]()
    parts = [model.embed_images([])]  # of no image: refuses a model without embeddings before any is read
    told = time.monotonic()
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as readers:
        for start in range(0, len(paths), batch_size):
            batch: list[Pixels] = []
            for path, one in zip(
                paths[start : start + batch_size],
                readers.map(lambda path: _prepared(model, path), paths[start : start + batch_size]),
                strict=True,
            ):
                if isinstance(one, BadImage):
                    bad.append(one)
                else:
                    batch.append(one)
                    kept.append(path)
            if batch and (skip_bad or not bad):
                parts.append(model.embed_pixels(batch))
            if time.monotonic() - told > SAY_EVERY_SECONDS:
                told = time.monotonic()
                say(f"{min(start + batch_size, len(paths)):,} of {len(paths):,} images")
    if bad and not skip_bad:
        return Embedded([], parts[0], bad)
    return Embedded(kept, np.concatenate(parts), bad)


def _prepared(model: VisionLanguageModel, path: Path) -> Pixels | BadImage:
    try:
        return model.prepare(path)
    except BadImage as error:
        return error


def read_lines(path: Path, *, key: str) -> list[str]:
    """The texts of a file, one a line; empty lines are left out.

    Raises:
        InputError: it cannot be read, is no UTF-8, or holds none.
    """
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise InputError(Problem(key, f"{path} cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise InputError(Problem(key, f"{path} is not UTF-8 text: {error.reason} at byte {error.start}")) from error
    if not any(texts):
        raise InputError(Problem(key, f"{path} holds no text", "one a line"))
    return [text for text in texts if text]


# ------------------------------------------------------------------------------------------------------------------- writing


def check_output(path: Path, *, force: bool) -> None:
    """Whether vectors can be written there, before they are computed.

    Raises:
        InputError: its name ends otherwise, its folder is missing, or a file is there and `force` is not set.
        MachineError: pyarrow, which writes Parquet, is not installed.
    """
    if path.suffix not in WRITTEN:
        raise InputError(Problem("--output", f"{path} ends with none of {', '.join(WRITTEN)}", "vectors.npy"))
    if not path.parent.is_dir():
        raise InputError(Problem("--output", f"there is no folder {path.parent}"))
    there = [str(one) for one in (path, names_beside(path)) if one is not None and one.exists()]
    if there and not force:
        raise InputError(Problem("--output", f"{' and '.join(there)} exists", "another name, or --force to replace it"))
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            message = "--output: Parquet is written by pyarrow, which is not installed (pip install pyarrow, or choose .npy)"
            raise MachineError(message) from error


def names_beside(path: Path) -> Path | None:
    """Where the names of an .npy file's rows go: `vectors.json` beside `vectors.npy`. The other forms hold them."""
    return path.with_suffix(".json") if path.suffix == ".npy" else None


def write_vectors(path: Path, vectors: Vectors, names: Sequence[str], *, of: str) -> None:
    """Write vectors with the names of their rows, replacing what is there.

    Args:
        path: `.npy` with a JSON list of the names beside it; `.npz` with arrays `vectors` and `of`; `.parquet` with a column
            `vector` and one called as one of `of`.
        of: `paths` or `texts`.

    Raises:
        MachineError: it cannot be written.
    """
    beside = names_beside(path)
    if beside is not None:
        with replacing(beside) as file:
            file.write(json.dumps(list(names), indent=0, ensure_ascii=False).encode(errors="surrogateescape"))
    with replacing(path) as file:
        if path.suffix == ".npy":
            np.save(file, vectors)
        elif path.suffix == ".npz":
            arrays: dict[str, Any] = {"vectors": vectors, of: np.array(names, dtype=np.str_)}
            np.savez(file, **arrays)
        else:
            import pyarrow
            import pyarrow.parquet

            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
            pyarrow.parquet.write_table(pyarrow.table({of.removesuffix("s"): list(names), "vector": column}), file)
