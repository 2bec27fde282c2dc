"""Arrow's tables in columns, read a few thousand rows at a time: Parquet, and folders that `datasets` saved to disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tclx.data.formats.entry import Entry, Unreadable
from tclx.files import Unreadable as UnreadableFile
from tclx.files import read_object

ROWS_AT_ONCE = 8192


def read_parquet(path: Path) -> Iterator[Entry]:
    """The rows as objects, under the names of the columns; what is neither text nor a number is read, too, and refused by use.

    Raises:
        Unreadable: pyarrow is not installed, or the file is damaged.
    """
    pyarrow = _pyarrow("is a Parquet table")
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            yield from _entries(table.iter_batches(batch_size=ROWS_AT_ONCE))
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(f" is a Parquet table that cannot be read: {' '.join(str(error).split())}") from error


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in (_SPLITS, _STATE))


_SPLITS, _STATE = "dataset_dict.json", "state.json"


def read_saved(folder: Path) -> Iterator[Entry]:
    """The rows of a folder of `datasets`, under the names of their columns; where it has splits, each says its own as `split`.

    Raises:
        Unreadable: as `read_parquet`, or a file of it is missing.
    """
    pyarrow = _pyarrow("was saved by `datasets`")
    try:
        splits = read_object(folder / _SPLITS)["splits"] if (folder / _SPLITS).is_file() else [None]
        for split in splits:
            place = folder / split if split is not None else folder
            for part in read_object(place / _STATE)["_data_files"]:
                with pyarrow.memory_map(str(place / part["filename"])) as file, pyarrow.ipc.open_stream(file) as batches:
                    own = {"split": split} if split is not None else {}
                    for entry in _entries(batches):
                        yield entry._replace(value={**entry.value, **own}, name=f"{split or part['filename']}")
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise Unreadable(f" was saved by `datasets` and cannot be read: {' '.join(str(error).split())}") from error
    except UnreadableFile as error:
        raise Unreadable(f": {error.path}: {error.why}") from error


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise Unreadable(f" {what}", "pip install 'tclx[parquet]' reads it") from None
    return pyarrow


def _entries(batches: Iterable[Any]) -> Iterator[Entry]:
    number = 0
    for batch in batches:
        rows = batch.to_pylist()
        for place, row in enumerate(rows, number):
            yield Entry(place, None, {name: _path_alone(value) for name, value in row.items()}, "rows")
        number += len(rows)


def _path_alone(value: Any) -> Any:
    """The path of an image that `datasets` keeps by its path; anything else as it is."""
    by_path = isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None
    return value["path"] if by_path else value
