"""Promises of the run folder: only the newest attempt writes, a living process beats, a request to cancel arrives once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tclx import distributed, worker
from tclx.runs import MEETING_FILE, MEETING_HOST, Attempt, RunFolder, RunState, Superseded, holding, lock_is_free
from tclx.train.heartbeat import heartbeat
from tests.launch.handed import prepared_run
from tests.processes import finish_processes, start_processes


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_newest_attempt_is_the_only_one_that_may_go_on(tmp_path: Path) -> None:
    old = RunFolder(tmp_path).begin(Attempt("job7.0", "7"))
    old.check_attempt()
    new = RunFolder(tmp_path).begin(Attempt("job7.1", "7", 1))
    new.check_attempt()
    with pytest.raises(Superseded, match=r"newer attempt job7\.1 on .*; job7\.0 ends"):
        old.check_attempt()
    RunFolder(tmp_path).check_attempt()  # a reader is nobody's attempt


def test_a_superseded_worker_leaves_state_and_errors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared_run(tmp_path)

    def overtaken(*arguments: object) -> None:
        RunFolder(folder.path).begin(Attempt("job7.1", "7", 1))
        RunFolder(folder.path).write_state(RunState("running", step=5))
        before.append(folder.state.read_bytes())
        replaced = RunFolder(folder.path, "job7.0")
        replaced.check_attempt()

    before: list[bytes] = []
    monkeypatch.setattr("tclx.train.loop.train", overtaken)
    assert worker.work(folder, Attempt("job7.0", "7"), takes_over=True) == 1
    assert folder.state.read_bytes() == before[0]
    assert not folder.error(0).exists()


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), ZeroDivisionError("x")])
def test_a_superseded_worker_that_ends_otherwise_writes_no_state_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException
) -> None:
    folder = prepared_run(tmp_path)

    def overtaken(*arguments: object) -> None:
        RunFolder(folder.path).begin(Attempt("job7.1", "7", 1))
        RunFolder(folder.path).write_state(RunState("running", step=5))
        before.append(folder.state.read_bytes())
        raise ending

    before: list[bytes] = []
    monkeypatch.setattr("tclx.train.loop.train", overtaken)
    worker.work(folder, Attempt("job7.0", "7"), takes_over=True)
    assert folder.state.read_bytes() == before[0]


def test_a_living_process_beats_and_a_dead_one_does_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with heartbeat(folder, every_seconds=0.01):
        until(folder.heartbeat.exists)
        first = folder.heartbeat.stat().st_mtime_ns
        until(lambda: folder.heartbeat.stat().st_mtime_ns > first)
    last = folder.heartbeat.stat().st_mtime_ns
    time.sleep(0.05)
    assert folder.heartbeat.stat().st_mtime_ns == last
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_request_to_cancel_arrives_once(tmp_path: Path) -> None:
    folder, received = RunFolder(tmp_path), list[int]()
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    with heartbeat(folder, every_seconds=0.01):
        time.sleep(0.05)
        assert received == []
        folder.write_json(folder.cancel, {})
        until(lambda: bool(received))
        time.sleep(0.05)
    assert received == [signal.SIGTERM]


def test_processes_meet_over_a_file(tmp_path: Path) -> None:
    """Two real ones, without any port agreed upon."""
    code = (
        "import torch\nfrom tclx import distributed\n"
        "with distributed.start(torch.device('cpu')):\n"
        "    print(distributed.all_gather_object(distributed.rank()))"
    )
    environment = {MEETING_FILE: str(tmp_path / "meeting" / "job7.0"), MEETING_HOST: "127.0.0.1", "MASTER_PORT": "1"}
    outputs = finish_processes(start_processes(["-c", code], world_size=2, environment=environment))
    assert [output.strip() for output in outputs] == ["[0, 1]"] * 2
    host, _, port = (tmp_path / "meeting" / "job7.0").read_text().rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 1023


def test_a_rank_0_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "MEETING_PATIENCE_SECONDS", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(distributed.MachineError, match="rank 0 has not written its address"):
        distributed._meet(tmp_path / "none")


def test_who_looks_at_a_lock_is_not_taken_for_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    looker = path.open("rb")
    assert lock_is_free(looker.fileno())
    threading.Timer(0.02, looker.close).start()
    with holding(path) as free:
        assert free
        with path.open("rb") as other:
            assert not lock_is_free(other.fileno())
        with holding(path) as also:
            assert not also
