"""Promises of a submission: nothing twice, nothing lost where it is cut off, arrays as large as the cluster takes them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError, MachineError
from tclx.launch.order import plan_runs
from tclx.launch.prepare import Outcome, hand_over
from tclx.launch.slurm import commands as slurm
from tclx.launch.slurm.submit import adopt, submit
from tclx.runs import Job, RunFolder, RunState, write_submitted
from tests.launch.handed import Commands, handed_over, prepared_run
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[2]
SLURM = {"backend": "slurm", "gpus_per_node": 0}


def submit_spec(folder: Path, name: str = "toy", *, again: bool = False, **changes: Any) -> list[Outcome]:
    runs = plan_runs([write_spec(folder, name, **{"launch": SLURM, **changes})], runs_dir=folder / "runs")
    return submit(runs, runs_dir=folder / "runs", again=again)


def job_ids(outcomes: list[Outcome]) -> list[str | None]:
    return [job.job_id if (job := outcome.folder.read_job()) else None for outcome in outcomes]


@pytest.fixture
def cluster(commands: Commands) -> Commands:
    """A cluster that numbers jobs from 41 on and has none of them in its queue any more."""
    commands.put(
        "sbatch",
        f'[ "$1" = --test-only ] && exit; cat > {commands.folder}/script; '
        f"number=$(cat {commands.folder}/number 2> /dev/null || echo 41); echo $((number + 1)) > {commands.folder}/number; "
        "echo $number",
    )
    commands.say("squeue", "")
    commands.say("sacct", "")
    commands.say("scontrol", "MaxArraySize = 1001\n")
    return commands


def submitted(cluster: Commands) -> int:
    return cluster.calls.count("sbatch --parsable")


# --------------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("largest", "ids"),
    [
        (1001, ["41_0", "41_1", "41_2", "41_3", "41_4"]),
        (5, ["41_0", "41_1", "41_2", "41_3", "41_4"]),
        (4, ["41_0", "41_1", "41_2", "41_3", "42"]),
        (2, ["41_0", "41_1", "42_0", "42_1", "43"]),
        (1, ["41", "42", "43", "44", "45"]),
        (0, ["41", "42", "43", "44", "45"]),  # a cluster without arrays
    ],
)
def test_an_array_is_split_where_it_is_larger_than_the_cluster_allows(
    tmp_path: Path, cluster: Commands, largest: int, ids: list[str]
) -> None:
    """MaxArraySize is one more than the largest index."""
    cluster.say("scontrol", f"MaxArraySize            = {largest}\n")
    outcomes = submit_spec(tmp_path, seeds=[0, 1, 2, 3, 4])
    assert job_ids(outcomes) == ids
    assert submitted(cluster) == len({job_id.partition("_")[0] for job_id in ids})


def test_a_silent_controller_is_waited_for_before_an_array_is_cut(
    tmp_path: Path, cluster: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.0)
    answers = cluster.folder / "answers"
    cluster.put(
        "scontrol",
        f'[ -e {answers} ] && echo "MaxArraySize = 2" && exit; echo > {answers}; '
        "echo 'scontrol: error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    assert job_ids(submit_spec(tmp_path, seeds=[0, 1])) == ["41_0", "41_1"]


# --------------------------------------------------------------------------------------------------------------------- again


def test_again_sets_a_finished_run_aside_and_nothing_that_it_starts_from(tmp_path: Path, cluster: Commands) -> None:
    write_spec(tmp_path, "pre", launch=SLURM)
    pre, fine = submit_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    for outcome in (pre, fine):
        outcome.folder.write_state(RunState("finished", step=2, total_steps=2))
    repeated = submit_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    assert [outcome.ending for outcome in repeated] == ["already finished", "already finished"]
    assert submitted(cluster) == 2
    repeated = submit_spec(tmp_path, "fine", init={"experiment": "pre.yaml"}, again=True)
    assert [outcome.ending for outcome in repeated] == ["already finished", "submitted"]
    assert "dependency" not in (cluster.folder / "script").read_text()
    state = fine.folder.read_state()
    assert state is not None
    assert state.status == "created"
    kept = RunFolder(fine.folder.path.with_name(f"{fine.folder.run_id}.old-1")).read_state()
    assert kept is not None
    assert kept.status == "finished"


def test_again_leaves_a_run_alone_that_is_on_its_way(tmp_path: Path, cluster: Commands) -> None:
    (outcome,) = submit_spec(tmp_path)
    cluster.say("squeue", "41|PENDING||toy|Priority\n")
    (repeated,) = submit_spec(tmp_path, again=True)
    assert repeated.ending == "already submitted"
    assert submitted(cluster) == 1
    assert not outcome.folder.path.with_name(f"{outcome.folder.run_id}.old-1").exists()


# -------------------------------------------------------------------------------------------------------- cut-off submissions


def cut_off(folder: Path, *names: str) -> tuple[Path, list[RunFolder]]:
    """As if the submitting process had been killed before it wrote SLURM's answer down."""
    folders = [prepared_run(folder, name, launch=SLURM) for name in names]
    for made in folders:
        submission = handed_over(made, job_id=None)
    write_submitted(submission, folders)
    return submission, folders


def test_a_job_that_slurm_has_is_written_into_its_run(tmp_path: Path, commands: Commands) -> None:
    submission, (folder,) = cut_off(tmp_path, "a")
    commands.say("squeue", "41|toy.abcd\n")
    before = folder.read_job()
    adopt(submission)
    after = folder.read_job()
    assert before is not None
    assert after is not None
    assert (after.job_id, after.token, after.submitted_at) == ("41", before.token, before.submitted_at)


def test_an_array_is_written_into_all_of_its_runs(tmp_path: Path, commands: Commands) -> None:
    submission, folders = cut_off(tmp_path, "a", "b", "c")
    commands.say("squeue", "41|toy.abcd\n")
    adopt(submission)
    assert [job.job_id for folder in folders if (job := folder.read_job())] == ["41_0", "41_1", "41_2"]


def test_what_was_never_submitted_is_free_again(tmp_path: Path, commands: Commands) -> None:
    submission, folders = cut_off(tmp_path, "a", "b")
    commands.say("squeue", "")
    commands.say("sacct", "")
    adopt(submission)
    assert [folder.read_job() for folder in folders] == [None, None]


def test_while_slurm_is_silent_nothing_is_freed(tmp_path: Path, commands: Commands) -> None:
    submission, (folder,) = cut_off(tmp_path, "a")
    commands.refuse("squeue", "Unable to contact slurm controller (connect failure)")
    before = folder.job.read_bytes()
    with pytest.raises(slurm.SlurmSilent):
        adopt(submission)
    with pytest.raises(MachineError):
        submit_spec(tmp_path, "a")
    assert folder.job.read_bytes() == before
    assert not [call for call in commands.calls if call.startswith("sbatch")]


@pytest.mark.parametrize("queue", ["41|toy.abcd\n", ""])
def test_a_run_that_was_handed_to_a_newer_job_keeps_it(tmp_path: Path, commands: Commands, queue: str) -> None:
    submission, (first, second) = cut_off(tmp_path, "a", "b")
    newer = Job("ef01", "slurm", 1.0, "login", str(submission), "50")
    hand_over(first, newer)
    commands.say("squeue", queue)
    commands.say("sacct", "")
    adopt(submission)
    assert first.read_job() == newer
    assert (second.read_job() is None) == (queue == "")


def test_a_refusal_gives_the_runs_back_to_whom_they_had(tmp_path: Path, cluster: Commands) -> None:
    """A run that is resumed keeps its earlier job on record, a new one has none."""
    earlier = prepared_run(tmp_path, "toy", launch=SLURM)
    handed_over(earlier, job_id="7", token="old0")
    earlier.write_state(RunState("interrupted", step=1, total_steps=2))
    before = earlier.read_job()
    cluster.put("sbatch", '[ "$1" = --test-only ] && exit; echo "sbatch: error: Batch job submission failed: Job violates '
                          'accounting/QOS policy" >&2; exit 1')  # fmt: skip
    cluster.say("sacct", "7|CANCELLED by 0|0:15|n1|toy\n")
    with pytest.raises(InputError, match=r"launch\.account or launch\.qos: SLURM says: .*QOS policy"):
        submit_spec(tmp_path)
    assert earlier.read_job() == before
    with pytest.raises(InputError):
        submit_spec(tmp_path, "new")
    assert not list((tmp_path / "runs").glob("new-*/job.json"))


def test_the_next_submission_waits_for_an_orphaned_sbatch_and_finds_its_job(tmp_path: Path, commands: Commands) -> None:
    """Killed while sbatch is on its way: without the inherited lock the next one would see no job and submit another."""
    asked, answered = commands.folder / "asked", commands.folder / "answered"
    commands.put(
        "sbatch", f'[ "$1" = --test-only ] && exit; cat > /dev/null; echo > {asked}; sleep 3; echo > {answered}; echo 41'
    )
    commands.put(
        "squeue",
        f'[ -e {answered} ] || exit 0; for word in "$@"; do case $word in --name=*) echo "41|${{word#--name=}}"; exit;; esac; '
        'done; echo "41|PENDING||toy|Priority"',
    )
    commands.say("sacct", "")
    spec = write_spec(tmp_path, launch=SLURM)
    command = [sys.executable, "-m", "tclx.cli", "run", str(spec), "--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not asked.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.communicate()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "nothing to do: job 41 is queued" in second.stderr
    assert commands.calls.count("sbatch --parsable") == 1
