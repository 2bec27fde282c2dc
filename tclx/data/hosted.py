"""Data sets that the `datasets` library keeps: of the hub by name, or a folder; its Arrow files are read by row.

What the library has prepared on this machine is read where it lies and nobody is asked for it, so that a run is the same with a
network and without one. Only `prepare` fetches.
"""

from __future__ import annotations

import glob
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx import hub
from tclx.data.formats.arrow import is_saved_to_disk
from tclx.data.formats.entry import Entry, Unreadable
from tclx.data.sources.source import stamp_of
from tclx.errors import MachineError

if TYPE_CHECKING:
    from tclx.spec.data import DatasetsSource

ROWS_AT_ONCE = 8192
HASH_SHOWN = 12
"""Digits of a commit."""


class Place(NamedTuple):
    """A data set as a spec names it."""

    name: str
    """`owner/name` on the hub, or a folder."""
    subset: str | None
    revision: str | None

    @classmethod
    def of(cls, source: DatasetsSource) -> Place:
        return cls(source.name, source.subset, source.revision)

    @property
    def is_folder(self) -> bool:
        return self.name.startswith("/")


class NotPrepared(Unreadable):
    """The data set is not on this machine in the form in which rows can be read."""


class Opened(NamedTuple):
    """A data set on this machine."""

    what: str
    """In words."""
    splits: Mapping[str, Any]
    """By name; the images are neither read nor decoded."""


@cache
def opened(place: Place) -> Opened:
    """Map the files of a data set; once in a process, and those that are forked from it share them.

    Raises:
        NotPrepared: `prepare` has to come first.
        Unreadable: the library is not installed, cannot read the data, or needs to be told which subset is meant.
    """
    datasets = _library()
    with _library_errors(f"`datasets` {datasets.__version__} cannot read it"):
        if place.is_folder and is_saved_to_disk(Path(place.name)):
            whole, what = datasets.load_from_disk(place.name), "a folder that `datasets` saved"
            splits = whole if isinstance(whole, dict) else {str(whole.split or "train"): whole}
        elif place.is_folder:
            builder = _folder_builder(place)
            if not Path(builder.cache_dir).is_dir():
                raise NotPrepared(f": {datasets.config.HF_DATASETS_CACHE} has no rows of it yet", _how_to_prepare(place))
            splits, what = builder.as_dataset(), "a folder that `datasets` reads"
        else:
            builder = _prepared_builder(place)
            splits, what = builder.as_dataset(), f"a data set of the hub, commit {str(builder.hash)[:HASH_SHOWN]}"
    more = f", subset {place.subset}" if place.subset is not None else ""
    # Objects are taken apart into columns `object.key`; images stay as they are stored.
    return Opened(what + more, {str(name): split.flatten() for name, split in splits.items()})


def prepare(place: Place, say: Callable[[str], None]) -> None:
    """Fetch a data set and write the rows as the library keeps them, where this machine does not have them yet.

    Args:
        place: the data set.
        say: told what is done.

    Raises:
        Unreadable: as `opened`.
        MachineError: the hub cannot be reached or does not have it, or there is no room.
    """
    try:
        there, verb = opened(place), "is here already"
    except NotPrepared:
        there, verb = None, "is here now"
    if there is None:
        datasets = _library()
        if not place.is_folder:
            hub.require_data_set(place.name, revision=place.revision)
        with _library_errors(f"`datasets` {datasets.__version__} cannot prepare it"):
            builder = (
                _folder_builder(place)
                if place.is_folder
                else datasets.load_dataset_builder(f"hf://datasets/{place.name}", place.subset, revision=place.revision)
            )
            say(f"{place.name}: {_cost(place, builder.info)} into {builder.cache_dir}")
            if sys.stderr.isatty():
                datasets.enable_progress_bars()
            builder.download_and_prepare()
            datasets.disable_progress_bars()
        there = opened(place)
    rows = ", ".join(f"{name} {split.num_rows:,}" for name, split in there.splits.items())
    say(f"{place.name}: {verb}: {there.what}; rows: {rows}")


def image_column(place: Place, wanted: str | None) -> str:
    """The column that holds the images.

    Args:
        place: the data set.
        wanted: as the spec has it; None where it is the only one.

    Raises:
        Unreadable: there is none, or one of several has to be named; or as `opened`.
    """
    from datasets import Image

    splits = opened(place).splits
    features = next(iter(splits.values())).features
    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    if wanted is not None and wanted not in found:
        said = f"its columns of images are {', '.join(found)}" if found else f"none of {', '.join(features)} does"
        raise Unreadable(f": `{wanted}`, which `image_column` names, holds no images", said)
    if not found:
        addresses = [name for name in features if "url" in name.casefold()]
        hint = "it names web addresses: fetch the images, with img2dataset for instance" if addresses else None
        raise Unreadable(f" has no column of images: {', '.join(features)}", hint)
    if wanted is None and len(found) > 1:
        raise Unreadable(f" has several columns of images: {', '.join(found)}", f"say which: image_column: {found[0]}")
    return wanted or found[0]


def entries(place: Place, wanted: str | None) -> Iterator[Entry]:
    """Every row without its image, which stands under the name that `StoredRow` reads; all splits, each row saying its own.

    Columns of texts and numbers come under their names, those within objects under `object.key`. A row's own `split` counts
    before the split that the library keeps it in.

    Raises:
        Unreadable: as `image_column`.
    """
    column = image_column(place, wanted)
    for split, rows in opened(place).splits.items():
        plain = [name for name, feature in rows.features.items() if _is_plain(feature)]
        texts = rows.select_columns(plain).with_format("arrow")
        for start in range(0, rows.num_rows, ROWS_AT_ONCE):
            values = texts[start : start + ROWS_AT_ONCE].to_pylist() if plain else [{}] * ROWS_AT_ONCE
            for number in range(start, min(start + ROWS_AT_ONCE, rows.num_rows)):
                name = f"{split}/{number}"
                yield Entry(number, None, {"split": split, **values[number - start], "image": name, column: name}, split)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """The image of a row; a `StoredImage`."""

    place: Place
    column: str | None
    row: str
    """`SPLIT/NUMBER`."""

    def __str__(self) -> str:
        split, number = self._split_and_number
        return f"{self.place.name}: {split}[{number}]"

    def read_bytes(self, *, max_pixels: int) -> bytes:
        from tclx.data.images import check_num_bytes, read_bytes  # planning opens none

        held = self._held()
        if isinstance(held, Path):
            return read_bytes(held, max_pixels=max_pixels)
        check_num_bytes(str(self), len(held), max_pixels=max_pixels)
        return held

    def read_size(self) -> tuple[int, int]:
        """Width and height from the header; raises as `read_bytes`."""
        from tclx.data.images import read_size, size_in

        held = self._held()
        return read_size(held) if isinstance(held, Path) else size_in(BytesIO(held), str(self))

    def stamp(self) -> bytes | None:
        split, number = self._split_and_number
        stamp = _stamp(self.place, split)
        return None if stamp is None else stamp + f"\0{number}".encode()

    def _held(self) -> bytes | Path:
        """What the row holds: an image, or the path of one."""
        from tclx.data.images import BadImage

        split, number = self._split_and_number
        try:
            held = _images(self.place, self.column, split)[number].column(0)[0].as_py() or {}
        except Unreadable as error:
            raise BadImage(str(self), f"cannot be read any more{error.message}", "missing") from error
        if held.get("bytes") is not None:
            return bytes(held["bytes"])
        if not held.get("path"):
            raise BadImage(str(self), "the row holds no image", "missing")
        return Path(held["path"])

    @property
    def _split_and_number(self) -> tuple[str, int]:
        split, _, number = self.row.rpartition("/")
        return split, int(number)


@cache
def _images(place: Place, wanted: str | None, split: str) -> Any:
    """The images of a split as Arrow's tables of one row each."""
    return opened(place).splits[split].select_columns([image_column(place, wanted)]).with_format("arrow")


@cache
def _stamp(place: Place, split: str) -> bytes | None:
    """Of all files of a split."""
    stamps = [stamp_of(Path(file["filename"])) for file in opened(place).splits[split].cache_files]
    return b"\0".join(stamp for stamp in stamps if stamp is not None) if all(stamps) else None


def _is_plain(feature: Any) -> bool:
    """Texts, numbers, and lists of them."""
    from datasets import ClassLabel, List, Value

    inner = feature.feature if isinstance(feature, List) else feature
    return isinstance(inner, ClassLabel) or (isinstance(inner, Value) and not str(inner.dtype).endswith("binary"))


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise Unreadable(" is read by the package `datasets`, which is not installed", "pip install 'tclx[datasets]'") from None
    datasets.disable_progress_bars()
    return datasets


def _folder_builder(place: Place) -> Any:
    return _library().load_dataset_builder(place.name, place.subset)


def _prepared_builder(place: Place) -> Any:
    """Of the newest preparation of a data set of the hub: of its revision and subset where they are named.

    Raises:
        NotPrepared: there is none.
        Unreadable: there are several subsets.
    """
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache  # what the library itself takes without a network

    *owner, last = place.name.split("/")
    root = Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(last)]))
    subset = glob.escape(place.subset) if place.subset is not None else "*"
    folders = [info.parent for info in root.glob(f"{subset}/*/{place.revision or '*'}/dataset_info.json")]
    if not folders:
        raise NotPrepared(f" is not among the data sets that {config.HF_DATASETS_CACHE} holds", _how_to_prepare(place))
    subsets = sorted({folder.parts[-3] for folder in folders})
    if len(subsets) > 1:
        raise Unreadable(f" has several subsets here: {', '.join(subsets)}", f"say which: subset: {subsets[0]}")
    newest = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
    own_subset, version, commit = newest.parts[-3:]
    return Cache(repo_id=place.name, dataset_name=last, config_name=own_subset, version=version, hash=commit)


def _cost(place: Place, info: Any) -> str:
    """What preparing does, and how much it is where the data set says so."""
    fetched, written = (f" {size / 2**20:,.1f} MiB" if size else "" for size in (info.download_size, info.dataset_size))
    return f"writing{written}" if place.is_folder else f"fetching{fetched}, and writing{written}"


def _how_to_prepare(place: Place) -> str:
    return "`tclx fetch SPEC` " + ("prepares them" if place.is_folder else "fetches it")


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """
    Raises:
        Unreadable: for whatever the library raises; of the machine's own faults MachineError.
    """
    try:
        yield
    except (Unreadable, MachineError):
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise MachineError(f"{what}: {error.strerror}: {error.filename or ''}".rstrip(": ")) from error
        raise Unreadable(f": {what}: {_said(error)}") from error
    except Exception as error:  # it raises what its readers do, and its own
        raise Unreadable(f": {what}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """In one line, and not in a page of them."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
