"""Promises on the real cluster: one command submits, nothing is submitted twice, several nodes train as one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tclx.runs import RunFolder
from tests.slurm.toy import (
    events,
    fingerprint,
    folders_in,
    only_run,
    rows,
    slurm_spec,
    status_of,
    tclx,
    until,
    until_standing,
)
from tests.track.receiver import Receiver, receiver

__all__ = ["receiver"]

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_run_is_submitted_trains_and_is_never_submitted_again(tmp_path: Path) -> None:
    spec, runs = slurm_spec(tmp_path), tmp_path / "runs"
    assert "submitted: job" in tclx("run", spec, runs_dir=runs).stderr
    assert "nothing to do" in tclx("run", spec, runs_dir=runs).stderr
    folder = only_run(runs)
    until_standing([folder], "finished")
    job = folder.read_job()
    assert "finished earlier" in tclx("run", spec, runs_dir=runs).stderr
    assert folder.read_job() == job


def test_again_trains_a_finished_run_from_scratch_and_keeps_the_old_one(tmp_path: Path) -> None:
    spec, runs = slurm_spec(tmp_path, steps=2), tmp_path / "runs"
    tclx("run", spec, runs_dir=runs)
    folder = only_run(runs)
    until_standing([folder], "finished")
    first = fingerprint(folder)
    said = tclx("run", spec, "--again", runs_dir=runs).stderr
    kept = RunFolder(runs / f"{folder.run_id}.old-1")
    assert f"the earlier run is kept as {kept.path}" in said
    until_standing([folder], "finished")
    assert [len(events(folder, name)) for name in ("submitted", "started", "resumed")] == [1, 1, 0]
    assert fingerprint(folder) == fingerprint(kept) == first


def test_seeds_are_one_array_and_each_finishes_once(tmp_path: Path) -> None:
    spec = slurm_spec(tmp_path, steps=2, variants={"a": {}, "b": {"objectives": {"lmi": None}}}, seeds=[0, 1])
    tclx("run", spec, runs_dir=tmp_path / "runs")
    folders = folders_in(tmp_path / "runs")
    ids = sorted(job.job_id or "" for folder in folders if (job := folder.read_job()))
    assert len({job_id.partition("_")[0] for job_id in ids}) == 1
    assert [job_id.partition("_")[2] for job_id in ids] == ["0", "1", "2", "3"]
    until_standing(folders, "finished")


def test_two_nodes_of_two_processes_learn_what_one_process_learns(tmp_path: Path) -> None:
    """The same global batch; gathering adds in another order, so the last digits may differ."""
    launch = {"num_nodes": 2, "tasks_per_node": 2}
    training = {"batch_size_per_gpu": 2}
    many = slurm_spec(tmp_path, "many", steps=3, launch=launch, training=training)
    one = slurm_spec(tmp_path, "one", steps=3)
    options = ["--set", "model.text_encoder.dropout=0.0"]  # each process drops out other units
    for spec, runs in ((many, tmp_path / "many-runs"), (one, tmp_path / "one-runs")):
        tclx("run", spec, *options, runs_dir=runs)
    folders = [only_run(tmp_path / "many-runs"), only_run(tmp_path / "one-runs")]
    until_standing(folders, "finished")
    steps = [[row for row in rows(folder) if "loss/total" in row] for folder in folders]
    assert [len(found) for found in steps] == [3, 3]
    for several, single in zip(*steps, strict=True):
        for name in ("loss/cma", "loss/imc", "loss/lmi"):
            assert several[name] == pytest.approx(single[name], rel=1e-4)


def test_a_chain_waits_for_what_it_starts_from(tmp_path: Path) -> None:
    slurm_spec(tmp_path, "pre", steps=2)
    slurm_spec(tmp_path, "fine", steps=2, init={"experiment": "pre.yaml"})
    evaluate = slurm_spec(
        tmp_path, "zero-shot", steps=0, init={"experiment": "fine.yaml"},
        evaluation={"retrieval": {"top_k": 4, "batch_size": 8}, "at_end": "test"},
    )  # fmt: skip
    said = tclx("run", evaluate, runs_dir=tmp_path / "runs").stderr
    assert said.count("after job") == 2
    folders = folders_in(tmp_path / "runs")
    assert len(folders) == 3
    until_standing(folders, "finished")


def test_a_failed_run_takes_what_starts_from_it_along(tmp_path: Path) -> None:
    slurm_spec(tmp_path, "pre", steps=2, launch={"setup": ["exit 7"]})
    fine = slurm_spec(tmp_path, "fine", steps=2, init={"experiment": "pre.yaml"})
    tclx("run", fine, runs_dir=tmp_path / "runs")
    until_standing(folders_in(tmp_path / "runs"), "failed", "cancelled")


@pytest.mark.parametrize(
    ("launch", "key"),
    [
        ({"partition": "nowhere"}, "launch.partition"),
        ({"gpus_per_node": 3}, "launch.gpus_per_node"),
        ({"partition": "short", "time_limit_minutes": 60}, "launch.time_limit_minutes"),
        ({"memory_gb": 4000}, "memory_gb"),
    ],
)
def test_what_slurm_refuses_is_refused_in_its_words_and_nothing_is_left(
    tmp_path: Path, launch: dict[str, object], key: str
) -> None:
    refused = tclx("run", slurm_spec(tmp_path, launch=launch), runs_dir=tmp_path / "runs", check=False)
    assert refused.returncode == 2
    assert key in refused.stderr
    assert "SLURM says" in refused.stderr
    assert not folders_in(tmp_path / "runs")


def test_the_job_runs_the_code_of_its_submission(tmp_path: Path) -> None:
    """The tree is changed between submission and start: the job does not notice."""
    spec, runs = slurm_spec(tmp_path, steps=2), tmp_path / "runs"
    tclx("run", spec, "--set", "launch.sbatch_options={begin: now+8}", runs_dir=runs)
    (code,) = (runs / ".code").iterdir()
    script = next((runs / ".submissions").glob("*/job.sbatch")).read_text()
    assert f"PYTHONPATH={code}" in script
    until_standing([only_run(runs)], "finished")
    recorded = json.loads(only_run(runs).environment.read_text())
    assert str(code) in recorded["code"]


def test_status_tells_what_a_waiting_run_waits_for(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    tclx("run", slurm_spec(tmp_path), "--set", "launch.sbatch_options={begin: now+1hour}", runs_dir=runs)
    status = status_of(only_run(runs))
    assert status.standing == "queued"
    assert "BeginTime" in (status.reason or "")
    tclx("cancel", only_run(runs).path, runs_dir=runs)
    until_standing([only_run(runs)], "cancelled")


def test_a_submission_cut_off_before_its_record_is_found_again(tmp_path: Path) -> None:
    """As if the submitting process had been killed between sbatch and the record."""
    runs, spec = tmp_path / "runs", slurm_spec(tmp_path, steps=2)
    tclx("run", spec, "--set", "launch.sbatch_options={begin: now+10}", runs_dir=runs)
    folder = only_run(runs)
    record = folder.read_json(folder.job)
    folder.write_json(folder.job, {**record, "job_id": None})
    assert "nothing to do" in tclx("run", spec, "--set", "launch.sbatch_options={begin: now+10}", runs_dir=runs).stderr
    assert folder.read_json(folder.job)["job_id"] == record["job_id"]
    until_standing([folder], "finished")
    assert len(fingerprint(folder)) == 3


def test_secrets_reach_the_job_and_no_file(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    tclx("run", slurm_spec(tmp_path, steps=2), runs_dir=runs, WANDB_API_KEY="very-secret-value")
    until_standing([only_run(runs)], "finished")
    found = subprocess.run(["grep", "-rl", "very-secret-value", str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stdout == ""


RUNTIME = """#!/bin/bash
# Stands in for apptainer: the same command line, and what is not mounted is not there.
set -eu
test "$1" = exec; shift
test "$1" = --bind; mounts=$2; shift 2
image=$1; shift
test -f "$image"
for mount in ${mounts//,/ }; do test -e "${mount%%:*}"; done
echo "$mounts" >> "$(dirname "$image")/mounts"
export IN_CONTAINER=$image
exec "$@"
"""


def test_a_run_in_a_container_trains_and_its_end_is_looked_after_outside(tmp_path: Path) -> None:
    """The wrapper's command line on the cluster; the script's own shell, which asks SLURM, stays outside."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").write_text(RUNTIME)
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    (tmp_path / "torch.sif").write_text("an image")
    (tmp_path / "bin" / "inside").write_text(f'#!/bin/bash\ntest -n "$IN_CONTAINER" && exec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "inside").chmod(0o755)
    container = {"image": str(tmp_path / "torch.sif"), "python": str(tmp_path / "bin" / "inside"), "mounts": ["/tmp"]}
    launch = {"container": container, "setup": [f"export PATH={tmp_path}/bin:$PATH"]}
    spec = slurm_spec(tmp_path, steps=4, launch=launch)
    tclx("run", spec, runs_dir=tmp_path / "runs")
    folder = only_run(tmp_path / "runs")
    until_standing([folder], "finished")
    assert (tmp_path / "mounts").read_text() == f"{tmp_path}/runs:{tmp_path}/runs,/tmp:/tmp\n"


def test_jobs_tell_how_they_ended(tmp_path: Path, receiver: Receiver) -> None:
    """The addresses come along in sbatch's environment."""
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    good = slurm_spec(tmp_path, "good", steps=2, tracking={"notify": {}})
    bad = slurm_spec(tmp_path, "bad", tracking={"notify": {}}, init={"checkpoint": str(tmp_path / "foreign.pth")})
    for spec in (good, bad):
        tclx("run", spec, runs_dir=tmp_path / "runs")
    failed, finished = folders_in(tmp_path / "runs")
    until_standing([finished], "finished")
    until_standing([failed], "failed")
    until(lambda: len(receiver.messages) == 2, what="told", seconds=60)
    told = {message["title"]: message["message"] for message in receiver.messages}
    assert told.keys() == {f"tclx: {finished.run_id} finished", f"tclx: {failed.run_id} failed"}
    assert "foreign.pth" in told[f"tclx: {failed.run_id} failed"]
