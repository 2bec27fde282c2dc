"""What SLURM says of its jobs."""

from __future__ import annotations

from collections.abc import Sequence

from tclx.errors import MachineError
from tclx.launch.jobs import Jobs
from tclx.launch.slurm import commands


class SlurmJobs:
    """squeue for all jobs at once, then sacct for those that it does not list."""

    title = "SLURM"

    def ask(self, job_ids: Sequence[str]) -> Jobs:
        if not job_ids:
            return Jobs({})
        try:
            states = commands.squeue(job_ids)
        except MachineError as error:
            return Jobs({}, str(error))
        missing = [job_id for job_id in job_ids if job_id not in states]
        try:
            return Jobs({**commands.sacct(missing), **states})
        except MachineError:
            return Jobs(states)  # squeue has answered: a job that it does not list is over; sacct would only say how
