"""Promises of a job's last word: who goes on, who has failed, and that nobody brings back what was cancelled."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tclx import worker
from tclx.errors import InputError
from tclx.launch import task
from tclx.launch.prepare import hand_over
from tclx.launch.task import look_after, run_of_task
from tclx.runs import MEETING_FILE, MEETING_HOST, Attempt, Job, RunFolder, RunState, Superseded
from tests.launch.handed import Commands, handed_over, prepared_run

PROJECT = Path(__file__).resolve().parents[2]
RUNNING = "JobId=7 JobName=toy.abcd JobState=RUNNING Reason=None\n"


class Job7:
    """A job whose tasks have just ended."""

    def __init__(self, folder: RunFolder, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands, self._monkeypatch = folder, commands, monkeypatch
        self.submission = handed_over(folder)
        for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_RESTART_COUNT", "0")):
            monkeypatch.setenv(name, value)
        commands.say("scontrol", RUNNING)
        self.start(0)

    def start(self, restart: int) -> None:
        self._monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        self.folder.begin(Attempt(f"job7.{restart}", "7", restart))
        self.say("running")

    def say(self, status: Any, **facts: Any) -> None:
        state = self.folder.read_state() or RunState("created")
        self.folder.write_state(replace(state, status=status, **facts))

    def save(self, step: int) -> None:
        self.folder.write_json(self.folder.checkpoints / f"step-{step:08d}" / "manifest.json", {})

    def log(self, text: str) -> None:
        (self.submission / "7_0_log.out").write_text(text)

    def end(self, exit_code: int = 137) -> RunState:
        self.code = look_after(self.folder, self.submission, exit_code=exit_code)
        state = self.folder.read_state()
        assert state is not None
        return state

    @property
    def requeues(self) -> int:
        return self.commands.calls.count("scontrol requeue 7")


@pytest.fixture
def job(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Job7:
    monkeypatch.setattr(task, "WAIT_TO_BE_ENDED_SECONDS", 0)
    launch = {"backend": "slurm", "gpus_per_node": 0, "max_restarts": 5}
    return Job7(prepared_run(tmp_path, launch=launch), commands, monkeypatch)


def test_a_finished_run_is_left_alone(job: Job7) -> None:
    job.say("finished", step=2)
    before = job.folder.state.read_bytes()
    job.end(0)
    assert (job.code, job.requeues) == (0, 0)
    assert job.folder.state.read_bytes() == before


def test_a_run_that_was_stopped_and_saved_goes_on(job: Job7) -> None:
    job.save(3)
    job.say("interrupted", step=3, reason="SIGUSR2: saved at step 3")
    state = job.end(0)
    assert job.requeues == 1
    assert job.code != 0  # a job that ends before SLURM ends it must not count as completed
    assert (state.status, state.step, state.reason) == ("interrupted", 3, "SIGUSR2: saved at step 3; requeued")


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_cancelled_job_is_not_brought_back(job: Job7, state: str) -> None:
    job.save(3)
    job.say("interrupted", step=3, reason="SIGTERM: saved at step 3")
    job.commands.say("scontrol", RUNNING.replace("RUNNING", state))
    ended = job.end(0)
    assert job.requeues == 0
    assert ended.status == "interrupted"
    assert "cancelled" in (ended.reason or "")
    assert "step 3" in (ended.reason or "")


def test_a_request_to_cancel_is_enough(job: Job7) -> None:
    job.say("interrupted", step=3)
    job.folder.write_json(job.folder.cancel, {})
    job.end(0)
    assert job.requeues == 0


def test_a_silent_controller_does_not_cancel(job: Job7, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    job.commands.put("scontrol", '[ "$1" = requeue ] && exit 0; echo "Unable to contact slurm controller" >&2; exit 1')
    job.say("interrupted", step=3)
    job.end(0)
    assert job.requeues == 1


def test_what_failed_by_itself_stays_failed_with_the_cause(job: Job7) -> None:
    note = {"attempt": "job7.0", "host": "n2", "time": 1.0, "reason": "the loss is NaN", "lost_peer": False}
    job.folder.write_json(job.folder.error(2), note)
    job.say("failed", reason="lost a peer")
    state = job.end(1)
    assert (state.status, state.reason) == ("failed", "rank 2 on n2: the loss is NaN")
    assert (job.code, job.requeues) == (1, 0)


def test_a_process_that_fell_is_the_cause_also_where_rank_0_was_asked_to_stop_because_of_it(job: Job7) -> None:
    """srun sends SIGTERM to the others when one has fallen, maybe before they could notice themselves."""
    job.say("interrupted", reason="stopped while it started")
    note = {"attempt": "job7.0", "host": "n2", "time": 1.0, "reason": "the GPU's 80 GiB are not enough", "lost_peer": False}
    job.folder.write_json(job.folder.error(2), note)
    state = job.end(1)
    assert (state.status, job.requeues) == ("failed", 0)
    assert state.reason == "rank 2 on n2: the GPU's 80 GiB are not enough"


def test_out_of_memory_is_not_tried_again(job: Job7) -> None:
    job.log("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n1: task 0: Out Of Memory\n")
    state = job.end()
    assert job.requeues == 0
    assert state.status == "failed"
    assert "launch.memory_gb" in (state.reason or "")


def test_killed_once_goes_on_and_twice_at_the_same_step_has_failed(job: Job7) -> None:
    job.save(3)
    job.log("srun: error: n1: task 0: Killed\n")
    assert job.end().status == "interrupted"
    assert job.requeues == 1
    job.start(1)
    state = job.end()
    assert job.requeues == 1
    assert state.status == "failed"
    assert "rank 0 was killed (killed) without a word, 2 times at step 3" in (state.reason or "")


def test_killed_twice_with_progress_between_goes_on(job: Job7) -> None:
    job.save(3)
    job.end()
    job.start(1)
    job.save(4)
    assert job.end().status == "interrupted"
    assert job.requeues == 2


SHOWN = "JobId=7 JobName=toy.abcd JobState=RUNNING Reason=None Partition=gpu NumNodes=2-2 ExcNodeList=n4\n"


class Still:
    """A run of two nodes, one of whose ranks stands still again and again."""

    def __init__(self, job: Job7, *, nodes: int = 4) -> None:
        self.job, self.number = job, -1
        job.commands.put(
            "scontrol",
            f'[ "$2" = hostnames ] && echo n4 && exit; [ "$1" = update ] && exit; echo "{SHOWN.strip()}"',
        )
        job.commands.say("sinfo", "".join(f"n{number + 1}\n" for number in range(nodes)))

    def end(self, node: str | None) -> RunState:
        self.number += 1
        self.job.start(self.number)
        said = {"attempt": f"job7.{self.number}", "host": "h", "time": 1.0, "reason": f"rank 2 on {node} gave no sign of life"}
        note = {**said, "lost_peer": False, "stood_still": {"rank": 2, "node": node}}
        self.job.folder.write_json(self.job.folder.error(0), note)
        return self.job.end(3)

    @property
    def updates(self) -> list[str]:
        return [call for call in self.job.commands.calls if call.startswith("scontrol update")]


def test_a_rank_that_stood_still_goes_on_elsewhere_after_the_second_time_on_a_node(job: Job7) -> None:
    still = Still(job)
    job.save(3)
    state = still.end("n2")
    assert (state.status, state.reason) == ("interrupted", "rank 2 on n2 gave no sign of life; requeued")
    assert (job.requeues, still.updates) == (1, [])
    assert still.end("n2").status == "interrupted"
    assert (job.requeues, still.updates) == (2, ["scontrol update JobId=7 ExcNodeList=n4,n2"])
    assert still.end("n1").status == "interrupted"
    failed = still.end("n3")
    assert failed.status == "failed"
    assert "4 times at step 3" in (failed.reason or "")
    assert job.requeues == 3


def test_a_node_that_cannot_be_spared_stays(job: Job7) -> None:
    """Four nodes of which the user avoids one and two are needed: one may be left out, a second one not."""
    still = Still(job)
    for number, node in enumerate(("n1", "n1", "n2", "n2")):
        job.save(number)
        still.end(node)
    assert still.updates[-1] == "scontrol update JobId=7 ExcNodeList=n4,n1"


def test_a_node_that_is_not_known_is_not_left_out(job: Job7) -> None:
    still = Still(job)
    for number in range(3):
        job.save(number)
        assert still.end(None).status == "interrupted"
    assert still.updates == []


def test_a_node_that_slurm_does_not_leave_out_does_not_keep_the_run_from_going_on(
    job: Job7, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(task, "_LEAVE_OUT_SECONDS", 0.0)
    still = Still(job)
    job.commands.put(
        "scontrol",
        '[ "$2" = hostnames ] && echo n4 && exit; [ "$1" = update ] && echo "Access denied" >&2 && exit 1; '
        f'echo "{SHOWN.strip()}"',
    )
    job.save(3)
    still.end("n2")
    assert still.end("n2").status == "interrupted"
    assert job.requeues == 2
    assert "could not leave out n2: Access denied" in capsys.readouterr().err


def test_a_torn_line_of_events_is_no_obstacle(job: Job7) -> None:
    job.end()
    with job.folder.events.open("ab") as file:
        file.write(b'{"time": 3, "ev\n\xff\n[1]\n{}\n{"event": "killed"}\n')
    job.start(1)
    assert job.end().status in ("interrupted", "failed")


def test_an_allocation_too_short_for_a_step_ends_with_advice(job: Job7) -> None:
    for restart in range(3):
        job.start(restart)
        job.say("interrupted", step=0, reason="SIGUSR2: saved at step 0")
        state = job.end(0)
    assert job.requeues == 2
    assert state.status == "failed"
    assert "3 times at step 0: raise launch.time_limit_minutes" in (state.reason or "")


def test_restarts_are_bounded(job: Job7) -> None:
    job.start(5)
    job.save(9)
    job.say("interrupted", step=9, reason="SIGUSR2: saved at step 9")
    state = job.end(0)
    assert job.requeues == 0
    assert state.status == "failed"
    assert state.step == 9
    assert "restarted 5 times, and launch.max_restarts is 5" in (state.reason or "")


def test_a_job_that_was_started_again_elsewhere_is_not_judged(job: Job7, monkeypatch: pytest.MonkeyPatch) -> None:
    job.start(1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    before = job.folder.state.read_bytes()
    job.end()
    assert job.folder.state.read_bytes() == before
    assert job.requeues == 0
    assert job.code == 1


@pytest.mark.parametrize("state", ["PENDING", "REQUEUED", "REQUEUE_HOLD"])
def test_a_job_that_already_waits_for_its_next_start_is_not_judged(job: Job7, state: str) -> None:
    """SLURM has given its node up, where this start of it lived on and ends only now."""
    job.say("interrupted", step=3, reason="SIGTERM: saved at step 3")
    job.commands.say("scontrol", RUNNING.replace("RUNNING", state))
    before = job.folder.state.read_bytes()
    job.end(0)
    assert job.folder.state.read_bytes() == before
    assert (job.code, job.requeues) == (1, 0)
    job.folder.write_json(job.folder.cancel, {})
    assert "cancelled" in (job.end(0).reason or "")


def test_setup_that_fails_is_a_failure_with_its_last_words(job: Job7) -> None:
    job.folder.attempt.unlink()
    job.say("created")
    job.log("bash: module: command not found\n")
    state = job.end(2)
    assert state.status == "failed"
    assert "before training began (exit code 2)" in (state.reason or "")
    assert "module: command not found" in (state.reason or "")
    assert job.requeues == 0


def test_a_job_killed_while_it_started_goes_on(job: Job7) -> None:
    job.folder.attempt.unlink()
    job.say("created")
    assert job.end(137).status == "interrupted"
    assert job.requeues == 1


def test_a_requeue_that_is_refused_is_said(job: Job7) -> None:
    job.commands.put(
        "scontrol", f'[ "$1" = requeue ] && echo "Requested operation is disabled" >&2 && exit 1; echo "{RUNNING}"'
    )
    job.say("interrupted", step=3, reason="saved at step 3")
    state = job.end(0)
    assert state.status == "interrupted"
    assert "could not requeue: Requested operation is disabled" in (state.reason or "")


def test_a_word_of_an_earlier_start_is_no_word_of_this_one(job: Job7) -> None:
    """The state says interrupted, from before; this start was killed before it could write."""
    job.save(3)
    job.say("interrupted", step=3, reason="SIGUSR2: saved at step 3")
    job.end(0)
    job.folder.begin(Attempt("job7.1", "7", 1))
    job._monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    job.log("srun: error: n1: task 0: Killed\n")
    state = job.end(137)
    assert "killed" in (state.reason or "")


# ---------------------------------------------------------------------------------------------------------------- whose run


def test_each_task_of_an_array_has_its_run(tmp_path: Path) -> None:
    first, second = prepared_run(tmp_path), prepared_run(tmp_path, "other")
    submission = handed_over(first)
    handed_over(second)
    (submission / "runs.json").write_text(f'["{first.path}", "{second.path}"]')
    assert run_of_task(submission, {}) == first
    assert run_of_task(submission, {"SLURM_ARRAY_TASK_ID": "1"}) == second


def test_a_run_that_was_handed_to_a_newer_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared_run(tmp_path)
    submission = handed_over(folder)
    hand_over(folder, Job("ef01", "slurm", 1.0, "login", str(submission), "8"))
    with pytest.raises(InputError, match="handed to another job since"):
        run_of_task(submission, {})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = folder.state.read_bytes()
    assert task.main(["rank", str(submission)]) == 2
    assert task.main(["after", str(submission), "1"]) == 2
    assert folder.state.read_bytes() == before
    assert not folder.attempt.exists()


def test_a_folder_that_was_set_aside_is_nobodys(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path)
    submission = handed_over(folder)
    folder.path.rename(tmp_path / "gone")
    with pytest.raises(InputError):
        run_of_task(submission, {})


@pytest.mark.parametrize("arguments", [[], ["rank"], ["before", "x"], ["rank", "x", "1", "2"], ["after", "x"]])
def test_anything_else_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert task.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ")


# ------------------------------------------------------------------------------------------------------------------ taking over

TRAIN = """
import os, sys, types

def train(folder, spec, plan):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "TCLX_MEETING_FILE", "TCLX_MEETING_HOST")
    (folder.path / f"trained-{os.environ['RANK']}").write_text(" ".join(os.environ.get(name, "-") for name in names))

loop = types.ModuleType("tclx.train.loop")
loop.train = train
sys.modules["tclx.train.loop"] = loop
"""


class Ranks:
    """Real processes of `task rank` with a training loop that only leaves a note."""

    def __init__(self, folder: Path) -> None:
        self.run = prepared_run(folder, launch={"backend": "slurm", "gpus_per_node": 0, "tasks_per_node": 2})
        self.submission = handed_over(self.run)
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "stub").mkdir()
        (folder / "stub" / "sitecustomize.py").write_text(TRAIN)
        self._path = f"{PROJECT}{os.pathsep}{folder / 'stub'}"

    def start(self, rank: int, *, num_tasks: int = 2, restart: int = 1) -> subprocess.Popen[bytes]:
        told = {
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restart),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": str(num_tasks),
            "SLURM_CPUS_PER_TASK": "3",
        }
        command = [sys.executable, "-m", "tclx.launch.task", "rank", str(self.submission)]
        self.started.append(subprocess.Popen(command, env={"PYTHONPATH": self._path, "PATH": os.defpath, **told}))
        return self.started[-1]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def has_trained(self, rank: int) -> bool:
        return (self.run.path / f"trained-{rank}").exists()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path)
    yield ranks
    for process in ranks.started:
        process.kill()
        process.wait()


def test_a_new_start_waits_until_the_old_process_has_let_go(ranks: Ranks) -> None:
    """It says at once that the run is its own, which is what makes the old one stop."""
    ranks.run.begin(Attempt("job7.0", "7", 0))
    with ranks.run.lock() as held:
        assert held
        newer = ranks.start(0)
        ranks.until(lambda: (attempt := ranks.run.read_attempt()) is not None and attempt.name == "job7.1")
        with pytest.raises(Superseded):
            replace(ranks.run, attempt_name="job7.0").check_attempt()
        time.sleep(1.0)
        assert newer.poll() is None
        assert not ranks.has_trained(0)
    assert newer.wait(timeout=60) == 0
    assert ranks.has_trained(0)


def test_only_rank_0_waits_and_each_process_knows_its_place(ranks: Ranks) -> None:
    with ranks.run.lock() as held:
        assert held
        assert ranks.start(1).wait(timeout=60) == 0
    meeting = ranks.submission / "meeting" / "job7.1"
    host = socket.gethostname()
    assert (ranks.run.path / "trained-1").read_text() == f"1 2 1 3 {meeting} {host}"
    assert "--- job7.1, rank 1 on " in ranks.run.log(1).read_text()


@pytest.mark.parametrize("known", [True, False])
def test_other_nodes_reach_rank_0_at_the_address_that_slurm_itself_uses(
    job: Job7, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Names of nodes need not resolve; where SLURM does not say, the host's name is all there is."""
    monkeypatch.setattr(task, "print_into_run", lambda folder, attempt: None)
    monkeypatch.setattr(task, "work", lambda folder, attempt, *, takes_over: int(takes_over))
    for name, value in (("PROCID", "0"), ("NTASKS", "2"), ("LOCALID", "0"), ("CPUS_PER_TASK", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", MEETING_FILE, MEETING_HOST):
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    if known:
        job.commands.say("scontrol", "NodeName=n2 NodeAddr=10.0.0.2 NodeHostName=elsewhere\n")
    else:
        job.commands.refuse("scontrol", "node n2 not found")
    assert task.run_rank(job.folder, job.submission) == 1
    assert job.commands.calls[-1] == "scontrol show node n2 --oneliner"
    assert os.environ[MEETING_HOST] == ("10.0.0.2" if known else socket.gethostname())
    assert os.environ[MEETING_FILE] == str(job.submission / "meeting" / "job7.0")
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")] == ["0", "2", "0", "3"]


def test_a_single_process_meets_nobody(ranks: Ranks) -> None:
    assert ranks.start(0, num_tasks=1).wait(timeout=60) == 0
    assert (ranks.run.path / "trained-0").read_text() == "0 1 0 3 - -"
    attempt = ranks.run.read_attempt()
    assert attempt is not None
    assert (attempt.name, attempt.job_id, attempt.restart) == ("job7.1", "7", 1)


def test_an_old_process_that_never_lets_go_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "HANDOVER_SECONDS", 0.2)
    folder = prepared_run(tmp_path)
    state = folder.state.read_bytes()
    with folder.lock():
        assert worker.work(folder, Attempt("job7.1", "7", 1), takes_over=True) == worker.HELD_BY_ANOTHER
    assert "another process is training" in capsys.readouterr().err
    assert folder.state.read_bytes() == state
