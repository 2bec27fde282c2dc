"""Positives beyond a caption's own image, as ECCV Caption and CxC give them, and how well a ranking finds them.

Source: Chun et al. 2022, arXiv:2204.03359 (mAP@R, R-Precision, R@1); Musgrave et al. 2020, arXiv:2003.08505 (mAP@R).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tclx.data.annotations import read_annotations
from tclx.data.formats.entry import Entry
from tclx.data.formats.entry import Unreadable as UnreadableRows
from tclx.data.formats.reading import json_list
from tclx.data.problems import Problems
from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_object
from tclx.spec.data import FilesSource
from tclx.tasks.retrieval import QUALITIES

if TYPE_CHECKING:
    from tclx.data.dataset import EvaluationSet
    from tclx.spec.data import DataSpec
    from tclx.tasks.task import Split

_NUMBER_AT_THE_END = re.compile(r"(\d+)$")
_FORM = '{"image_to_caption": {IMAGE_ID: [CAPTION_ID, ...]}, "caption_to_image": {CAPTION_ID: [IMAGE_ID, ...]}}'


class Positives(NamedTuple):
    """The right keys of every query by number; none for a query that is not asked."""

    image_to_text: list[list[int]]
    """[I] captions."""
    text_to_image: list[list[int]]
    """[T] images."""


class _Ids(NamedTuple):
    """Ids of a split as texts, row after row."""

    images: list[str]
    """[R]"""
    captions: list[list[str]]
    """[R] those of the row's captions."""


def check_positives(path: str, data: DataSpec, split: Split) -> None:
    """Read a file of positives against `data.val` or `data.test`; raises as `read_positives`."""
    ids = _ids_of(data, split)
    source = data.val if split == "val" else data.test
    if not isinstance(source, FilesSource):
        return
    rows = read_annotations(source, key=f"data.{split}", training=False).image_index.tolist()
    order = sorted(range(len(rows)), key=rows.__getitem__)
    first = {rows[row]: row for row in reversed(range(len(rows)))}
    _positives(path, [ids.images[first[number]] for number in sorted(first)], _flat(ids, order), split)


def read_positives(path: str, data: DataSpec, split: Split, source: EvaluationSet) -> Positives:
    """The positives in a file, by the numbers of the images and captions of an evaluation set.

    Args:
        path: a JSON object of `image_to_caption` and `caption_to_image`, each from the id of a query to those of its positives.
        data: of which `data.val` or `data.test` is `split`.
        source: the same split.

    Raises:
        InputError: rows have no ids or one twice, the file is not of that form, names others, or a query has no positives.
    """
    ids = _ids_of(data, split)
    return _positives(path, [ids.images[row] for row in source.first_rows], _flat(ids, source.rows_by_image), split)


def quality_of(scores: Tensor, positives: Sequence[Sequence[int]]) -> Tensor:
    """mAP@R, R-Precision and R@1 of each query, R being the number of its positives. Equal scores stand by falling index.

    Args:
        scores: [Q, N] one row a query; larger is better.
        positives: [Q] the right keys, different ones.

    Returns:
        [Q, 3] fp64 on the CPU, 0 to 1, in the order of `QUALITIES`; NaN for a query without positives.
    """
    found = torch.full((len(positives), len(QUALITIES)), torch.nan, dtype=torch.float64)
    index = torch.arange(scores.shape[1], device=scores.device)
    for row, right in enumerate(positives):
        if not right:
            continue
        own = torch.tensor(right, device=scores.device)
        value = scores[row][own, None]
        places = ((scores[row] > value) | ((scores[row] == value) & (index > own[:, None]))).sum(dim=1).sort().values.cpu()
        # The i-th positive, from 1, at place p makes the precision there i / p.
        precision = torch.arange(1, len(right) + 1, dtype=torch.float64) / (places + 1)
        among = (places < len(right)).double()
        found[row] = torch.stack([(precision * among).mean(), among.mean(), (places[0] == 0).double()])
    return found


def quality_by_chance(positives: Sequence[Sequence[int]], *, num_keys: int) -> dict[str, float]:
    """What a random order reaches on average, in percent: of mAP@R, and of R-Precision and R@1, which are alike.

    At place r a key is right with R / N, and of the r - 1 keys above it (r - 1) (R - 1) / (N - 1) are.
    """
    counts = [len(right) for right in positives if right]
    others = max(num_keys - 1, 1)
    precisions = [
        sum((1 + (place - 1) * (num - 1) / others) / place for place in range(1, num + 1)) / num_keys for num in counts
    ]
    share = 100.0 / len(counts)
    return {"map_at_r_chance": share * sum(precisions), "chance": share * sum(counts) / num_keys}


def _flat(ids: _Ids, order: Sequence[int]) -> list[str]:
    return [caption for row in order for caption in ids.captions[row]]


def _ids_of(data: DataSpec, split: Split) -> _Ids:
    """The ids in the rows of a split: `image_id`, or the number that the image's name ends with; `caption_id`."""
    source = data.val if split == "val" else data.test
    key = f"data.{split}"
    if not isinstance(source, FilesSource):
        message = "positives go by the ids of images and captions, and it has none"
        raise InputError(Problem(key, message, "source: files, of rows with `caption_id`"))
    chosen = [name for name in ("image_column", "caption_columns", "part", "limit") if getattr(source, name)]
    if source.form == "captions" or chosen:
        message = f"positives go by the rows of a JSON list as they stand, not with {chosen[0] if chosen else 'form: captions'}"
        raise InputError(Problem(key, message, "form: retrieval, and all of the rows"))
    read_annotations(source, key=key, training=False)  # faults of the rows themselves are told first
    problems, ids = Problems(f"{key}.files"), _Ids([], [])
    image_of_id, seen = dict[str, str](), dict[str, str]()
    for path in source.files:
        for entry in _rows(path, key):
            row, place = entry.value, f"{path}{entry.place}"
            captions = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
            image, named = _image_id(row), row.get("caption_id")
            given = [named] if isinstance(row["caption"], str) and not isinstance(named, list) else named
            if image is None:
                problems.add(f"{place}: no `image_id`, and its image's name ends with no number", "positives go by ids")
                continue
            if image_of_id.setdefault(image, row["image"]) != row["image"]:
                problems.add(f"{place}: image id {image} is also that of {image_of_id[image]}", "an id an image")
            if given is None or given == [None]:
                problems.add(f"{place}: `caption_id` is missing", "docs/evaluation.md has the lines that add it")
                continue
            if not isinstance(given, list) or len(given) != len(captions) or not all(map(_is_id, given)):
                problems.add(f"{place}: `caption_id` is not one id for each of {len(captions)} captions", "numbers or texts")
                continue
            texts = [_as_text(one) for one in given]
            for one in texts:
                if one in seen:
                    problems.add(f"{place}: caption id {one} is also in {seen[one]}", "an id a caption")
                seen[one] = f"row {entry.number}"
            ids.images.append(image)
            ids.captions.append(texts)
    problems.raise_if_any()
    return ids


def _rows(path: str, key: str) -> Iterator[Entry]:
    try:
        yield from json_list(Path(path))
    except UnreadableRows as error:
        raise InputError(Problem(f"{key}.files", f"{path}{error.message}", error.hint)) from error


def _image_id(row: Mapping[str, Any]) -> str | None:
    if _is_id(row.get("image_id")):
        return _as_text(row["image_id"])
    number = _NUMBER_AT_THE_END.search(PurePosixPath(row["image"]).stem)
    return _as_text(number[1]) if number else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""


def _as_text(value: str | int) -> str:
    """`7`, `"7"` and `"000007"` are one id."""
    text = str(value)
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def _positives(path: str, images: Sequence[str], captions: Sequence[str], split: Split) -> Positives:
    key = f"evaluation.retrieval.positives.{split}"
    try:
        found = read_object(Path(path))
    except Unreadable as error:
        raise InputError(Problem(key, str(error), _FORM)) from None
    of_image = {name: number for number, name in enumerate(images)}
    of_caption = {name: number for number, name in enumerate(captions)}
    problems = Problems(key)
    image_to_text = _direction(found, "image_to_caption", of_image, of_caption, path, problems)
    text_to_image = _direction(found, "caption_to_image", of_caption, of_image, path, problems)
    problems.raise_if_any()
    return Positives(image_to_text, text_to_image)


def _direction(
    found: Mapping[str, Any],
    name: str,
    queries: Mapping[str, int],
    keys: Mapping[str, int],
    path: str,
    problems: Problems,
) -> list[list[int]]:
    """[Q] keys of every query by number; what is wrong goes to `problems`."""
    positives: list[list[int]] = [[] for _ in queries]
    of_queries = found.get(name)
    if not isinstance(of_queries, dict) or not of_queries:
        problems.add(f"{path}: `{name}` is missing, empty or no object", _FORM)
        return positives
    query_kind, _, key_kind = name.partition("_to_")
    for query, right in of_queries.items():
        place, number = f"{path}: {name}: {query}", queries.get(_as_text(query))
        if number is None:
            problems.add(f"{place}: no {query_kind} of the split has this id", "is it of another data set or split?")
        elif not isinstance(right, list) or not right or not all(map(_is_id, right)):
            problems.add(f"{place}: has no positives", "a list of at least one id, or leave the query out")
        elif unknown := [one for one in right if _as_text(one) not in keys]:
            problems.add(f"{place}: no {key_kind} of the split has the id {unknown[0]}", "is it of another data set or split?")
        elif len(chosen := {keys[_as_text(one)] for one in right}) < len(right):
            problems.add(f"{place}: names one {key_kind} twice", "once")
        else:
            positives[number] = sorted(chosen)
    return positives
