"""Who is told what, through the real apprise and a server that takes messages; nothing that goes wrong here reaches a run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tclx.spec.tracking import NotifySpec
from tclx.track import notify
from tclx.track.notify import ADDRESSES, tell
from tests.cli.test_cli import run_process
from tests.launch.toy import SPEC, write_spec
from tests.sweep.toy import run as run_sweep
from tests.sweep.toy import status, wait_until, write_sweep
from tests.track.receiver import SECRET, Receiver, receiver

__all__ = ["receiver"]


def told(event: notify.Event = "failed", spec: NotifySpec | None = NotifySpec()) -> list[str]:  # noqa: B008
    said: list[str] = []
    tell(spec, event, title="a title", body="a body", say=said.append)
    return said


def test_every_address_has_the_message(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESSES, f"{receiver.address} {receiver.address}/again")
    assert told() == []
    assert [(message["title"], message["message"]) for message in receiver.messages] == [("a title", "a body")] * 2


def test_what_was_not_asked_for_is_not_told(receiver: Receiver) -> None:
    assert told("interrupted") == told("failed", None) == told("finished", NotifySpec(on=("best",))) == []
    assert receiver.messages == []


def test_why_nobody_was_told_is_said_without_the_address(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.status = 500
    assert told() == ["not everybody was told: json: it was not taken"]
    monkeypatch.setenv(ADDRESSES, f"nothing://{SECRET}")
    assert told() == ["not everybody was told: nothing: apprise knows no such address"]
    monkeypatch.setenv(ADDRESSES, f"json://127.0.0.1:1/{SECRET}")
    assert told() == ["not everybody was told: json: it was not taken"]
    monkeypatch.delenv(ADDRESSES)
    assert told() == [f"nobody was told: {ADDRESSES} names no address"]


def test_a_server_that_does_not_answer_holds_nobody_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "SECONDS", 2.0)
    receiver.delay = 6.0
    began = time.monotonic()
    assert told() == ["not everybody was told: it took more than 2 s"]
    assert time.monotonic() - began < 5


def test_runs_say_that_they_have_finished_or_failed_and_why(receiver: Receiver, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tracking={"notify": {}})
    assert run_process("run", spec, "--runs-dir", tmp_path / "runs").returncode == 0
    (message,) = receiver.messages
    assert message["title"].startswith("tclx: toy-s0-")
    assert message["title"].endswith(" finished")
    assert "test: r_mean " in message["message"]
    assert "step 2 of 2" in message["message"]
    long = write_spec(tmp_path, name="long", tracking={"notify": {}}, training={**SPEC["training"], "steps": 5000})
    command = [
        sys.executable,
        "-c",
        "from tclx.cli import main; main()",
        "run",
        str(long),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: bool(list(tmp_path.glob("runs/long-*/metrics.jsonl"))))
    for worker in psutil.Process(process.pid).children(recursive=True):
        if "tclx.worker" in worker.cmdline():
            worker.kill()
    assert process.wait() == 1
    assert receiver.titles[-1].startswith("tclx: long-s0-")
    assert receiver.titles[-1].endswith(" failed")
    assert "the worker ended without a word (signal SIGKILL)" in receiver.messages[-1]["message"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_without_an_address_the_plan_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESSES, raising=False)
    done = run_process("plan", "--quick", write_spec(tmp_path, tracking={"notify": {"on": ["failed"]}}))
    assert f"warning: tracking.notify: the environment variable {ADDRESSES} names no address" in done.stderr


def test_a_sweep_tells_of_every_trial_that_is_the_best_so_far(receiver: Receiver, tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=4, experiment={"tracking": {"log_every_steps": 1, "notify": {"on": ["best"]}}})
    code, _, stderr = run_sweep(path)
    assert code == 0, stderr
    values = [trial["values"][0] for trial in sorted(status(path)["trials"], key=lambda trial: trial["number"])]
    better = [number for number in range(1, len(values)) if values[number] > max(values[:number])]
    assert receiver.titles == [f"tclx: {status(path)['name']}: trial {number} is the best so far" for number in better]
