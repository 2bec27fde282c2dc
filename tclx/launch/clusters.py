"""The table of clusters: who can be asked about the jobs of a backend. This machine's own queue is none: its files say all."""

from __future__ import annotations

from tclx.launch.jobs import Cluster
from tclx.launch.slurm.jobs import SlurmJobs

CLUSTERS: dict[str, Cluster] = {
    "slurm": SlurmJobs(),
}
"""By `launch.backend`."""
