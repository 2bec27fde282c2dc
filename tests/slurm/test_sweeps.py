"""A study on the real cluster: its workers are an array, and none of what SLURM does to them loses or repeats a trial."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tclx.launch.slurm import commands as slurm
from tclx.runs import RunFolder
from tclx.sweep.cluster import living_jobs
from tclx.sweep.study import StudyFolder
from tests.slurm.toy import REPEATED, tclx, until
from tests.sweep.toy import EVALUATION, TRAINING, write_sweep

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
LAUNCH = {"backend": "slurm", "gpus_per_node": 0, "cpus_per_task": 1, "time_limit_minutes": 10, "signal_seconds": 30}


def _sweep(folder: Path, *, steps: int = 60, launch: dict[str, Any] | None = None, **changes: Any) -> Path:
    experiment = {
        "training": {**TRAINING, "steps": steps, "checkpoints": {"every_steps": 10}},
        "evaluation": {**EVALUATION, "every_steps": steps // 2},
        "launch": {**LAUNCH, **(launch or {})},
    }
    return write_sweep(folder, experiment=experiment, **changes)


def _status(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(tclx("sweep", "status", path, "--json", runs_dir=path.parent / "runs").stdout)
    return tree


def _study(path: Path) -> StudyFolder:
    return StudyFolder.of("toy-sweep", path.parent / "runs")


def _steps(folder: RunFolder) -> list[int]:
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [row["step"] for row in rows if "loss/total" in row]


def _assert_whole(path: Path, *, num_trials: int, steps: int) -> dict[str, Any]:
    """Every trial in exactly one state, numbered without a gap, its run trained once from end to end."""
    tree = _status(path)
    assert [trial["number"] for trial in tree["trials"]] == list(range(num_trials))
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * num_trials
    runs = [run_id for trial in tree["trials"] for run_id in trial["runs"]]
    assert len(set(runs)) == num_trials
    for run_id in runs:
        folder = RunFolder(path.parent / "runs" / run_id)
        assert _steps(folder) == list(range(1, steps + 1)), run_id
        events = [json.loads(line)["event"] for line in folder.events.read_text().splitlines()]
        assert events.count("finished") == 1
    return tree


def test_an_array_of_workers_finishes_a_study_and_is_not_submitted_twice(tmp_path: Path) -> None:
    path = _sweep(tmp_path, num_trials=4, num_workers=2, steps=40)
    said = tclx("sweep", path, runs_dir=tmp_path / "runs").stderr
    assert "submitted 2 workers as job" in said
    assert "2 workers are on their way already" in tclx("sweep", path, runs_dir=tmp_path / "runs").stderr
    until(lambda: _status(path)["finished"] == 4, what="complete")
    until(lambda: not _jobs(path), what="ended")
    _assert_whole(path, num_trials=4, steps=40)
    assert "none is needed" in tclx("sweep", path, runs_dir=tmp_path / "runs").stderr


@pytest.mark.faults
def test_a_preempted_worker_saves_comes_back_and_goes_on(tmp_path: Path) -> None:
    path = _sweep(tmp_path, num_trials=2, steps=400)
    tclx("sweep", path, runs_dir=tmp_path / "runs")
    _until_trains(path)
    (job,) = _jobs(path)
    _slurm(["scancel", "--signal=USR2", job])
    until(lambda: _status(path)["finished"] == 2, what="complete")
    _assert_whole(path, num_trials=2, steps=400)
    claim = json.loads(_study(path).claim(0).read_text())
    assert (claim["starts"], claim["deaths"]) == (2, 0)


@pytest.mark.faults
def test_a_cancelled_study_stays_cancelled_until_it_is_asked_for(tmp_path: Path) -> None:
    path = _sweep(tmp_path, num_trials=2, steps=400)
    tclx("sweep", path, runs_dir=tmp_path / "runs")
    _until_trains(path)
    assert "asked 1 jobs to save and stop" in tclx("sweep", "cancel", path, runs_dir=tmp_path / "runs").stderr
    until(lambda: not _jobs(path), what="ended")
    time.sleep(15)  # a requeued job would be back by now
    assert not _jobs(path)
    assert _status(path)["finished"] < 2
    tclx("sweep", path, runs_dir=tmp_path / "runs")
    until(lambda: _status(path)["finished"] == 2, what="complete")
    _assert_whole(path, num_trials=2, steps=400)


def test_what_slurm_refuses_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    path = _sweep(tmp_path, launch={"partition": "nosuch"})
    done = tclx("sweep", path, runs_dir=tmp_path / "runs", check=False)
    assert done.returncode == 2
    assert "launch.partition" in done.stderr
    assert not _jobs(path)


def _jobs(path: Path) -> list[str]:
    """The study's, once the controller answers: on a busy machine it may be a moment late."""
    return slurm.patiently(lambda: living_jobs(_study(path)), say=print)


def _slurm(command: list[str]) -> None:
    slurm.patiently(lambda: slurm.call(command), say=print)


def _until_trains(path: Path) -> None:
    def trains() -> bool:
        states = [RunFolder(found.parent).read_state() for found in (path.parent / "runs").glob("*/state.json")]
        return any(state is not None and state.status == "running" and state.step >= 10 for state in states)

    until(trains, what="training")


def _workers(path: Path) -> list[psutil.Process]:
    folder = str(path.parent)
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "tclx.sweep.task" in (process.info["cmdline"] or [])
        and "rank" in process.info["cmdline"]
        and any(word.startswith(folder) for word in process.info["cmdline"])
    ]


@pytest.mark.faults
@REPEATED
@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_workers_killed_and_preempted_at_random(
    tmp_path: Path, storage: str, repeat: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four workers, twelve trials; every few seconds one is killed, or told to stop, or its whole job is requeued."""
    url = None if storage == "journal" else request.getfixturevalue("postgres_url")
    num_trials, steps = 12, 200
    path = _sweep(tmp_path, num_trials=num_trials, num_workers=4, steps=steps, storage=url, launch={"max_restarts": 50})
    began = time.monotonic()
    tclx("sweep", path, runs_dir=tmp_path / "runs")
    chance = random.Random(repeat)
    harmed = {"killed": 0, "told to stop": 0, "requeued": 0}
    while (tree := _status(path))["finished"] < num_trials:
        assert not tree["failed"], tree["trials"]
        if time.monotonic() - began > 1500:
            raise AssertionError(f"after {harmed}: {_status(path)}")
        time.sleep(chance.uniform(4, 10))
        jobs = _jobs(path)
        workers = _workers(path)
        what = chance.choice(list(harmed))
        try:
            if what == "killed" and workers:
                chance.choice(workers).kill()
            elif what == "told to stop" and jobs:
                _slurm(["scancel", "--signal=USR2", chance.choice(jobs)])
            elif what == "requeued" and jobs:
                _slurm(["scontrol", "requeue", chance.choice(jobs)])
            else:
                continue
        except (slurm.SlurmRefused, psutil.NoSuchProcess):
            continue  # it ended a moment ago
        harmed[what] += 1
        if not jobs:  # the last job was hurt too often, or had nothing to do when it looked
            tclx("sweep", path, runs_dir=tmp_path / "runs")
        if sum(harmed.values()) >= 30:
            harmed_enough = time.monotonic()
            while _status(path)["finished"] < num_trials and time.monotonic() - harmed_enough < 600:
                if not _jobs(path):
                    tclx("sweep", path, runs_dir=tmp_path / "runs")
                time.sleep(5)
    tree = _assert_whole(path, num_trials=num_trials, steps=steps)
    starts = [json.loads(found.read_text())["starts"] for found in (_study(path).path / "trials").glob("*.json")]
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{storage}: {harmed}, {sum(starts) - num_trials} continuations, {tree['failed']} failed, {seconds:.0f} s")
    if left := _jobs(path):
        _slurm(["scancel", *left])
