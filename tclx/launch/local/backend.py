"""This machine as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tclx.errors import InputError, Problem
from tclx.runs import Job

if TYPE_CHECKING:
    from tclx.launch.order import PlannedRun
    from tclx.launch.prepare import Outcome, Say


class Local:
    """Runs in the foreground, or in a queue that outlives the terminal."""

    waits = True

    def start(self, runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, say: Say) -> list[Outcome]:
        from tclx.launch.local import queue

        return (queue.detach if detach else queue.launch)(runs, runs_dir=runs_dir, again=again, say=say)

    def log(self, job: Job) -> Path:
        return Path(job.folder) / "queue.log"

    def cancel(self, jobs: Sequence[Job], *, say: Say) -> None:
        """The queue passes over runs that were asked to stop."""

    def script(self, runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
        raise InputError(Problem("launch.backend", f"{runs[0].plan.run_id} is a local run", "`--backend slurm` submits it"))
