"""What copies of a run's metrics have in common. metrics.jsonl is written first and is the truth; sinks are told afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.track.jsonl import Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrackedRun:
    """What a sink may know of the run that it copies; rank 0's."""

    folder: RunFolder
    spec: ExperimentSpec
    rows: Sequence[Row]
    """All that metrics.jsonl has when the sink is opened; what follows is told row by row."""
    say: Say
    """Receives what a user wants to know."""
    in_a_hurry: Callable[[], bool]
    """Whether the run was asked to stop."""


class Sink:
    """A copy of a run's metrics for people, as long as the run trains. No failure of one stops a run."""

    def row(self, row: Row) -> None:
        """A row was added to metrics.jsonl."""
