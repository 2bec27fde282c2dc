"""What a cluster answers about its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LIVING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING",
          "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT")  # fmt: skip
"""States of a job that is not over."""


class JobState(NamedTuple):
    """One job, as its cluster sees it; the words are SLURM's, and another backend translates its own to them."""

    job_id: str
    """`123`, or `123_4` in an array."""
    state: str
    """`RUNNING`, `PENDING`, `OUT_OF_MEMORY`, ..."""
    reason: str = ""
    """Why it waits or how it ended, in the cluster's words."""
    nodes: str = ""
    name: str = ""

    @property
    def lives(self) -> bool:
        """Whether it may still do something."""
        return self.state in LIVING


class Jobs(NamedTuple):
    """What a cluster says of some jobs."""

    states: dict[str, JobState]
    """By job id; a job that the cluster no longer lists is missing."""
    silent: str | None = None
    """Why it could not be asked, where it could not."""


class Cluster(Protocol):
    """Whoever runs jobs that this process does not see."""

    title: str
    """Its name in messages."""

    def ask(self, job_ids: Sequence[str]) -> Jobs:
        """What it says of jobs, in one or two calls for all of them; it never raises."""
        ...
