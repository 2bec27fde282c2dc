"""What was measured, of which specs? A JSON file beside the table's, small enough to be kept with the text around the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tclx.errors import InputError, Problem
from tclx.files import read_as, write_atomically
from tclx.launch.order import started_from
from tclx.report.bootstrap import Interval
from tclx.report.comparison import Verdict
from tclx.report.results import Spread
from tclx.spec.difference import beyond_defaults, flat
from tclx.spec.load import Experiment

VERSION = 1


def interval_between(low: float | None, high: float | None) -> Interval | None:
    """None where there is none."""
    return Interval(low, high) if low is not None and high is not None else None


@dataclass(frozen=True)
class RecordedRun:
    """One seed."""

    run_id: str
    seed: int
    metrics: dict[str, float]
    """Those of the table, by names without their split."""
    commit: str | None = None
    """Of the code that trained it; ends with `+` where that had been changed since."""
    torch: str | None = None
    """Its version."""
    device: str | None = None


@dataclass(frozen=True)
class RecordedCell:
    """One metric of a row."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    chance: float | None
    best: bool = False
    """Beyond chance, and beyond noise of every other row."""

    @property
    def spread(self) -> Spread:
        """As tables show it."""
        return Spread(self.mean, self.deviation, interval_between(self.low, self.high))


@dataclass(frozen=True)
class RecordedDifference:
    """To the row that differences are taken from."""

    value: float
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def interval(self) -> Interval | None:
        """95 %; None where nothing tells it."""
        return interval_between(self.low, self.high)


@dataclass(frozen=True)
class RecordedRow:
    """One row."""

    label: str
    spec: dict[str, str]
    """What its runs were trained from, beyond defaults, by dotted key; of paths the last part. Empty where nothing says."""
    runs: list[RecordedRun]
    cells: dict[str, RecordedCell]
    difference: RecordedDifference | None = None


@dataclass(frozen=True)
class Record:
    """A table's numbers."""

    version: int
    split: str
    against: str | None
    """The row that differences were taken from, and by which metric."""
    compared: str | None
    rows: list[RecordedRow]

    def row(self, label: str) -> RecordedRow | None:
        """The row of that name."""
        return next((row for row in self.rows if row.label == label), None)


def read_record(path: Path) -> Record | None:
    """None where there is none yet.

    Raises:
        InputError: it is damaged, or of a newer version.
    """
    if not path.exists():
        return None
    record = read_as(path, Record)
    if record.version > VERSION:
        raise InputError(Problem("", f"{path} was written by a newer version of tclx"))
    return record


def write_record(path: Path, record: Record) -> None:
    """Replace the file.

    Raises:
        MachineError: it cannot be written.
    """
    write_atomically(path, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")


def recorded_spec(experiments: Sequence[Experiment]) -> dict[str, str]:
    """What runs are trained from, but for their seeds; also the run that they start from."""
    return _leaves(experiments[0]) if experiments else {}


def _leaves(experiment: Experiment) -> dict[str, str]:
    content = beyond_defaults(experiment.spec)
    for key in ("name", "variant", "seed"):
        content.pop(key, None)
    before = started_from(experiment)
    beginning = {f"init.{key}": value for key, value in _leaves(before).items()} if before is not None else {}
    return {**flat(_with_last_parts(content)), **beginning}


def _with_last_parts(value: Any) -> Any:
    """Where data lies is another on every machine."""
    if isinstance(value, Mapping):
        return {key: _with_last_parts(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_last_parts(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def changed_keys(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`optim.learning_rate 0.003, now 0.002`, for each key in which they differ."""
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    return [f"{key} {before.get(key, 'at its default')}, now {now.get(key, 'at its default')}" for key in keys]


def without_marks(row: RecordedRow) -> RecordedRow:
    """The row in other company: what was best, and the difference from another, is not known any more."""
    return replace(row, cells={name: replace(cell, best=False) for name, cell in row.cells.items()}, difference=None)
