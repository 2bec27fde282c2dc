"""What went wrong, in words a user can act on: every mistake that is not a bug in tclx.

A `TclxError` is printed without a traceback and ends the command with its exit code. Anything else that escapes is a bug and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


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

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        key = f"{self.key}: " if self.key else ""
        return f"{place}{key}{self.message}" + (f" ({self.hint})" if self.hint else "")


def nearest_place(key: str, origins: Mapping[str, Location]) -> Location | None:
    """Where a key was written, or the nearest section around it that was."""
    while key and key not in origins:
        key = key.rpartition("." if "." in key else "[")[0]
    return origins.get(key)


class TclxError(Exception):
    """The parent of every mistake that a user can fix."""

    exit_code = 1


class InputError(TclxError):
    """The spec, its files or the command line are wrong; nothing has been started. Carries every problem found."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


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
