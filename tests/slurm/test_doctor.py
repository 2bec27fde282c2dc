"""Promises of `tclx doctor` on the real cluster: what SLURM is asked, it answers, and it is read right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.cli.console import aligned
from tclx.doctor import slurm as doctor_slurm
from tclx.doctor.check import Check
from tclx.doctor.cluster import as_rows, examine_nodes
from tclx.doctor.machine import Mount, examine
from tclx.launch.slurm import commands as slurm
from tclx.spec.launch import SlurmLaunch
from tests.cli.test_cli import run_process
from tests.slurm.cluster import Cluster
from tests.sweep.toy import wait_until

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


# ------------------------------------------------------------------------------------------------------------- every node asked


def test_every_node_of_a_partition_is_asked_and_compared(cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait_for_nodes()  # a test before this one may have killed one
    launch = SlurmLaunch(backend="slurm", partition="gpu", gpus_per_node=0, cpus_per_task=1)
    nodes = examine_nodes(launch, runs_dir=tmp_path / "runs", minutes=5)
    assert [node.name for node in nodes] == ["n1", "n2", "n3", "n4"]
    for node in nodes:
        assert node.facts is not None, node
        assert node.facts["errors"] == {}
        assert node.facts["gpus"] == []
        assert node.facts["shared"]["mb_per_second"] > 0
        assert node.facts["scratch"]["free_gib"] > 0
        assert abs(node.facts["clock_seconds"]) < 1
        assert node.verdict in ("ok", "warning")  # they share one machine, so one may look slower than the others
    rows = as_rows(nodes)
    assert [row[0] for row in rows] == ["node", "n1", "n2", "n3", "n4"]
    assert max(len(line) for line in aligned(rows).splitlines()) <= 80


def test_gpus_that_slurm_has_and_torch_does_not_see_are_a_problem(cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait_for_nodes()
    ended = run_process("doctor", "--cluster", "--partition", "short", "--runs-dir", tmp_path / "runs", "--minutes", "5")
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.count("torch sees 0 of 2 GPUs") == 4


def test_a_node_that_is_busy_is_waited_for_and_then_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait_for_nodes()
    quiet = ("--parsable", "--output=/dev/null")
    holding = ["sbatch", *quiet, "--nodelist=n2", "--exclusive", "--partition=gpu", "--wrap=sleep 300"]
    job = slurm.call(holding).strip()
    try:
        wait_until(lambda: slurm.job_state(job) == "RUNNING")
        launch = SlurmLaunch(backend="slurm", partition="gpu", gpus_per_node=0, cpus_per_task=1)
        nodes = {node.name: node for node in examine_nodes(launch, runs_dir=tmp_path / "runs", minutes=0.5)}
        assert nodes["n2"].verdict == "info"
        assert nodes["n2"].remarks == ("did not answer within 0.5 min: it is busy, or hangs",)
        assert "doctor-n2" not in slurm.call(["squeue", "--noheader", "--format=%j %T"])
    finally:
        slurm.call(["scancel", job])
