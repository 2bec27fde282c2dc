"""metrics.jsonl: one JSON object a row, the source of truth for every number of a run.

A killed process can leave half a line at the end, and rows that a resumed run is about to write again. Both are removed before
anything is appended.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, machine_error, parse_json, write_atomically

Row = dict[str, Any]


class MetricsFile:
    """Appends rows to a JSON-lines file; each is in the operating system's hands when `append` returns.

    Raises:
        MachineError: the disk is full or the file cannot be written; rows written before are intact.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: Mapping[str, float | int | str | None]) -> None:
        """Add one row; it must carry its `step`.

        JSON has no NaN or infinity: such a value becomes null, and its name is listed under `nonfinite`.
        """
        if "step" not in row:
            raise ValueError("a row of metrics needs its step")
        nonfinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        finite = {name: None if name in nonfinite else value for name, value in row.items()}
        self._write(json.dumps({**finite, "nonfinite": nonfinite} if nonfinite else finite, allow_nan=False) + "\n")

    def _write(self, line: str) -> None:
        try:
            append_whole(self._path, line.encode())
        except OSError as error:
            raise machine_error(error, f"could not write {self._path}") from error

    def sync(self) -> None:
        """Wait until all rows are on the disk. A checkpoint must never be newer than the rows that led to it."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def truncate_after(self, step: int) -> list[Row]:
        """Drop every row of a later step, and half a line at the end; returns the rows that stay."""
        if not self._path.exists():
            return []
        rows = [row for row in read(self._path) if row["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def read(path: Path) -> list[Row]:
    """All complete rows of a metrics file; half a line at its end is left out.

    Raises:
        InputError: a line that is not the last is no row: the file was edited or is none of ours.
    """
    if not path.is_file():
        raise Unreadable(path, "it is not a regular file")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was never completed
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InputError(Problem(key="", message=f"line {number} of {path} is not a row of metrics", hint="was it edited?"))
        rows.append(row)
    return rows


def numbers(row: Row) -> dict[str, float]:
    """The metrics of a row, NaN for those that are not finite; its step, text and what is null are left out."""
    nonfinite = row.get("nonfinite", ())
    kept: dict[str, float] = {}
    for name, value in row.items():
        if name in nonfinite or (isinstance(value, float) and not math.isfinite(value)):
            kept[name] = math.nan
        elif name != "step" and isinstance(value, int | float):
            kept[name] = value
    return kept


def append_whole(path: Path, record: bytes, *, create: bool = True) -> None:
    """Append all of a record or nothing: half of one would be glued to the next once the disk has space again.

    Raises:
        OSError: it could not be written, or the file is not there and is not to be created.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0), 0o644)
    try:
        size = os.fstat(file).st_size
        try:
            while record:
                record = record[os.write(file, record) :]
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)
