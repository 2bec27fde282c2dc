"""A SLURM cluster as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tclx.launch.slurm import commands
from tclx.runs import Job

if TYPE_CHECKING:
    from tclx.launch.order import PlannedRun
    from tclx.launch.prepare import Outcome, Say


class Slurm:
    """Jobs of a cluster; `start` submits and returns."""

    waits = False

    def start(self, runs: Sequence[PlannedRun], *, runs_dir: Path, again: bool, detach: bool, say: Say) -> list[Outcome]:
        from tclx.launch.slurm.submit import submit

        return submit(runs, runs_dir=runs_dir, again=again, say=say)

    def log(self, job: Job) -> Path:
        return Path(job.folder) / f"{job.job_id}_0_log.out"

    def cancel(self, jobs: Sequence[Job], *, say: Say) -> None:
        ids = [job.job_id for job in jobs if job.job_id]
        if ids:
            with suppress(commands.SlurmRefused):  # one of them ended a moment ago
                commands.patiently(lambda: commands.call(["scancel", *ids]), say=say)

    def script(self, runs: Sequence[PlannedRun], *, runs_dir: Path) -> str:
        from tclx.launch.slurm.submit import script_of

        return script_of(runs, runs_dir=runs_dir)
