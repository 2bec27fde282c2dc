"""Promises of `launch`: nothing is trained twice, nothing is lost, and every ending is told apart.

A stand-in worker ends in every way that a real one can; tests/cli runs the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError, MachineError
from tclx.launch.local import queue as local
from tclx.launch.local.queue import Outcome, launch, worker_command
from tclx.launch.order import PlannedRun, plan_runs
from tclx.runs import Attempt, RunFolder, RunState, Status
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[2]

WORKER = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tclx.runs import RunFolder
folder = RunFolder(Path(sys.argv[1]))
ending = os.environ.get("ENDING_" + folder.run_id.split("-")[0].upper(), "finished")
with (folder.path.parent / "log").open("a") as log:
    log.write(folder.run_id + "\\n")
state = folder.read_state()
def end(status, code, reason=None):
    folder.write_state(replace(state, status=status, step=1, reason=reason))
    sys.exit(code)
if ending == "killed":
    folder.write_state(replace(state, status="running"))
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "waits":
    signal.signal(signal.SIGINT, lambda *_: end("interrupted", 75, "saved at step 1"))
    folder.write_state(replace(state, status="running"))
    time.sleep(60)
if ending == "stuck":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder.write_state(replace(state, status="running"))
    time.sleep(60)
if ending == "stops":
    end("interrupted", 75, "saved at step 1")
if ending == "dies":
    time.sleep(2)
    sys.exit(5)
if ending.startswith("failed"):
    end("failed", int(ending[6:]), "the loss is NaN")
end("finished", 0)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in where the worker is started."""
    script = tmp_path / "stand_in.py"
    script.write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setattr(local, "worker_command", lambda folder, num_processes: [sys.executable, str(script), str(folder.path)])
    return script


def plan(*paths: Path) -> list[PlannedRun]:
    return plan_runs(paths, runs_dir=paths[0].parent / "runs")


def start(*paths: Path, again: bool = False) -> list[Outcome]:
    return launch(plan(*paths), runs_dir=paths[0].parent / "runs", again=again)


def trained(folder: Path) -> list[str]:
    """Names of the experiments that a worker was started for, in order."""
    log = folder / "runs" / "log"
    return [line.split("-")[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_runs_are_trained_in_order_and_once(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    assert [outcome.ending for outcome in start(fine)] == ["finished", "finished"]
    assert [outcome.ending for outcome in start(fine)] == ["already finished", "already finished"]
    assert trained(tmp_path) == ["pre", "fine"]


def test_the_folder_holds_spec_and_plan_before_the_worker_starts(tmp_path: Path) -> None:
    (outcome,) = start(write_spec(tmp_path))
    (run,) = plan(tmp_path / "toy.yaml")
    assert outcome.folder.read_json(outcome.folder.spec) == run.spec.model_dump(mode="json")
    assert outcome.folder.read_json(outcome.folder.plan) == run.plan.to_json()


def test_again_trains_what_was_asked_for_and_keeps_the_old_folder(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    start(fine)
    start(fine, again=True)
    outcomes = start(fine, again=True)
    assert trained(tmp_path) == ["pre", "fine", "fine", "fine"]
    kept = [outcomes[1].folder.path.with_name(f"{outcomes[1].folder.run_id}.old-{number}") for number in (1, 2)]
    assert all((folder / "spec.json").is_file() for folder in kept)


def test_a_failure_skips_what_needs_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDING_PRE", "failed3")
    write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    outcomes = start(fine, write_spec(tmp_path, "other"))
    assert [(outcome.ending, outcome.exit_code) for outcome in outcomes] == [("failed", 3), ("skipped", 3), ("finished", 0)]
    assert outcomes[0].reason == "the loss is NaN"
    assert trained(tmp_path) == ["pre", "other"]


def test_a_killed_worker_is_a_failure_that_names_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDING_TOY", "killed")
    (outcome,) = start(write_spec(tmp_path))
    assert (outcome.ending, outcome.exit_code) == ("failed", 1)
    assert "SIGKILL" in (outcome.reason or "")


def test_a_worker_that_ended_without_a_word_is_known_by_what_it_printed(tmp_path: Path) -> None:
    (run,) = plan(write_spec(tmp_path))
    folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
    local.prepare(run, folder)
    folder.log(0).parent.mkdir()
    folder.log(0).write_text("--- older, rank 0\nan older word\n--- this, rank 0\nloading\nImportError: libcuda.so\n\n")
    outcome = local.outcome_of(run, folder, 1, attempt="this", since=1.0, asked_to_stop=False)
    assert "exit code 1" in (outcome.reason or "")
    assert "after printing: ImportError: libcuda.so" in (outcome.reason or "")
    silent = local.outcome_of(run, folder, -9, attempt="another", since=time.time(), asked_to_stop=False)
    assert "printing" not in (silent.reason or "")


def test_the_state_of_an_earlier_attempt_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_spec(tmp_path)
    (run,) = plan(spec)
    folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
    local.prepare(run, folder)
    folder.write_state(RunState("interrupted", step=1, total_steps=2))
    monkeypatch.setattr(local, "worker_command", lambda folder, num_processes: [sys.executable, "-c", "raise SystemExit(5)"])
    (outcome,) = start(spec)
    assert outcome.ending == "failed"
    assert "exit code 5" in (outcome.reason or "")


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    (outcome,) = start(spec)
    with outcome.folder.lock():
        (held,) = start(spec, again=True)
    assert (held.ending, held.exit_code) == ("held", 1)
    assert trained(tmp_path) == ["toy"]


REAL_WORKER = worker_command


@pytest.mark.parametrize("num_processes", [1, 2])
def test_who_comes_a_moment_too_late_leaves_the_winners_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    """Two commands at once: both found the run free, and one worker was first."""
    launch = {"num_processes": num_processes}
    write_spec(tmp_path, "pre", launch=launch)
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    run, _ = plan(fine)
    folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
    local.prepare(run, folder)
    monkeypatch.setattr(local, "worker_command", REAL_WORKER)
    really, looks = local.is_held, iter([False])  # the first look is before the start
    monkeypatch.setattr(local, "is_held", lambda folder: next(looks, None) is None and really(folder))
    with folder.lock():
        folder.begin(Attempt("winner"))
        folder.write_state(RunState("running", step=1, total_steps=2))
        before = folder.state.read_bytes()
        outcomes = start(fine)
    assert [(outcome.ending, outcome.exit_code) for outcome in outcomes] == [("held", 1), ("skipped", 1)]
    assert "another process is training right now" in (outcomes[1].reason or "")
    assert folder.state.read_bytes() == before
    assert not folder.error(0).exists()


def test_a_run_that_cannot_be_written_takes_no_other_down(tmp_path: Path) -> None:
    first, second = write_spec(tmp_path), write_spec(tmp_path, "other")
    (run,) = plan(first)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / run.plan.run_id).write_text("a file where the run's folder should be")
    outcomes = start(first, second)
    assert [(outcome.ending, outcome.exit_code) for outcome in outcomes] == [("failed", 3), ("finished", 0)]
    assert "could not make" in (outcomes[0].reason or "")


def interrupted(tmp_path: Path, stand_in: Path, *, ending: str, times: int) -> list[list[Any]]:
    """Two runs whose first ends so, in a process that gets SIGINT so often; their outcomes."""
    first, second = write_spec(tmp_path, "toy"), write_spec(tmp_path, "other")
    code = f"""
import sys
from pathlib import Path
from tclx.launch.local import queue as local
from tclx.launch.order import plan_runs
local.INSISTED_SECONDS = 0.5
local.worker_command = lambda folder, n: [sys.executable, {str(stand_in)!r}, str(folder.path)]
runs_dir = Path({str(tmp_path)!r}) / "runs"
runs = plan_runs([Path({str(first)!r}), Path({str(second)!r})], runs_dir=runs_dir)
print([(one.ending, one.exit_code, one.reason) for one in local.launch(runs, runs_dir=runs_dir)])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "ENDING_TOY": ending}, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not any('"running"' in path.read_text() for path in tmp_path.glob("runs/toy-*/state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    output, _ = process.communicate(timeout=30)
    assert trained(tmp_path) == ["toy"]
    outcomes: list[list[Any]] = json.loads(output.replace("'", '"').replace("(", "[").replace(")", "]"))
    return outcomes


def test_an_interrupt_is_passed_on_waited_for_and_ends_the_queue(tmp_path: Path, stand_in: Path) -> None:
    assert interrupted(tmp_path, stand_in, ending="waits", times=1) == [["interrupted", 130, "saved at step 1"]]


def test_a_second_interrupt_kills_what_does_not_end_by_itself(tmp_path: Path, stand_in: Path) -> None:
    ((ending, exit_code, reason),) = interrupted(tmp_path, stand_in, ending="stuck", times=2)
    assert (ending, exit_code) == ("interrupted", 130)
    assert "did not end when it was asked a second time" in reason
    (folder,) = (tmp_path / "runs").glob("toy-*")
    assert (RunFolder(folder).read_state() or RunState("created")).status == "interrupted"


def test_a_run_that_stops_alone_does_not_excuse_the_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is started after it, but the other was not asked to stop."""
    monkeypatch.setenv("ENDING_TOY", "stops")
    monkeypatch.setenv("ENDING_OTHER", "dies")
    both = {"max_parallel_runs": 2}
    outcomes = start(write_spec(tmp_path, launch=both), write_spec(tmp_path, "other", launch=both))
    assert [outcome.ending for outcome in outcomes] == ["interrupted", "failed"]
    assert "exit code 5" in (outcomes[1].reason or "")


def ended(
    folder: Path, exit_code: int, *, num_processes: int = 1, state: RunState | None = None, asked_to_stop: bool = False
) -> Outcome:
    """How a start is judged whose processes are gone."""
    (run,) = plan(write_spec(folder, launch={"num_processes": num_processes}))
    run_folder = RunFolder(folder / "runs" / run.plan.run_id)
    local.prepare(run, run_folder)
    if state is not None:
        run_folder.write_state(state)
    if num_processes > 1:
        note = {"attempt": "this", "host": "n1", "time": 1.0, "reason": "the loss is NaN", "lost_peer": False}
        run_folder.write_json(run_folder.error(1), note)
    return local.outcome_of(run, run_folder, exit_code, attempt="this", since=1.0, asked_to_stop=asked_to_stop)


@pytest.mark.parametrize("status", ["created", "running", "interrupted", "failed"])
def test_the_process_that_fell_first_is_the_cause_whatever_rank_0_says(tmp_path: Path, status: Status) -> None:
    outcome = ended(tmp_path, 1, num_processes=2, state=RunState(status, reason="stopped while it started"))
    assert (outcome.ending, outcome.reason) == ("failed", "rank 1 on n1: the loss is NaN")
    assert (outcome.folder.read_state() or RunState("created")).reason == outcome.reason


def test_a_rank_that_stood_still_is_named_whatever_rank_0_says(tmp_path: Path) -> None:
    state = RunState("failed", step=3, reason="another process of this run is gone")
    note = {"attempt": "this", "host": "h", "time": 0.5, "reason": "rank 1 on h gave no sign of life", "lost_peer": False}
    (run,) = plan(write_spec(tmp_path, launch={"num_processes": 2}))
    folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
    local.prepare(run, folder)
    folder.write_state(state)
    folder.write_json(folder.error(0), {**note, "stood_still": {"rank": 1, "node": "h"}})
    outcome = local.outcome_of(run, folder, 1, attempt="this", since=1.0, asked_to_stop=False)
    assert (outcome.ending, outcome.reason) == ("failed", "rank 1 on h gave no sign of life")


def test_what_a_wish_to_stop_ends_before_it_began_has_not_failed(tmp_path: Path) -> None:
    assert ended(tmp_path, -signal.SIGTERM, asked_to_stop=True).ending == "interrupted"
    assert ended(tmp_path, -signal.SIGTERM).ending == "failed"
    running = RunState("running", step=3)
    assert ended(tmp_path, -signal.SIGKILL, asked_to_stop=True, state=running).ending == "failed"


def test_a_runs_folder_that_cannot_be_made_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MachineError, match="could not make"):
        start(write_spec(tmp_path))


def test_bad_images_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "broken.jpg", "caption": "a dog"}] * 8))
    data = {"train": {"source": "files", "form": "pretrain", "files": ["rows.json"], "image_root": "."}}
    spec = write_spec(tmp_path, data=data, evaluation={})
    with pytest.raises(InputError, match=r"broken\.jpg"):
        start(spec)
    assert not trained(tmp_path)


def test_a_file_in_the_current_directory_is_not_mistaken_for_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traceback.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH")
    probe = [sys.executable, "-m", "tclx.worker"]
    ended = subprocess.run(probe, env=local.worker_environment(1), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: python -m tclx.worker")


def test_several_processes_go_through_torchrun() -> None:
    command = worker_command(RunFolder(Path("r")), 4)
    assert command[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "tclx.worker", "r",
    ]  # fmt: skip
