"""Promises of `watch`: every standing from what folder, queue and accounts say together; what cannot be known is unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclx.files import STALE_SECONDS
from tclx.launch.jobs import JobState
from tclx.launch.prepare import hand_over
from tclx.launch.watch import GOING_ON, Standing, describe, judge, last_row, watch_runs
from tclx.runs import Attempt, Job, RunFolder, RunState, Status
from tests.launch.handed import Commands, handed_over, prepared_run

SLURM = Job("abcd", "slurm", 0.0, "login", "/nowhere", "7")
LOCAL = Job("abcd", "local", 0.0, "here", "/nowhere", "123")
OURS, OLD = Attempt("job7.1", "7", 1), Attempt("job5.0", "5")
FRESH, STALE = 1.0, STALE_SECONDS + 1


def seen(state: str, reason: str = "") -> JobState:
    return JobState("7", state, reason, "n1", "toy.abcd")


CASES = [
    # state, job, attempt, age of the heartbeat, what SLURM lists, its silence -> standing, words of the reason
    ("created", None, None, None, None, None, "created", "not been started"),
    ("running", None, None, FRESH, None, None, "running", None),
    ("running", None, None, STALE, None, None, "lost", "tclx resume"),
    ("created", None, None, FRESH, None, None, "starting", None),
    ("interrupted", None, None, STALE, None, None, "interrupted", "why"),
    ("failed", LOCAL, None, FRESH, None, None, "failed", "why"),
    ("finished", SLURM, OURS, STALE, seen("RUNNING"), None, "finished", None),
    ("finished", SLURM, OURS, STALE, None, "down", "finished", None),
    ("created", SLURM, None, None, seen("PENDING", "Priority"), None, "queued", "pending: Priority"),
    ("created", SLURM, OLD, None, seen("PENDING", "Priority"), None, "queued", "Priority"),
    ("interrupted", SLURM, OURS, STALE, seen("PENDING", "BeginTime"), None, "restarting", "BeginTime; before: why"),
    ("created", SLURM, None, None, seen("PENDING", "DependencyNeverSatisfied"), None, "failed", "starts from has failed"),
    ("created", SLURM, None, None, seen("RUNNING"), None, "starting", None),
    ("running", SLURM, OURS, FRESH, seen("RUNNING"), None, "running", None),
    ("running", SLURM, OURS, FRESH, None, None, "running", None),
    ("running", SLURM, OURS, FRESH, None, "down", "running", None),
    ("running", SLURM, OURS, STALE, None, "down", "unknown", "SLURM does not answer: down"),
    ("created", SLURM, None, None, None, "down", "unknown", "SLURM does not answer: down"),
    ("interrupted", SLURM, OURS, STALE, seen("RUNNING"), None, "restarting", "why"),
    ("failed", SLURM, OURS, STALE, seen("COMPLETING"), None, "failed", "why"),
    ("failed", SLURM, OURS, STALE, seen("RUNNING"), None, "restarting", "why"),
    ("failed", SLURM, OLD, STALE, seen("PENDING"), None, "queued", "pending"),
    ("failed", SLURM, OURS, STALE, seen("FAILED"), None, "failed", "why"),
    ("interrupted", SLURM, OURS, STALE, None, None, "interrupted", "why"),
    ("running", SLURM, OURS, STALE, seen("NODE_FAIL", "exit code 0"), None, "lost", "SLURM says NODE_FAIL"),
    ("running", SLURM, OURS, STALE, None, None, "lost", "no longer lists"),
    ("running", SLURM, OURS, STALE, seen("COMPLETED"), None, "lost", "SLURM says COMPLETED"),
    ("created", SLURM, None, None, seen("FAILED", "exit code 7"), None, "failed", "SLURM says FAILED (exit code 7)"),
    ("created", SLURM, None, None, None, None, "failed", "before training began"),
    ("running", SLURM, OURS, STALE, seen("CANCELLED", "signal 15"), None, "cancelled", "SLURM says CANCELLED"),
    ("interrupted", SLURM, OURS, STALE, seen("CANCELLED"), None, "cancelled", "why"),
    ("created", replace(SLURM, job_id=None), None, None, None, None, "unknown", "was being submitted"),
]


@pytest.mark.parametrize(("status", "job", "attempt", "age", "listed", "silent", "standing", "words"), CASES)
def test_where_a_run_stands(
    status: Status,
    job: Job | None,
    attempt: Attempt | None,
    age: float | None,
    listed: JobState | None,
    silent: str | None,
    standing: Standing,
    words: str | None,
) -> None:
    found, reason = judge(RunState(status, reason="why", updated_at=1.0), job, attempt, age, listed, silent)
    assert found == standing
    assert reason is None if words is None else words in (reason or "")


def test_the_table_has_every_standing_that_is_judged() -> None:
    assert {case[6] for case in CASES} | {"pruned"} == set(get_args(Standing))  # pruned: see below


def test_a_run_that_a_sweep_has_pruned_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_state(RunState("interrupted", step=3, total_steps=9, reason="pruned after evaluation 1: r_mean 2"))
    (status,) = watch_runs([tmp_path])
    assert describe(status) == "pruned at step 3 of 9: pruned after evaluation 1: r_mean 2"


def test_a_process_that_is_gone_is_noticed_before_its_heartbeat_is_stale(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.heartbeat.touch()
    folder.write_state(RunState("running", step=3, total_steps=9))
    assert watch_runs([tmp_path])[0].standing == "running"
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    folder.write_json(folder.state, {**folder.read_json(folder.state), "pid": gone.pid})
    assert watch_runs([tmp_path])[0].standing == "lost"
    with folder.lock():  # the next attempt has begun and not written yet
        assert watch_runs([tmp_path])[0].standing == "running"
    folder.write_json(folder.state, {**folder.read_json(folder.state), "host": "elsewhere"})
    assert watch_runs([tmp_path])[0].standing == "running"  # only the heartbeat can tell


def test_a_job_that_was_submitted_a_moment_ago_is_not_gone() -> None:
    job = replace(SLURM, submitted_at=time.time())
    assert judge(RunState("created"), job, None, None, None, None)[0] == "queued"


@given(
    st.builds(RunState, st.sampled_from(get_args(Status)), reason=st.none() | st.text(), updated_at=st.floats(0, 2e9)),
    st.none() | st.builds(replace, st.sampled_from([SLURM, LOCAL]), job_id=st.sampled_from([None, "7", "7_1"])),
    st.none() | st.sampled_from([OURS, OLD]),
    st.none() | st.floats(0, 1e6),
    st.none() | st.builds(seen, st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "odd", ""]), st.text(max_size=5)),
    st.none() | st.just("down"),
)
def test_there_is_always_an_answer_and_finished_is_final(
    state: RunState, job: Job | None, attempt: Attempt | None, age: float | None, listed: JobState | None, silent: str | None
) -> None:
    standing, reason = judge(state, job, attempt, age, listed, silent)
    assert standing in get_args(Standing)
    assert (standing == "finished") == (state.status == "finished")
    if standing in ("lost", "unknown"):
        assert reason


# ------------------------------------------------------------------------------------------------------------------- folders


def made_up(
    runs_dir: Path, name: str, status: Status = "running", *, job_id: str | None = None, beat: bool = True
) -> RunFolder:
    """A folder as a run leaves it, without a run."""
    folder = RunFolder(runs_dir / name)
    folder.path.mkdir(parents=True)
    folder.write_json(folder.spec, {})
    folder.write_json(folder.plan, {"global_batch_size": 8})
    folder.write_state(RunState(status, step=10, total_steps=100))
    folder.metrics.write_text('{"step": 20, "loss/total": 0.5, "speed/images_per_second": 4.0}\n{"step": 30, "loss/tot')
    if job_id is not None:
        hand_over(folder, Job("abcd", "slurm", 0.0, "login", "/nowhere", job_id))
        folder.begin(Attempt(f"job{job_id}.2", job_id, 2))
    if beat:
        folder.heartbeat.touch()
    return folder


def test_a_running_run_is_shown_with_all_that_is_known(tmp_path: Path, commands: Commands) -> None:
    folder = made_up(tmp_path, "a", job_id="7")
    commands.say("squeue", "7|RUNNING|n3|toy.abcd|None\n")
    commands.say("sacct", "")
    (status,) = watch_runs([folder.path])
    assert (status.standing, status.step, status.total_steps) == ("running", 20, 100)
    assert (status.job_id, status.node, status.restarts) == ("7", "n3", 2)
    assert status.eta_seconds == 80 * 8 / 4.0
    assert status.metrics == {"loss/total": 0.5, "speed/images_per_second": 4.0}


def test_slurm_is_asked_once_for_all_and_sacct_for_the_rest(tmp_path: Path, commands: Commands) -> None:
    folders = [made_up(tmp_path, f"r{n}", job_id=f"7_{n}", beat=False).path for n in range(3)]
    folders.append(made_up(tmp_path, "done", "finished", job_id="8").path)
    commands.say("squeue", "7_0|RUNNING|n1|toy.abcd|None\n")
    commands.say("sacct", "7_1|CANCELLED by 0|0:0|n1|toy.abcd\n")
    standings = [status.standing for status in watch_runs(folders)]
    assert standings == ["starting", "cancelled", "lost", "finished"]
    assert [call.split()[0] for call in commands.calls] == ["squeue", "sacct"]
    assert "8" not in commands.calls[0].partition("--jobs=")[2].split()[0]


def test_without_jobs_slurm_is_not_asked(tmp_path: Path, commands: Commands) -> None:
    made_up(tmp_path, "a")
    made_up(tmp_path, "b", "finished", job_id="7")
    watch_runs(sorted(tmp_path.glob("[ab]")))
    assert commands.calls == []


def test_a_silent_slurm_is_unknown_never_gone(tmp_path: Path, commands: Commands) -> None:
    folders = [made_up(tmp_path, "a", job_id="7").path, made_up(tmp_path, "b", job_id="8", beat=False).path]
    commands.refuse("squeue", "Unable to contact slurm controller (connect failure)")
    alive, quiet = watch_runs(folders)
    assert (alive.standing, quiet.standing) == ("running", "unknown")
    commands.remove("squeue")
    assert watch_runs(folders)[1].standing == "unknown"


def test_an_old_heartbeat_of_a_local_run_is_a_lost_run(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "a")
    os.utime(folder.heartbeat, (time.time() - 1000,) * 2)
    assert watch_runs([folder.path])[0].standing == "lost"
    with folder.lock():  # its disk may be full: the lock says that it lives
        assert watch_runs([folder.path])[0].standing == "running"


def test_a_run_that_was_asked_to_stop_is_cancelled_once_it_has(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "a")
    folder.write_json(folder.cancel, {})
    assert watch_runs([folder.path])[0].standing == "running"
    folder.write_state(RunState("interrupted", step=10, reason="saved"))
    assert watch_runs([folder.path])[0].standing == "cancelled"


def test_a_failure_without_a_reason_shows_the_logs_last_line(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "a", "failed")
    folder.log(0).parent.mkdir()
    folder.log(0).write_text("first\nCUDA error: device-side assert\n\n")
    assert watch_runs([folder.path])[0].reason == "CUDA error: device-side assert"


@pytest.mark.parametrize("name", ["state.json", "job.json", "attempt.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"of_a_newer": "version"}'])
def test_one_broken_folder_does_not_hide_the_others(tmp_path: Path, commands: Commands, name: str, text: str) -> None:
    broken, good = made_up(tmp_path, "a", job_id="7"), made_up(tmp_path, "b")
    (broken.path / name).write_text(text)
    first, second = watch_runs([broken.path, good.path])
    assert first.standing == "unknown"
    assert "cannot be read" in (first.reason or "")
    assert second.standing == "running"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\n", b"[1]\n", b'{"step": 1}\n', b'{"torn'])
def test_a_metrics_file_without_a_complete_row_has_no_last_row(tmp_path: Path, text: bytes) -> None:
    folder = made_up(tmp_path, "a")
    folder.metrics.write_bytes(text)
    assert last_row(folder) == {}
    folder.plan.unlink()
    assert watch_runs([folder.path])[0].step == 10


def test_a_thousand_runs_take_seconds(tmp_path: Path, commands: Commands) -> None:
    folders = [made_up(tmp_path, f"r{n}", job_id=f"7_{n}").path for n in range(1000)]
    commands.say("squeue", "".join(f"7_{n}|RUNNING|n1|toy.abcd|None\n" for n in range(1000)))
    started = time.monotonic()
    assert {status.standing for status in watch_runs(folders)} == {"running"}
    assert time.monotonic() - started < 5
    assert len(commands.calls) == 1


# -------------------------------------------------------------------------------------------------------- queue on this machine


def queued_here(folder: RunFolder, *, submitted_at: float) -> Path:
    submission = folder.path.parent / ".submissions" / "abcd"
    submission.mkdir(parents=True)
    (submission / "heartbeat").touch()
    hand_over(folder, Job("abcd", "local", submitted_at, "here", str(submission), "1"))
    return submission


def test_a_run_in_a_living_queue_waits_whatever_its_last_start_came_to(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    submission = queued_here(folder, submitted_at=time.time())
    assert watch_runs([folder.path])[0].standing == "queued"
    for status in ("failed", "interrupted"):
        state = {"status": status, "step": 1, "total_steps": 2, "reason": "old", "updated_at": time.time() - 100}
        folder.state.write_text(json.dumps(state))
        assert watch_runs([folder.path])[0].standing == "queued"
    os.utime(submission / "heartbeat", (0, 0))
    assert watch_runs([folder.path])[0].standing == "interrupted"


def test_a_run_that_failed_in_its_queue_has_failed_while_the_queue_goes_on(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    queued_here(folder, submitted_at=time.time() - 100)
    folder.write_state(RunState("failed", reason="the loss is NaN"))
    assert watch_runs([folder.path])[0].standing == "failed"
    assert watch_runs([folder.path])[0].standing not in GOING_ON


def test_a_waiting_run_that_was_cancelled_is_cancelled(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    queued_here(folder, submitted_at=time.time())
    folder.write_json(folder.cancel, {})
    assert watch_runs([folder.path])[0].standing == "cancelled"


def test_a_submission_that_was_cut_off_is_unknown(tmp_path: Path, commands: Commands) -> None:
    folder = prepared_run(tmp_path)
    handed_over(folder, job_id=None)
    (status,) = watch_runs([folder.path])
    assert status.standing == "unknown"
    assert "tclx run finds its job again" in (status.reason or "")
    assert commands.calls == []
