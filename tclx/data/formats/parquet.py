"""Parquet: a table in columns, read a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tclx.data.formats.entry import Entry, Unreadable

ROWS_AT_ONCE = 8192


def read_parquet(path: Path) -> Iterator[Entry]:
    """The rows as objects, under the names of the columns; what is neither text nor a number is read, too, and refused by use.

    Raises:
        Unreadable: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Unreadable(" is a Parquet table", "pip install 'tclx[parquet]' reads it") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                rows = batch.to_pylist()
                yield from (Entry(place, None, row, "rows") for place, row in enumerate(rows, number))
                number += len(rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(f" is a Parquet table that cannot be read: {' '.join(str(error).split())}") from error
