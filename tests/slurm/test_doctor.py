"""Promises of `tclx doctor` on the real cluster: what SLURM is asked, it answers, and it is read right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.doctor import slurm as doctor_slurm
from tclx.doctor.check import Check
from tclx.doctor.machine import Mount, examine
from tests.slurm.cluster import Cluster

PARTITIONS = {"partition gpu (default)", "partition short", "partition low", "partition high"}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_cluster_is_described_as_it_was_set_up(cluster: Cluster, tmp_path: Path) -> None:
    checks = by_name(examine(runs_dir=tmp_path))
    assert "cluster tclx answers" in checks["slurm"].found
    assert set(checks) >= PARTITIONS
    assert "4 nodes of 2 GPUs" in checks["partition short"].found
    assert "time limit 2:00" in checks["partition short"].found
    assert "waits 11 s" in checks["requeue"].found
    assert "REQUEUE: a preempted job is told by SIGTERM" in checks["preemption"].found
    assert checks["KillWait"].verdict == "warning"
    assert "1001" in checks["MaxArraySize"].found
    assert checks["accounting"].verdict == ("ok" if cluster.accounting else "info")
    assert [check.name for check in checks.values() if check.verdict == "problem"] == []


def test_nodes_on_this_machine_see_its_folders(cluster: Cluster) -> None:
    checks = by_name(list(doctor_slurm.check_partitions(Mount("/", "ext4", ()))))
    assert set(checks) == PARTITIONS


def test_a_cluster_that_cannot_be_reached_is_told_apart(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same configuration with a port where nobody listens, which is what a controller that is down looks like."""
    text = (cluster.home / "slurm.conf").read_text().replace("SlurmctldPort=17010", "SlurmctldPort=17019")
    (tmp_path / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (check,) = doctor_slurm.check_slurm(Mount("/", "ext4", ()))
    assert check.verdict == "problem"
    assert "is DOWN" in check.found
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    (check,) = doctor_slurm.check_slurm(Mount("/", "ext4", ()))
    assert check.verdict == "problem"
    assert "none.conf, which is not there" in check.found
