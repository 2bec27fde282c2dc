"""What every place where runs run answers, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tclx.errors import InputError, Problem
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


class _Local:
    """This machine: in the foreground, or by a queue that outlives the terminal."""

    waits = True

    def start(self, runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, say: Say) -> list[Outcome]:
        from tclx.launch import local

        return (local.detach if detach else local.launch)(runs, runs_dir=runs_dir, again=again, say=say)

    def log(self, job: Job) -> Path:
        return Path(job.folder) / "queue.log"

    def cancel(self, jobs: Sequence[Job], *, say: Say) -> None:
        """The queue passes over runs that were asked to stop."""

    def script(self, runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
        raise InputError(Problem("launch.backend", f"{runs[0].plan.run_id} is a local run", "`--backend slurm` submits it"))


class _Slurm:
    """A SLURM cluster."""

    waits = False

    def start(self, runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, say: Say) -> list[Outcome]:
        from tclx.launch.submit import submit

        return submit(runs, runs_dir=runs_dir, again=again, say=say)

    def log(self, job: Job) -> Path:
        return Path(job.folder) / f"{job.job_id}_0_log.out"

    def cancel(self, jobs: Sequence[Job], *, say: Say) -> None:
        from tclx.launch import slurm

        ids = [job.job_id for job in jobs if job.job_id]
        if ids:
            with suppress(slurm.SlurmRefused):  # one of them ended a moment ago
                slurm.patiently(lambda: slurm.call(["scancel", *ids]), say=say)

    def script(self, runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
        from tclx.launch.submit import script_of

        return script_of(runs, runs_dir=runs_dir)


BACKENDS: dict[str, Backend] = {
    "local": _Local(),
    "slurm": _Slurm(),
}
"""By `launch.backend`, in the order in which a command serves them."""


def by_backend(runs: Sequence[PlannedRun]) -> Iterator[tuple[Backend, list[PlannedRun]]]:
    """The runs of each place that has any, in the order of the table."""
    for name, backend in BACKENDS.items():
        if own := [run for run in runs if run.spec.launch.backend == name]:
            yield backend, own
