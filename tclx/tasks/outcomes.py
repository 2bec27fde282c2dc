"""What each query of an evaluation reached: enough for intervals and paired comparisons without the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tclx.files import Unreadable, read_as, write_atomically


class Queries(NamedTuple):
    """What was asked."""

    fingerprint: str
    """The same for the same queries in the same order, and for no others: see `fingerprint`."""
    clusters: Sequence[int]
    """[Q] the number of the image that each query is about. Captions of one image succeed and fail together, so it is images
    that are drawn again for an interval. All queries of a task number the images alike."""


class Outcome(NamedTuple):
    """One number for each query."""

    queries: Queries
    values: Sequence[float]
    """[Q] a rank from 0, a share of right from 0 to 1, or the number of a class."""


Outcomes: TypeAlias = Mapping[str, Outcome]
"""By the names that the task's metrics give them (`Metric.statistic`)."""

MAX_NUMBER = 2**40
"""More than any image or rank; a damaged file may say anything."""


def fingerprint(*said: object) -> str:
    """A name for queries, from all that tells them from others: JSON values."""
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class _Stored:
    values: list[float]
    queries: str


@dataclass(frozen=True)
class _File:
    queries: dict[str, list[int]]
    """Their clusters, by fingerprint."""
    outcomes: dict[str, _Stored]


def write_outcomes(path: Path, outcomes: Outcomes, *, origin: Mapping[str, Any]) -> None:
    """Put outcomes into a file; `origin` says which weights they are of.

    Raises:
        MachineError: the file cannot be written.
    """
    asked = {one.queries.fingerprint: list(one.queries.clusters) for one in outcomes.values()}
    reached = {name: {"queries": one.queries.fingerprint, "values": list(one.values)} for name, one in outcomes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**origin, "queries": asked, "outcomes": reached}, separators=(",", ":")))


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """What `write_outcomes` wrote.

    Raises:
        Unreadable: it is not there, or not what was written.
    """
    stored = read_as(path, _File)
    found = {}
    for name, one in stored.outcomes.items():
        clusters = stored.queries.get(one.queries)
        if clusters is None:
            raise Unreadable(path, f"the queries of {name} are not in it")
        if len(clusters) != len(one.values) or not clusters:
            raise Unreadable(path, f"{name} has {len(one.values)} outcomes of {len(clusters)} queries")
        if not _all_between(clusters, 0, MAX_NUMBER) or not _all_between(one.values, 0, MAX_NUMBER):
            raise Unreadable(path, f"a number of {name} is none that an evaluation gives")
        found[name] = Outcome(Queries(one.queries, clusters), one.values)
    return found


def _all_between(values: Iterable[float], low: float, high: float) -> bool:
    return all(math.isfinite(value) and low <= value <= high for value in values)
