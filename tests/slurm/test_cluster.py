"""The test cluster behaves like a lab's: what the launcher's tests rely on is kept here, with SLURM's own commands."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster, ClusterError

# Says when it starts and when SIGTERM comes, and goes on. A step, because SLURM's warning goes to steps and not to the script.
STUBBORN = """#!/bin/bash
srun --ntasks=1 --nodes=1 bash -c 'trap "echo TERM" TERM; echo start $SLURM_RESTART_COUNT; while true; do sleep 0.2; done'
"""


class Jobs:
    """Jobs of one test: their output goes to a folder of its own, and they end with the test."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.ids = cluster, folder, []

    def submit(self, *options: str, script: str = "#!/bin/bash\nsleep 120\n") -> str:
        path = self.folder / f"script-{len(self.ids)}.sh"
        path.write_text(script)
        output = ("--open-mode=append", f"--output={self.folder}/%j.out", f"--chdir={self.folder}")
        self.ids.append(self.cluster.run("sbatch", "--parsable", *output, *options, str(path)).strip())
        return self.ids[-1]

    def output(self, job: str) -> list[str]:
        path = self.folder / f"{job}.out"
        return path.read_text().splitlines() if path.exists() else []

    def field(self, job: str, name: str) -> str:
        match = re.search(rf"\b{name}=(\S+)", self.cluster.run("scontrol", "show", "job", job))
        assert match, name
        return match[1]


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(cluster, tmp_path)
    yield jobs
    if jobs.ids:
        cluster.run("scancel", *jobs.ids)


def wait(is_true: Callable[[], bool], *, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < end, f"waited {timeout} s"
        time.sleep(0.2)


def test_four_nodes_of_eight_cpus_and_two_gpus(cluster: Cluster) -> None:
    assert set(cluster.node_states()) == set(NODES)
    assert set(cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%c %G").splitlines()) == {"8 gpu:2"}


def test_two_tasks_on_each_of_two_nodes(cluster: Cluster) -> None:
    words = ("srun", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2")
    lines = cluster.run(*words, "bash", "-c", "echo $SLURM_NODEID $SLURM_PROCID $CUDA_VISIBLE_DEVICES").splitlines()
    assert sorted(lines) == ["0 0 0,1", "0 1 0,1", "1 2 0,1", "1 3 0,1"]


def test_an_array_runs_every_task(jobs: Jobs) -> None:
    script = f"#!/bin/bash\ntouch {jobs.folder}/done-$SLURM_ARRAY_TASK_ID\n"
    jobs.submit("--array=0-5%3", script=script)
    wait(lambda: len(list(jobs.folder.glob("done-*"))) == 6)


def test_a_requeued_job_waits_eleven_seconds(jobs: Jobs) -> None:
    job = jobs.submit("--requeue")
    wait(lambda: jobs.field(job, "JobState") == "RUNNING")
    requeued = datetime.now()
    jobs.cluster.run("scontrol", "requeue", job)
    wait(lambda: jobs.field(job, "JobState") == "PENDING")
    assert jobs.field(job, "Restarts") == "1"
    waits = (datetime.fromisoformat(jobs.field(job, "EligibleTime")) - requeued).total_seconds()
    assert waits <= 40  # 121 s without cred_expire; a busy machine takes some for the requeueing itself


@pytest.mark.faults
def test_preemption_sends_sigterm_and_the_job_comes_back(jobs: Jobs) -> None:
    low = jobs.submit("--partition=low", "--nodes=4", "--exclusive", script=STUBBORN)
    wait(lambda: jobs.output(low) == ["start"])
    high = jobs.submit("--partition=high", "--nodes=4", "--exclusive", script="#!/bin/bash\nsleep 1\n")
    wait(lambda: "TERM" in jobs.output(low), timeout=15)
    wait(lambda: jobs.field(high, "JobState") == "COMPLETED", timeout=90)
    wait(lambda: jobs.output(low)[-1] == "start 1", timeout=90)


def test_jobs_in_gpu_are_not_preempted(jobs: Jobs) -> None:
    job = jobs.submit("--partition=gpu", "--nodes=4", "--exclusive", script=STUBBORN)
    wait(lambda: jobs.output(job) == ["start"])
    high = jobs.submit("--partition=high", "--nodes=4", "--exclusive")
    time.sleep(5)
    assert jobs.output(job) == ["start"]
    assert jobs.field(high, "JobState") == "PENDING"


def test_a_time_limit_over_the_partitions_is_refused(jobs: Jobs) -> None:
    with pytest.raises(ClusterError, match="Requested time limit is invalid"):
        jobs.submit("--partition=short", "--time=60")


def test_a_job_over_its_memory_limit_is_killed(jobs: Jobs) -> None:
    script = '#!/bin/bash\npython3 -c "import time; block = bytearray(400 << 20); time.sleep(60)"\n'
    job = jobs.submit("--mem=100", script=script)
    wait(lambda: jobs.field(job, "JobState") not in ("PENDING", "RUNNING", "COMPLETING"))
    assert jobs.field(job, "JobState") in ("FAILED", "OUT_OF_MEMORY", "CANCELLED")
    assert "exceeded memory limit" in "\n".join(jobs.output(job))


def test_sacct_knows_a_jobs_end_and_comment(jobs: Jobs) -> None:
    if not jobs.cluster.accounting:
        pytest.skip("the cluster runs with --accounting off")
    job = jobs.submit("--comment=tclx:abc", script="#!/bin/bash\nexit 7\n")
    wait(lambda: jobs.cluster.run("sacct", "-nXP", "-j", job, "-o", "state,exitcode,comment") == "FAILED|7:0|tclx:abc\n")


@pytest.mark.faults
def test_a_killed_node_goes_down_and_comes_back(cluster: Cluster) -> None:
    cluster.kill_node("n4")
    try:
        wait(lambda: cluster.node_states()["n4"].startswith("down"), timeout=120)
    finally:
        cluster.start_node("n4")
    wait(lambda: cluster.node_states()["n4"] == "idle", timeout=60)


def test_a_job_lives_through_a_restart_of_the_controller(jobs: Jobs) -> None:
    job = jobs.submit()
    wait(lambda: jobs.field(job, "JobState") == "RUNNING")
    jobs.cluster.stop_controller()
    jobs.cluster.start_controller()
    assert jobs.field(job, "JobState") == "RUNNING"
