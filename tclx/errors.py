"""What went wrong, in words a user can act on: every mistake that is not a bug in tclx.

A `TclxError` is printed without a traceback and ends the command with its exit code. Anything else that escapes is a bug and
keeps its traceback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Location(NamedTuple):
    """A place in a text file; lines and columns count from 1."""

    path: Path | str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class Problem(NamedTuple):
    """One mistake in the user's input: where, which key, what is wrong, what would be right."""

    key: str
    message: str
    hint: str | None = None
    where: Location | None = None
    others: tuple[str, ...] = ()
    """Further keys that take part, where it lies between several."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        key = f"{self.key}: " if self.key else ""
        return f"{place}{key}{self.message}" + (f" ({self.hint})" if self.hint else "")


def nearest_place(key: str, origins: Mapping[str, Location]) -> Location | None:
    """Where a key was written, or the nearest section around it that was, or the user's own file."""
    while key and key not in origins:
        key = key.rpartition("." if "." in key else "[")[0]
    return origins.get(key)


def distance(where: Location | None, own: Location | None) -> int:
    """How far a place is from the user's hands: the command line, then the file that was named, then those it extends."""
    if where is None:
        return 3
    if not isinstance(where.path, Path):
        return 0
    return 1 if own is not None and where.path == own.path else 2


def placed(problem: Problem, origins: Mapping[str, Location]) -> Problem:
    """The problem at its key's line; or at a key at odds with it that the user wrote, if the user did not write that.

    Args:
        problem: without a place.
        origins: key -> where it was written; under the empty key the file that was named.
    """
    where, own = nearest_place(problem.key, origins), origins.get("")
    rivals = [key for key in problem.others if key in origins and distance(origins[key], own) < distance(where, own)]
    if not rivals:
        return problem._replace(where=where)
    rival = min(rivals, key=lambda key: distance(origins[key], own))
    there = f" ({where})" if where else ""
    message = f"at odds with {problem.key}{there}: {problem.message}"
    return Problem(rival, message, problem.hint, origins[rival])


MAX_OF_A_KIND = 20
"""Problems of one kind that are printed; the others are counted."""

_VARIABLE_WORDS = re.compile(r"`[^`]*`|\d+")


def _said(problems: Sequence[Problem]) -> str:
    """A line each, in their order; what says the same of many keys or rows is cut short."""
    lines, seen = [], Counter[str]()
    for problem in problems:
        kind = _VARIABLE_WORDS.sub("", problem.message)
        seen[kind] += 1
        if seen[kind] <= MAX_OF_A_KIND:
            lines.append(str(problem))
    for kind, count in seen.items():
        if count > MAX_OF_A_KIND:
            lines.append(f"and {count - MAX_OF_A_KIND:,} more like these: {' '.join(kind.split())}")
    return "\n".join(lines)


class TclxError(Exception):
    """The parent of every mistake that a user can fix."""

    exit_code = 1


class InputError(TclxError):
    """The spec, its files or the command line are wrong; nothing has been started. Carries every problem found."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        super().__init__(_said(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.problems  # ranks send it to each other


class MachineError(TclxError):
    """This machine cannot do what was asked: a full disk, a missing device, a folder that cannot be written."""

    exit_code = 3


class StandStill(MachineError):
    """Something that was waited for shows no sign of life any more. Another start, perhaps on another node, may get on."""


class RunFailed(TclxError):
    """A run started and could not go on, for a reason that the message explains (a non-finite loss, for instance)."""

    exit_code = 1


class LostPeer(RunFailed):
    """Another process of the run is gone. A consequence: the cause is with the one that went."""


class Interrupted(TclxError):
    """The user or the machine asked a run to stop; it was saved and `tclx run` continues it."""

    exit_code = 130
