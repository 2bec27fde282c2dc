"""What is wrong with a file, row by row: shown up to a number, counted to the end."""

from __future__ import annotations

from tclx.errors import InputError, Problem

MAX_PROBLEMS_SHOWN = 20


class Problems:
    """Collects problems, keeps the first 20 and counts them all."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.kept: list[Problem] = []
        self.count = 0

    def add(self, message: str, hint: str | None = None) -> None:
        self.count += 1
        if len(self.kept) < MAX_PROBLEMS_SHOWN:
            self.kept.append(Problem(self.key, message, hint))

    def raise_if_any(self) -> None:
        if self.count > len(self.kept):
            self.kept.append(Problem(self.key, f"{self.count:,} problems in all; the first {len(self.kept)} are shown"))
        if self.kept:
            raise InputError(*self.kept)
