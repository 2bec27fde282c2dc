"""One thing that the doctor has looked at."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "info", "warning", "problem"]


class Check(NamedTuple):
    """What was found, and what to do."""

    name: str
    verdict: Verdict
    found: str
    advice: str | None = None
    """What to do, where something should be done."""
