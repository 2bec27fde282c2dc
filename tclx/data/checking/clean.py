"""A data set without what should not be in it, as new annotation files. Images stay where they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tclx.data.annotations import Annotations
from tclx.data.captions import clean_caption
from tclx.data.checking.check import Checked, Part
from tclx.data.checking.duplicates import across, within
from tclx.data.forms.form import Form
from tclx.data.forms.table import FORMS
from tclx.data.sources.files import Files
from tclx.errors import InputError, Problem
from tclx.files import machine_error, replacing
from tclx.spec.data import DatasetsSource, ShardsSource

LEFT_OUT = "left_out.jsonl"
"""A line for every image that is left out."""


class Filters(NamedTuple):
    """What else is left out."""

    min_side: int | None = None
    """Images whose shorter side is below this, in pixels."""
    max_aspect: float | None = None
    """Images whose longer side is more than so many times the shorter one."""
    near: bool = False
    """Also images to train on that only look like one of val or test."""


class Cleaned(NamedTuple):
    """One file that was written."""

    key: str
    """Of the source that it takes the place of."""
    path: Path
    num_images: int
    num_captions: int
    """Or questions, or statements."""
    left_out: dict[str, int]
    """Images by cause, and empty captions."""
    source: dict[str, Any]
    """What to write into the spec."""


CAUSES = ("unreadable", "too small", "too long a shape", "in val or test", "looks like one in val or test", "duplicate")


class _Verdict(NamedTuple):
    """Of all images."""

    cause: NDArray[np.int64]
    """[N] in `CAUSES`; -1 where an image stays."""
    of: NDArray[np.int64]
    """[N] the image that it is the same as; -1."""


def clean(checked: Checked, folder: Path, *, filters: Filters) -> list[Cleaned]:
    """Write an annotation file for every source, without images that cannot be used, that the filters leave out, that are in
    val or test as well, or that repeat an earlier one of their split, and without empty captions.

    Of rows of `form: captions` the captions of a repeated image go to the one that stays; so do the questions and statements of
    a downstream task.

    Args:
        checked: the data.
        folder: made if needed; nothing in it is overwritten.
        filters: what else is left out.

    Raises:
        InputError: a source is packed or generated, nothing would be left of one, or there are files in the way.
        MachineError: the folder cannot be written.
    """
    parts = [part for part in checked.parts if part.section is not None and len(part.images)]
    if not parts:
        raise InputError(Problem("data", "the data are generated: there is nothing to clean"))
    for part in parts:
        _refuse_uncleanable(part)
    verdict = _judge(checked, filters)
    content = [(part, *_rows(checked, part, verdict)) for part in parts]
    for part, rows, _ in content:
        if not rows:
            problem = f"nothing is left of its {len(part.images):,} images"
            raise InputError(Problem(part.key, problem, "look at `tclx data check` without --clean, or at the filters"))
    paths = [folder / f"{_file_name(part.key)}.json" for part in parts]
    for path in (*paths, folder / LEFT_OUT):
        if path.exists():
            raise InputError(Problem("--clean", f"{path} exists and is not overwritten", "choose another folder"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / LEFT_OUT) as file:
            for number in np.flatnonzero(verdict.cause >= 0).tolist():
                file.write(
                    (json.dumps(_left_out(checked, verdict, number), ensure_ascii=False) + "\n").encode(errors="replace")
                )
        for path, (_, rows, _) in zip(paths, content, strict=True):
            with replacing(path) as file:
                for place, row in enumerate(rows):
                    file.write((",\n" if place else "[\n").encode() + json.dumps(row, ensure_ascii=False).encode())
                file.write(b"\n]\n")
    except OSError as error:
        raise machine_error(error, f"could not write into {folder}") from error
    return [_cleaned(part, path, rows, left_out) for path, (part, rows, left_out) in zip(paths, content, strict=True)]


def _refuse_uncleanable(part: Part) -> None:
    if isinstance(part.section, ShardsSource):
        hint = "clean the files that they were packed from, and pack those"
        raise InputError(Problem(part.key, "is packed: a list of files cannot name images in shards", hint))
    if isinstance(part.section, DatasetsSource):
        hint = "`tclx data import` writes its images as files; clean those"
        raise InputError(Problem(part.key, "is a data set of `datasets`: a list of files cannot name images in it", hint))


def _judge(checked: Checked, filters: Filters) -> _Verdict:
    """The first cause of `CAUSES` that an image gives."""
    looks, (exact, near) = checked.looks, checked.duplicates
    cause, of = np.full(len(looks), -1, np.int64), np.full(len(looks), -1, np.int64)

    def leave_out(numbers: NDArray[np.int64], why: str, same: NDArray[np.int64] | None = None) -> None:
        staying = cause[numbers] < 0
        cause[numbers[staying]] = CAUSES.index(why)
        if same is not None:
            of[numbers[staying]] = same[staying]

    leave_out(np.flatnonzero(looks["width"] == 0), "unreadable")
    if filters.min_side is not None:
        leave_out(np.flatnonzero(np.minimum(looks["width"], looks["height"]) < filters.min_side), "too small")
    if filters.max_aspect is not None:
        leave_out(np.flatnonzero(checked.aspects > filters.max_aspect), "too long a shape")
    train = checked.numbers("data.train")
    judged = np.concatenate([checked.numbers("data.val"), checked.numbers("data.test")])
    leaked = across(exact, judged, train)
    leave_out(leaked.images, "in val or test", leaked.of)
    if filters.near:
        alike = across(near, judged, train)
        leave_out(alike.images, "looks like one in val or test", alike.of)
    for split in ("data.train", "data.val", "data.test"):
        numbers = checked.numbers(split)
        again = within(exact, numbers[cause[numbers] < 0])
        leave_out(again.images, "duplicate", again.of)
    return _Verdict(cause, of)


def _rows(checked: Checked, part: Part, verdict: _Verdict) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What is written of a part, and what is not, by cause."""
    if not isinstance(part.source, Files) or part.section is None:
        raise TypeError(f"{part.key} has no annotations")
    annotations, form = part.source.annotations, part.section.form
    causes = verdict.cause[part.numbers]
    left_out = Counter({CAUSES[cause]: int((causes == cause).sum()) for cause in np.unique(causes[causes >= 0]).tolist()})
    duplicate = CAUSES.index("duplicate")
    if form in FORMS:
        return _item_rows(annotations, FORMS[form], causes, verdict.of[part.numbers] - part.first, left_out), dict(left_out)
    captions = _captions(annotations, left_out)
    by_image: dict[int, list[str]] = {}
    rows: list[dict[str, Any]] = []
    for row, image in enumerate(annotations.image_of_row.tolist()):
        texts = next(captions)
        if form == "captions" and causes[image] == duplicate:
            image = int(verdict.of[part.first + image]) - part.first
            if not 0 <= image < len(part.images):  # it stays in another source of a mixture
                continue
        elif causes[image] >= 0:
            continue
        if not texts:
            continue
        if form == "captions":
            known = by_image.setdefault(image, [])
            if not known:
                rows.append({"image": annotations.images[image], **_identity(annotations, row), "caption": known})
            known += [text for text in texts if text not in known] if known else texts
        elif form == "retrieval" and part.split == "data.train":
            rows.append(
                {"image": annotations.images[image], "image_id": int(annotations.image_index[row]), "caption": texts[0]}
            )
        else:
            rows.append({"image": annotations.images[image], **_identity(annotations, row), "caption": texts})
    without = {annotations.images[image] for image in np.flatnonzero(causes < 0).tolist()} - {row["image"] for row in rows}
    left_out["without a caption"] = len(without)
    return rows, {cause: count for cause, count in left_out.items() if count}


def _item_rows(
    annotations: Annotations, form: Form, causes: NDArray[np.int64], same_as: NDArray[np.int64], left_out: Counter[str]
) -> list[dict[str, Any]]:
    """Rows of a downstream task; a repeated image's are those of the image that stays."""
    duplicate = CAUSES.index("duplicate")
    rows: dict[str, dict[str, Any]] = {}
    for number, images in enumerate(annotations.images_of_row.tolist()):
        if any(causes[image] >= 0 and causes[image] != duplicate for image in images):
            continue
        stays = [int(same_as[image]) if causes[image] == duplicate else image for image in images]
        if not all(0 <= image < len(annotations.images) for image in stays):  # it stays in another source of a mixture
            stays = images
        item = annotations.item(number)
        row = form.write(item._replace(images=tuple(annotations.images[image] for image in stays)))
        if rows.setdefault(json.dumps(row), row) is not row:
            left_out["repeated rows"] += 1
    return list(rows.values())


def _captions(annotations: Annotations, left_out: Counter[str]) -> Iterator[list[str]]:
    """Row by row, without empty ones, which are counted."""
    for row in range(annotations.num_rows):
        written = [annotations.captions[number] for number in annotations.captions_of(row)]
        texts = [text for text in written if clean_caption(text, max_words=1)]
        left_out["empty captions"] += len(written) - len(texts)
        yield texts


def _identity(annotations: Annotations, row: int) -> dict[str, int]:
    """What tells the row's image from others, where that is not its path."""
    if annotations.tells_apart_by_path:
        return {}
    return {"image_id": int(annotations.image_index[row])}


def _file_name(key: str) -> str:
    """`train`, or of a mixture `train.NAME`."""
    _, split, *inside = key.split(".")
    return f"{split}.{inside[1]}" if inside else split


def _left_out(checked: Checked, verdict: _Verdict, number: int) -> dict[str, Any]:
    found = {
        "key": checked.part(number).key,
        "image": checked.name(number),
        "cause": CAUSES[int(verdict.cause[number])],
    }
    if number in checked.bad:
        return {**found, "reason": checked.bad[number].reason}
    same = int(verdict.of[number])
    return {**found, "same_as": checked.name(same)} if same >= 0 else found


def _cleaned(part: Part, path: Path, rows: Sequence[dict[str, Any]], left_out: dict[str, int]) -> Cleaned:
    if part.section is None:
        raise TypeError(f"{part.key} is no source of the spec")
    source = {"source": "files", "files": [str(path.absolute())], "image_root": part.section.image_root}  # type: ignore[union-attr]
    if part.section.form != "captions":
        source["form"] = part.section.form
    texts = [row.get("caption", "") for row in rows]
    num_captions = sum(len(text) if isinstance(text, list) else 1 for text in texts)
    num_images = len({image for row in rows for image in row.get("images") or [row["image"]]})
    return Cleaned(part.key, path, num_images, num_captions, left_out, source)
