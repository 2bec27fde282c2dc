"""What every place where runs run answers, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tclx.launch.local.backend import Local
from tclx.launch.slurm.backend import Slurm
from tclx.runs import Job

if TYPE_CHECKING:
    from tclx.launch.order import PlannedRun
    from tclx.launch.prepare import Outcome, Say


class Backend(Protocol):
    """A place where runs run, by its name under `launch.backend`.

    Whatever hands runs over first writes whom it hands them to (`Job`, with a token that no other submission has), so that
    nothing is handed over twice; where a run stands is then judged from its folder and its job (`tclx.launch.watch`).
    """

    waits: bool
    """Whether `start` returns when the runs have ended, unless they are detached."""

    def start(self, runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, say: Say) -> list[Outcome]:
        """Hand over what is neither finished nor on its way; returns what became of each run.

        Raises:
            InputError, MachineError: this place refuses one of the runs; none has been handed over.
        """
        ...

    def log(self, job: Job) -> Path:
        """What was printed for a run before its own process printed anything."""
        ...

    def cancel(self, jobs: Sequence[Job], *, say: Say) -> None:
        """End jobs whose runs have been asked to save and stop."""
        ...

    def script(self, runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
        """What would be handed over, as text.

        Raises:
            InputError: there is no such text.
        """
        ...


BACKENDS: dict[str, Backend] = {
    "local": Local(),
    "slurm": Slurm(),
}
"""By `launch.backend`, in the order in which a command serves them."""


def by_backend(runs: Sequence[PlannedRun]) -> Iterator[tuple[Backend, list[PlannedRun]]]:
    """The runs of each place that has any, in the order of the table."""
    for name, backend in BACKENDS.items():
        if own := [run for run in runs if run.spec.launch.backend == name]:
            yield backend, own
