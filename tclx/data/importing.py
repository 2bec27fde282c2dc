"""Images with captions of any format, written as another: `tclx data import`."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from tclx.data.annotations import Annotations, read_annotations, stored_image
from tclx.data.captions import clean_caption
from tclx.data.formats.entry import Unreadable
from tclx.data.formats.reading import open_rows
from tclx.data.hosted import Place, prepare
from tclx.data.kinds import HEAD_BYTES, kind_of_file
from tclx.errors import InputError, Problem
from tclx.files import machine_error, replacing
from tclx.spec.data import BadImagesSpec, DatasetsSource, FilesSource, OwnData

Target = Literal["json", "retrieval", "jsonl", "csv", "tsv", "coco", "karpathy", "flickr", "parquet"]
"""`json` is ALBEF's list with a row an image, `retrieval` its list with a row a caption."""

_TAKEN_OUT = "rows.jsonl"
"""The rows of a table without its images, while they are converted."""
_SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "tsv": ".tsv", "flickr": ".token", "parquet": ".parquet"}
_IMAGE_SUFFIXES = {"a JPEG": ".jpg", "a PNG": ".png", "a WebP": ".webp", "a GIF": ".gif", "a TIFF": ".tif", "an AVIF": ".avif"}


class Written(NamedTuple):
    """One file that was written."""

    path: Path
    num_images: int
    num_captions: int
    num_flattened: int
    """Captions whose tabs or line ends became spaces, since the format has no place for them."""
    image_root: str | None
    """Where the images lie that were taken out of the data; None where paths are as they were."""


def data_set(source: DatasetsSource, *, say: Callable[[str], None]) -> DatasetsSource:
    """A data set that is on this machine, fetched if needed.

    Raises:
        InputError: it is none that can be read.
        MachineError: it cannot be fetched.
    """
    try:
        prepare(Place.of(source), say)
    except Unreadable as error:
        raise InputError(Problem("", f"{source.name}{error.message}", error.hint)) from error
    return source


def import_data(source: OwnData, folder: Path, *, target: Target) -> list[Written]:
    """Write the rows of some files into `folder`, a file a split: `train.json`, or `captions.json` where none is marked.

    Images that a table holds itself are written into `images/` first, byte for byte.

    Args:
        source: of the form `captions`; its `split`, `part` and `limit` choose.
        folder: made if needed; nothing in it is overwritten.
        target: the format to write.

    Raises:
        InputError: the files are wrong, or a file to be written exists.
        MachineError: the folder cannot be written.
    """
    root = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _holds_images(source):
            root = folder / "images"
            source = _with_images_taken_out(source, folder, root)
        splits: list[tuple[str, ...]] = [(name,) for name in marked_splits(source)] or [()]
        wanted = [names for names in splits if not source.split or not names or names[0] in source.split]
        written = [_write_split(source, names, folder, target, root) for names in wanted]
        if root is not None:
            (folder / _TAKEN_OUT).unlink()
        return written
    except OSError as error:
        raise machine_error(error, f"could not write into {folder}") from error


def _write_split(source: OwnData, names: tuple[str, ...], folder: Path, target: Target, root: Path | None) -> Written:
    rows = read_annotations(source.model_copy(update={"split": names}), key="data", training=True)
    path = folder / f"{names[0] if names else 'captions'}{_SUFFIXES.get(target, '.json')}"
    _refuse_to_overwrite(path)
    images = list(_images(rows))
    one_line = target in ("tsv", "flickr")
    flat = [(name, [" ".join(text.split()) if _breaks(text) else text for text in texts]) for name, texts in images]
    with replacing(path) as file:
        file.write(_content(flat if one_line else images, target, split=names[0] if names else "train"))
    num_flattened = sum(_breaks(text) for _, texts in images for text in texts) if one_line else 0
    return Written(path, len(images), len(rows.captions), num_flattened, str(root) if root is not None else None)


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        raise InputError(Problem("", f"{path} exists and is not overwritten", "choose another folder"))


_Images = Sequence[tuple[str, list[str]]]
"""Each image's path with its captions."""


def _images(rows: Annotations) -> Iterator[tuple[str, list[str]]]:
    for row in range(rows.num_rows):
        yield rows.images[rows.image_of_row[row]], [rows.captions[number] for number in rows.captions_of(row)]


def _breaks(text: str) -> bool:
    return any(character in text for character in "\t\r\n")


def _content(images: _Images, target: Target, *, split: str) -> bytes:
    pairs = [(name, text) for name, texts in images for text in texts]
    match target:
        case "json":
            return _a_row_a_line([{"image": name, "caption": texts} for name, texts in images])
        case "retrieval":
            return _a_row_a_line([{"image": name, "image_id": name, "caption": text} for name, text in pairs])
        case "jsonl":
            rows = [{"image": name, "caption": text} for name, text in pairs]
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        case "csv":
            text_file = io.StringIO()
            csv.writer(text_file, lineterminator="\n").writerows([("image", "caption"), *pairs])
            return text_file.getvalue().encode()
        case "tsv":
            return "".join(f"{name}\t{text}\n" for name, text in [("image", "caption"), *pairs]).encode()
        case "flickr":
            return "".join(f"{name}#{place}\t{text}\n" for name, texts in images for place, text in enumerate(texts)).encode()
        case "coco":
            numbers = enumerate((number, text) for number, (_, texts) in enumerate(images) for text in texts)
            return _json(
                {
                    "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(images)],
                    "annotations": [{"id": place, "image_id": number, "caption": text} for place, (number, text) in numbers],
                }
            )
        case "karpathy":
            return _json({"dataset": "tclx", "images": [_of_karpathy(name, texts, split) for name, texts in images]})
        case "parquet":
            return _parquet(pairs)


def _a_row_a_line(rows: Sequence[dict[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n").encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _of_karpathy(name: str, texts: list[str], split: str) -> dict[str, Any]:
    sentences = [{"raw": text, "tokens": clean_caption(text, max_words=10_000).split()} for text in texts]
    folder, _, last = name.rpartition("/")
    return {**({"filepath": folder} if folder else {}), "filename": last, "split": split, "sentences": sentences}


def _parquet(pairs: Sequence[tuple[str, str]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(Problem("--to", "parquet is not written without pyarrow", "pip install 'tclx[parquet]'")) from None
    buffer = io.BytesIO()
    table = pyarrow.table({"image": [name for name, _ in pairs], "caption": [text for _, text in pairs]})
    parquet.write_table(table, buffer)
    return buffer.getvalue()


# What a first look at the files says


def _rows(source: OwnData) -> Iterator[dict[str, Any]]:
    """
    Raises:
        InputError: a file cannot be read.
    """
    for path in source.files:
        try:
            for entry in open_rows(source, path).entries:
                if isinstance(entry.value, dict):
                    yield entry.value
        except Unreadable as error:
            raise InputError(Problem("", f"{path}{error.message}", error.hint)) from error


def marked_splits(source: OwnData) -> list[str]:
    """The splits that the files mark, the largest first.

    Raises:
        InputError: some rows are of none.
    """
    found = Counter(row.get("split") if isinstance(row.get("split"), str) else None for row in _rows(source))
    if None in found and len(found) > 1:
        raise InputError(Problem("", f"{found[None]:,} rows have no split, and others have", "give them one"))
    return [name for name, _ in found.most_common() if name is not None]


class _Held(NamedTuple):
    content: bytes
    path: str


def _held(row: dict[str, Any], source: OwnData) -> _Held | None:
    """The image that a row holds, and what it was called."""
    value = row.get(source.image_column or "image")
    if isinstance(source, DatasetsSource):
        return _held_by_data_set(source, str(value))
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _Held(value["bytes"], value.get("path") or "")
    return None


def _held_by_data_set(source: DatasetsSource, row: str) -> _Held:
    from tclx.data.images import BadImage

    try:
        return _Held(stored_image(source, row).read_bytes(max_pixels=BadImagesSpec().max_pixels), "")
    except BadImage as error:
        raise InputError(Problem("", str(error))) from error


def _holds_images(source: OwnData) -> bool:
    if isinstance(source, DatasetsSource):
        return True
    first = next(_rows(source), None)
    return first is not None and _held(first, source) is not None


def _with_images_taken_out(source: OwnData, folder: Path, root: Path) -> OwnData:
    """The same rows with paths in place of images, which are written under `root`.

    Raises:
        InputError: a row holds none, or there are files in the way.
    """
    rows_file = folder / _TAKEN_OUT
    for path in (root, rows_file):
        _refuse_to_overwrite(path)
    root.mkdir()
    with replacing(rows_file) as file:
        for number, row in enumerate(_rows(source)):
            if source.split and row.get("split", source.split[0]) not in source.split:
                continue
            held = _held(row, source)
            if held is None:
                raise InputError(Problem("", f"row {number} holds no image, and others do"))
            stem = PurePosixPath(held.path).stem
            kind = (kind_of_file(held.content[:HEAD_BYTES]) or "").removesuffix(" image")
            name = f"{number:09d}{'-' + stem if stem else ''}{_IMAGE_SUFFIXES.get(kind, '.image')}"
            (root / name).write_bytes(held.content)
            others = {key: value for key, value in row.items() if isinstance(value, str | int | float | list)}
            file.write((json.dumps({**others, "image": name}, ensure_ascii=False, default=str) + "\n").encode())
    changes = {"files": (str(rows_file),), "image_root": str(root), "source": "files", "image_column": None}
    kept = {key: value for key, value in source.model_dump().items() if key in FilesSource.model_fields}
    return FilesSource(**{**kept, **changes, "form": "captions"})
