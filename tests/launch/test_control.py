"""Promises of cancel and resume: everybody who goes on is asked, by the means that reaches him, and nobody else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.launch import control
from tclx.launch.control import cancel_runs, resumable
from tclx.launch.slurm import commands as slurm
from tclx.runs import Attempt, RunFolder, RunState
from tests.launch.handed import Commands, handed_over, prepared_run

SLURM = {"backend": "slurm", "gpus_per_node": 0}


def on_slurm(folder: Path, name: str, job_id: str | None) -> RunFolder:
    made = prepared_run(folder, name, launch=SLURM)
    handed_over(made, job_id=job_id, token=f"{name}-token")
    return made


def quiet(line: str) -> None:
    pass


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What would have been sent to processes of this machine."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(control.os, "kill", lambda pid, number: sent.append((pid, number)) if number else None)  # 0 only looks
    return sent


# -------------------------------------------------------------------------------------------------------------------- cancel


def test_jobs_are_cancelled_in_one_call_and_say_so_in_their_folders(tmp_path: Path, commands: Commands) -> None:
    waiting, training = on_slurm(tmp_path, "a", "41_0"), on_slurm(tmp_path, "b", "42")
    over = on_slurm(tmp_path, "c", "43")
    over.write_state(RunState("finished", step=2, total_steps=2))
    training.begin(Attempt("job42.0", "42"))
    training.write_state(RunState("running", step=1, total_steps=2))
    training.heartbeat.touch()
    commands.say("squeue", "41_0|PENDING||toy|Priority\n42|RUNNING|n1|toy|None\n")
    commands.put("scancel", "exit 0")
    said: list[str] = []
    asked = cancel_runs([folder.path for folder in (waiting, training, over)], say=said.append)
    assert [status.folder.run_id for status in asked] == [waiting.run_id, training.run_id]
    assert [call for call in commands.calls if call.startswith("scancel")] == ["scancel 41_0 42"]
    assert [folder.cancel.exists() for folder in (waiting, training, over)] == [True, True, False]
    assert said == [
        f"{waiting.run_id}: was queued at step 0, asked to save and stop",
        f"{training.run_id}: was running at step 1, asked to save and stop",
    ]


def test_a_job_that_ended_a_moment_ago_is_no_error(tmp_path: Path, commands: Commands) -> None:
    folder = on_slurm(tmp_path, "a", "41")
    commands.say("squeue", "41|RUNNING|n1|toy|None\n")
    commands.refuse("scancel", "Kill job error on job id 41: Invalid job id specified")
    assert len(cancel_runs([folder.path], say=quiet)) == 1


def test_a_silent_slurm_is_said_after_the_runs_elsewhere_were_asked(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, signals: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(slurm.patiently, "__kwdefaults__", {"seconds": 0.0})
    for name in ("squeue", "scancel"):
        commands.refuse(name, "Unable to contact slurm controller (connect failure)")
    far, near = on_slurm(tmp_path, "a", "41"), prepared_run(tmp_path, "b")
    near.heartbeat.touch()
    near.write_state(RunState("running", step=1, total_steps=2))
    with pytest.raises(slurm.SlurmSilent):
        cancel_runs([far.path, near.path], say=quiet)
    assert [number for _, number in signals] == [control.signal.SIGTERM]
    assert far.cancel.exists()  # its worker finds it, whatever SLURM does
    assert near.cancel.exists()


def test_a_slurm_job_on_this_machine_is_left_to_slurm(
    tmp_path: Path, commands: Commands, signals: list[tuple[int, int]]
) -> None:
    """Its process is SLURM's to signal: the pid in the state may be one of a container or of another machine's."""
    folder = on_slurm(tmp_path, "a", "41")
    folder.write_state(RunState("running", step=1, total_steps=2))
    folder.heartbeat.touch()
    commands.say("squeue", "41|RUNNING|n1|toy|None\n")
    commands.put("scancel", "exit 0")
    cancel_runs([folder.path], say=quiet)
    assert signals == []


def test_a_submission_that_was_cut_off_has_no_job_to_cancel(tmp_path: Path, commands: Commands) -> None:
    folder = on_slurm(tmp_path, "a", None)
    assert [status.standing for status in cancel_runs([folder.path], say=quiet)] == ["unknown"]
    assert folder.cancel.exists()
    assert commands.calls == []


# -------------------------------------------------------------------------------------------------------------------- resume


def test_what_neither_goes_on_nor_is_finished_is_resumed_as_it_was_asked_for(tmp_path: Path, commands: Commands) -> None:
    stopped, finished, waiting = prepared_run(tmp_path, "a"), prepared_run(tmp_path, "b"), on_slurm(tmp_path, "c", "41")
    stopped.write_state(RunState("interrupted", step=1, total_steps=2, reason="saved at step 1"))
    finished.write_state(RunState("finished", step=2, total_steps=2))
    commands.say("squeue", "41|PENDING||toy|Priority\n")
    said: list[str] = []
    (run,) = resumable([folder.path for folder in (stopped, finished, waiting)], say=said.append)
    assert run.plan.run_id == stopped.run_id
    assert run.spec.model_dump(mode="json") == stopped.read_json(stopped.spec)
    assert run.asked_for
    assert said == [f"{finished.run_id}: finished, nothing to resume", f"{waiting.run_id}: queued, nothing to resume"]


def test_a_lost_run_is_resumed(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    folder.begin(Attempt("here-1"))
    state = replace(RunState("running", step=1, total_steps=2), updated_at=time.time() - 3600)
    folder.write_json(folder.state, state.__dict__)
    assert [run.plan.run_id for run in resumable([folder.path], say=quiet)] == [folder.run_id]


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    spec = folder.read_json(folder.spec)
    folder.write_json(folder.spec, {**spec, "of_the_future": 1})
    with pytest.raises(InputError):
        resumable([folder.path], say=quiet)
