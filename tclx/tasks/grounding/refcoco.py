"""RefCOCO's annotations, and files in their form: read, joined with the boxes, and checked row by row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.data.forms.form import Fault
from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_json
from tclx.tasks.grounding.boxes import Box
from tclx.tasks.grounding.expressions import Expression, Expressions

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.grounding.task import ReferringExpressions

ROWS_WANTED = "expected a JSON list of objects with `image`, `text` and `ref_id`"
BOXES_WANTED = "expected an object from `ref_id` to [left, top, width, height], or a list of objects with `ref_id` and `bbox`"
DETECTIONS_WANTED = "expected an object from an image's id to a list of [left, top, width, height]"
OF_OTHER_TASKS = {"caption": "pre-training or retrieval", "question": "VQA", "sentence": "NLVR2 or SNLI-VE", "label": "SNLI-VE"}
"""Keys by which annotations of other tasks are known."""
MARGIN = 1.0
"""Pixels that a box may reach beyond its image: annotators and detectors round."""


class Read(NamedTuple):
    """What the files of a source say."""

    items: list[Expression]
    """In the order of their images."""
    paths: list[Path]
    """Of the images, each once, in the order in which rows name them first."""
    sizes: list[tuple[int, int]]
    """Width and height of each image."""


def read_expressions(source: ReferringExpressions, *, key: str, as_stored: bool = False) -> Read:
    """Read and check every row, its true box, its image's detections and its image's size.

    Args:
        key: of the source in the spec, for messages.
        as_stored: whether images are used as stored, without turning them as EXIF says.

    Raises:
        InputError: with every row that cannot be used.
    """
    true_boxes = _true_boxes(source, key)
    detections = None if source.detections is None else _object(Path(source.detections), f"{key}.detections", DETECTIONS_WANTED)
    problems: list[Problem] = []
    images = _Images(Path(source.image_root), as_stored)
    items: list[Expression] = []
    for number, row in _rows(source, key):
        try:
            items.append(_expression(row, true_boxes, detections, images))
        except _Fault as fault:
            of, path = {"boxes": (".boxes", source.boxes), "detections": (".detections", source.detections)}.get(
                fault.file, (".file", source.file)
            )
            place = f"{path}: row {number} of {source.file}" if fault.file else f"{source.file}: row {number}"
            problems.append(Problem(f"{key}{of}", f"{place}: {fault.message}", fault.hint))
    if problems:
        raise InputError(*problems)
    if not items:
        raise InputError(Problem(f"{key}.file", f"{source.file} has no rows", ROWS_WANTED))
    return Read(sorted(items, key=lambda item: item.image), images.paths, images.sizes)


class FileExpressions(Expressions):
    """The expressions of a source's files."""

    def __init__(self, source: ReferringExpressions, spec: ExperimentSpec, *, key: str) -> None:
        from tclx.data.images import image_reader

        found = read_expressions(source, key=key, as_stored=spec.compat == "official")
        super().__init__(found.items, found.sizes)
        self._paths, self._read = found.paths, image_reader(spec)

    def image(self, row: int) -> Pixels:
        return self._read(self._paths[self.items[row].image])


class _Fault(Fault):
    """What is wrong with a row, and in which of the other files, if in one of those."""

    def __init__(self, message: str, hint: str | None = None, *, file: str = "") -> None:
        super().__init__(message, hint)
        self.file = file


class _Images:
    """The images that rows name, each opened once for its size."""

    def __init__(self, root: Path, as_stored: bool) -> None:
        self._root, self._as_stored = root, as_stored
        self._numbers: dict[str, int] = {}
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []

    def number(self, name: str) -> int:
        from tclx.data.images import BadImage, read_size

        if name not in self._numbers:
            path = self._root / name
            try:
                size = read_size(path, as_stored=self._as_stored)
            except BadImage as error:
                raise _Fault(f"image {error}") from None
            self._numbers[name] = len(self.paths)
            self.paths.append(path)
            self.sizes.append(size)
        return self._numbers[name]


def _rows(source: ReferringExpressions, key: str) -> Iterator[tuple[int, Any]]:
    from tclx.data.formats.entry import Unreadable as UnreadableRows
    from tclx.data.formats.reading import json_list

    try:
        yield from ((item.number, item.value) for item in json_list(Path(source.file)))
    except UnreadableRows as error:
        raise InputError(Problem(f"{key}.file", f"{source.file}{error.message}", ROWS_WANTED)) from None


def _expression(row: Any, true_boxes: Mapping[str, Any], detections: Mapping[str, Any] | None, images: _Images) -> Expression:
    """
    Raises:
        _Fault: something is wrong with it.
    """
    if not isinstance(row, dict):
        raise _Fault(f"is {_shown(row)}", ROWS_WANTED)
    name = _value(row, "image", "the image's path", lambda value: isinstance(value, str) and value and "\0" not in value)
    text = _value(row, "text", "an expression with a word", lambda value: isinstance(value, str) and re.search(r"\w", value))
    ref_id = _value(row, "ref_id", "a whole number or text", _is_id)
    part = _value(row, "split", "text", lambda value: isinstance(value, str)) if "split" in row else None
    image = images.number(name)
    size = images.sizes[image]
    if str(ref_id) not in true_boxes:
        raise _Fault(f"there is no true box of ref_id {ref_id}", BOXES_WANTED, file="boxes")
    box = _box(true_boxes[str(ref_id)], f"the true box of ref_id {ref_id}", size, file="boxes", exact=True)
    candidates = None
    if detections is not None:
        image_id = _value(row, "image_id", "a whole number or text", _is_id) if "image_id" in row else None
        candidates = _candidates(name, image_id, detections, size)
    return Expression(image, text, box, candidates, part)


def _value(row: Mapping[str, Any], name: str, wanted: str, fits: Callable[[Any], Any]) -> Any:
    if name not in row:
        others = [f"`{key}` is of {task}" for key, task in OF_OTHER_TASKS.items() if key in row]
        hint = (
            f"{'; '.join(others)}: an annotation of another task?" if others else f"the row has: {', '.join(row) or 'no keys'}"
        )
        raise _Fault(f"`{name}` is missing", hint)
    if not fits(row[name]):
        raise _Fault(f"`{name}` is {_shown(row[name])}", f"expected {wanted}")
    return row[name]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _candidates(name: str, image_id: Any, detections: Mapping[str, Any], size: tuple[int, int]) -> tuple[Box, ...]:
    """Under the image's id where the row has one, else under its path, its name, or the number that its name ends with."""
    stem = Path(name).stem
    number = re.search(r"(\d+)$", stem)
    names = [str(image_id)] if image_id is not None else [name, stem, *([str(int(number[1]))] if number else [])]
    found = next((each for each in names if each in detections), None)
    if found is None or not (boxes := detections[found]):
        tried = f"there are no boxes of image {name}, under {' or '.join(json.dumps(each) for each in names)}"
        raise _Fault(tried, DETECTIONS_WANTED, file="detections")
    if not isinstance(boxes, list):
        raise _Fault(f'what stands under "{found}" is {_shown(boxes)}', DETECTIONS_WANTED, file="detections")
    numbered = enumerate(boxes)
    return tuple(_box(box, f'box {number} of image "{found}"', size, file="detections") for number, box in numbered)


def _box(value: Any, what: str, size: tuple[int, int], *, file: str, exact: bool = False) -> Box:
    """The box within the image, cut where it reaches out by rounding.

    Args:
        exact: whether it must have four numbers; a detection may have a score behind them.
    """
    numbers = value if isinstance(value, list) and (len(value) == 4 if exact else len(value) >= 4) else []
    if not numbers or not all(_is_number(each) for each in numbers[:4]):
        raise _Fault(f"{what} is {_shown(value)}", "expected [left, top, width, height]", file=file)
    left, top, width, height = (float(each) for each in numbers[:4])
    if width <= 0 or height <= 0:
        raise _Fault(f"{what}, {_shown(numbers[:4])}, has no area", "expected [left, top, width, height]", file=file)
    right, bottom = min(left + width, size[0]), min(top + height, size[1])
    inside = min(left, top) >= -MARGIN and left + width <= size[0] + MARGIN and top + height <= size[1] + MARGIN
    left, top = max(left, 0.0), max(top, 0.0)
    if not inside or right <= left or bottom <= top:
        message = f"{what}, {_shown(numbers[:4])}, is not within its image of {size[0]} x {size[1]} pixels"
        raise _Fault(message, "left, top, width and height, not the corners; is it of another image?", file=file)
    return left, top, right - left, bottom - top


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _true_boxes(source: ReferringExpressions, key: str) -> Mapping[str, Any]:
    path, key = Path(source.boxes), f"{key}.boxes"
    content = _json(path, key, BOXES_WANTED)
    if isinstance(content, dict) and content:
        return content
    if not isinstance(content, list) or not content:
        raise InputError(Problem(key, f"{path} holds {_shown(content)}", BOXES_WANTED))
    found: dict[str, Any] = {}
    for number, row in enumerate(content):
        if not isinstance(row, dict) or not _is_id(row.get("ref_id")) or "bbox" not in row:
            raise InputError(Problem(key, f"{path}: row {number} is {_shown(row)}", BOXES_WANTED))
        if found.setdefault(str(row["ref_id"]), row["bbox"]) != row["bbox"]:
            raise InputError(Problem(key, f"{path}: row {number}: ref_id {row['ref_id']} has another box before"))
    return found


def _object(path: Path, key: str, wanted: str) -> Mapping[str, Any]:
    content = _json(path, key, wanted)
    if not isinstance(content, dict) or not content:
        raise InputError(Problem(key, f"{path} holds {_shown(content)}", wanted))
    return content


def _json(path: Path, key: str, wanted: str) -> Any:
    try:
        return read_json(path)
    except Unreadable as error:
        raise InputError(Problem(key, str(error), wanted)) from None


def _shown(value: Any) -> str:
    """A JSON value, the beginning of a long one."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} (cut)"
