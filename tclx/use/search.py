"""Search with a trained model: which pictures of a folder, or which lines of a file, go best with a text or a picture?

Every picture is embedded once. The index of a folder stays in the user's cache, under the identity of the model's image side,
and is renewed for files that are new, changed (size or time) or gone.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tclx.data.images import BadImage, read_image
from tclx.errors import InputError, MachineError, Problem
from tclx.files import replacing
from tclx.report.markup import joined, part, text
from tclx.report.markup import jpeg as picture
from tclx.report.page import Page
from tclx.tasks.thumbnails import jpeg
from tclx.use.embedding import embed_files, images_in

if TYPE_CHECKING:
    from tclx.use.loaded import Vectors, VisionLanguageModel

Say = Callable[[str], None]

RERANKED = 50
"""Best by cosine similarity that the matching head sorts again, where the model has one: about as many as a page shows."""
SCHEMA = 1
THUMBNAIL_SIDE = 320
"""Pixels of the longer side of a picture on a page."""


class Query(NamedTuple):
    """What is looked for: one of the two."""

    text: str | None = None
    image: Path | None = None


class Result(NamedTuple):
    """One of what was found."""

    found: str
    """A path, or a line."""
    similarity: float
    """Cosine."""
    match: float | None
    """The matching head's probability; None where it was not asked."""


class Index(NamedTuple):
    """The pictures of a folder."""

    paths: list[Path]
    vectors: Vectors
    """[N, D]"""
    bad: list[BadImage]
    """What cannot be used."""
    num_embedded: int
    """Of N, those that were not known before."""


def search(
    model: VisionLanguageModel,
    query: Query,
    where: Sequence[Path] | Sequence[str],
    vectors: Vectors,
    *,
    top: int,
    rerank: int | None,
) -> list[Result]:
    """The best of some pictures or texts, best first.

    Args:
        where: paths of pictures, or texts.
        vectors: their embeddings.
        top: so many.
        rerank: so many of the best by cosine similarity are sorted by the matching head, before all others; None is `RERANKED`
            where the model has such a head and a text meets a picture, else 0.

    Raises:
        InputError: there is nothing to sort by the matching head, or the query cannot be used.
    """
    with_texts = bool(where) and isinstance(where[0], str)
    crosses = (query.text is None) == with_texts
    if rerank and not crosses:
        raise InputError(Problem("--rerank", "the matching head compares a picture with a text", "leave it out"))
    if rerank is None:
        rerank = RERANKED if crosses and model.has_matching else 0
    if query.image is not None:
        (wanted,) = model.embed_images([query.image])
    else:
        (wanted,) = model.embed_texts([query.text or ""])
    similarity = vectors @ wanted
    best = nearest(similarity, max(top, rerank))
    matches: dict[int, float] = {}
    if rerank:
        again = best[:rerank].tolist()
        chosen: Any = [where[number] for number in again]
        scores = (
            model.score([query.image], chosen, by="itm")
            if query.image is not None
            else model.score(chosen, [query.text or ""], by="itm").T
        )
        matches = dict(zip(again, scores[0].tolist(), strict=True))
    order = sorted(
        best.tolist(), key=lambda number: -matches.get(number, -1.0)
    )  # stable: the others stay behind, by similarity
    return [Result(str(where[number]), float(similarity[number]), matches.get(number)) for number in order[:top]]


def nearest(similarity: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Numbers of the largest of [N] values, the largest first; of equal ones the first is first."""
    count = min(count, len(similarity))
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(similarity, len(similarity) - count)[len(similarity) - count]
    among = np.flatnonzero(similarity >= least)  # also all that equal the last
    return among[np.argsort(-similarity[among], kind="stable")][:count]


# ----------------------------------------------------------------------------------------------------------------- the index


def index_folder(model: VisionLanguageModel, folder: Path, *, batch_size: int = 64, say: Say = lambda _: None) -> Index:
    """The embeddings of a folder's pictures, those from the cache that are still of the same files.

    Raises:
        InputError: there are no pictures.
        MachineError: the folder or the cache cannot be read or written.
    """
    paths = images_in([folder])
    stamps = {path: _stamp(path) for path in paths}
    kept = _place(model, folder)
    known = _read(kept, say)
    names = {path: os.path.relpath(path, folder) for path in paths}
    fresh = [path for path in paths if names[path] not in known or known[names[path]][0] != stamps[path]]
    if fresh:
        say(f"embedding {len(fresh):,} of {len(paths):,} images")
    made = embed_files(model, fresh, batch_size=batch_size, skip_bad=True, say=say)
    vectors = dict(zip(made.paths, made.vectors, strict=True))
    unusable = {path for path in fresh if path not in vectors}
    usable = [path for path in paths if path not in unusable]
    rows = [vectors[path] if path in vectors else known[names[path]][1] for path in usable]
    whole = np.stack(rows) if rows else made.vectors
    if made.paths or len(known) != len(usable):
        _write(kept, [names[path] for path in usable], [stamps[path] for path in usable], whole)
    return Index(usable, whole, made.bad, len(made.paths))


def cache_folder() -> Path:
    """Where indices are kept: `$XDG_CACHE_HOME/tclx/search`, or below `~/.cache`."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".cache"  # others are to be ignored, says the standard
    return base / "tclx" / "search"


def _place(model: VisionLanguageModel, folder: Path) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return cache_folder() / f"{model.image_identity[:20]}-{where[:20]}.npz"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # a broken link: reading it says so
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def _read(kept: Path, say: Say) -> dict[str, tuple[tuple[int, int], NDArray[np.float32]]]:
    """By name: size and time, and the embedding. A damaged index is told of and made anew."""
    if not kept.exists():
        return {}
    try:
        with np.load(kept, allow_pickle=False) as content:
            if int(content["schema"]) != SCHEMA:
                return {}
            names = bytes(content["names"]).decode(errors="surrogateescape").split("\0")
            stamps: list[list[int]] = content["stamps"].tolist()
            vectors: NDArray[np.float32] = content["vectors"]
        if not vectors.dtype == np.float32 or vectors.ndim != 2 or not len(names) == len(stamps) == len(vectors):
            raise ValueError("its parts are of different lengths")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"the index {kept} cannot be read ({error}) and is made anew")
        return {}
    return {name: ((stamp[0], stamp[1]), row) for name, stamp, row in zip(names, stamps, vectors, strict=True)}


def _write(kept: Path, names: Sequence[str], stamps: Sequence[tuple[int, int]], vectors: Vectors) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as file:
            np.savez(
                file,
                schema=np.array(SCHEMA),
                names=np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8),
                stamps=np.array(stamps, np.int64).reshape(-1, 2),
                vectors=vectors,
            )
    except (OSError, MachineError) as error:
        message = f"the index could not be written to {kept.parent} ({error}); XDG_CACHE_HOME names another cache"
        raise MachineError(message) from error


# ------------------------------------------------------------------------------------------------------------------ the page


def write_page(path: Path, model: VisionLanguageModel, query: Query, results: Sequence[Result], *, of_texts: bool) -> None:
    """One HTML file with what was found, pictures embedded as small JPEGs.

    Raises:
        MachineError: it cannot be written.
    """
    asked = f"“{query.text}”" if query.text is not None else str(query.image)
    page = Page(asked, lead=text(f"Searched with {model.name}.", kind="small"))
    image = _thumbnail(model, query.image) if query.image is not None else None
    shown = picture(image, description="what was asked for") if image is not None else ""
    scores = [
        [f"cos {one.similarity:.3f}", *([f"match {100 * one.match:.1f} %"] if one.match is not None else [])] for one in results
    ]
    if of_texts:
        listed = [(one.found, False, " · ".join(lines)) for one, lines in zip(results, scores, strict=True)]
        content = part("captions", results=listed)
    else:
        content = joined(
            part(
                "shown",
                image=picture(_thumbnail(model, Path(one.found)), description=one.found),
                right=False,
                lines=[one.found, *lines],
            )
            for one, lines in zip(results, scores, strict=True)
        )
    remark = "by the matching head, then by similarity" if any(one.match is not None for one in results) else "by similarity"
    page.section("Found", part("query", kind="", image=shown, words=query.text or "", lines=[("Best first", remark, content)]))
    page.write(path)


def _thumbnail(model: VisionLanguageModel, path: Path) -> str:
    """Base64 of a JPEG; the picture's proportions are kept."""
    data = model.spec.data
    pixels = read_image(path, decoder=data.decoder, max_pixels=data.bad_images.max_pixels)
    scale = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return jpeg(np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)))
