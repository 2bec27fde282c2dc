"""The table of sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tclx.track.jsonl import Row
from tclx.track.sink import Sink, TrackedRun
from tclx.track.tensorboard import tensorboard_sink
from tclx.track.wandb.process import wandb_sink

SINKS: dict[str, Callable[[TrackedRun], AbstractContextManager[Sink] | None]] = {
    "tensorboard": tensorboard_sink,
    "wandb": wandb_sink,
}
"""By its key under `tracking`: what opens it for a run, or returns None where the spec does not ask for it."""


@contextmanager
def open_sinks(run: TrackedRun) -> Iterator[Sink]:
    """All sinks that the spec asks for, as one; its end waits for what has not arrived, within each one's bound."""
    with ExitStack() as stack:
        yield _Several([stack.enter_context(sink) for opening in SINKS.values() if (sink := opening(run)) is not None])


class _Several(Sink):
    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def row(self, row: Row) -> None:
        for sink in self._sinks:
            sink.row(row)
