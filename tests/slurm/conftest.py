"""The real SLURM cluster, for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster, found by SLURM's commands through os.environ; `just slurm-up` starts it."""
    cluster = Cluster()
    if not cluster.is_up():
        pytest.skip("the SLURM test cluster is not up: `just slurm-up` starts it (Debian, root)")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster
