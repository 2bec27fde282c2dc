"""Promises of the run folder: only the newest attempt writes, a living process beats, a request to cancel arrives once."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tclx import distributed, runs, worker
from tclx.errors import MachineError
from tclx.files import MAX_JSON_BYTES, Unreadable, holding, lock_is_free, read_json
from tclx.runs import MEETING_FILE, MEETING_HOST, RESERVE_BYTES, Attempt, Job, RunFolder, RunState, Superseded
from tclx.train.heartbeat import heartbeat
from tests.disk import fill, small_disk
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


# ------------------------------------------------------------------------------------------------------------ reading and room


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"{", "it is damaged"),
        (b"\xff\xfe", "it is damaged"),
        (b"[" * 5000, "nested too deeply"),
        (b'{"token": ' + b"1" * 5000 + b"}", "it is damaged"),
        (b"null", "holds a NoneType, not an object"),
        (b"[1]", "holds a list, not an object"),
        (b'{"token": "a"}', "Field required"),
        (b'{"token": [], "backend": "local", "submitted_at": 0, "host": "h", "folder": "f"}', "valid string"),
        (b'{"token": "a", "backend": "cloud", "submitted_at": 0, "host": "h", "folder": "f"}', "'local' or 'slurm'"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_damaged_file_of_a_run_folder_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, why: str) -> None:
    folder = RunFolder(tmp_path)
    folder.job.write_bytes(content)
    with pytest.raises(Unreadable, match=why) as caught:
        folder.read_job()
    assert str(folder.job) in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # one rank tells the others
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


def test_keys_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    job = Job("a", "local", 1.0, "here", "folder")
    folder.write_json(folder.job, {**asdict(job), "colour": "red"})
    assert folder.read_job() == job


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "/dev/zero"):
        with pytest.raises(Unreadable, match="not a regular file"):
            read_json(tmp_path / name)
    with pytest.raises(Unreadable, match="No such file"):
        read_json(tmp_path / "nothing")


def test_a_state_that_cannot_be_read_is_unknown_and_says_why(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.state.write_text('{"status": "running"')
    state = folder.read_state()
    assert state is not None
    assert state.status == "unknown"
    assert str(folder.state) in str(state.reason)


def test_a_full_disk_leaves_room_for_one_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has as much room as the reserve gives up, here by the size of what lies in the folder."""
    folder = RunFolder(tmp_path).begin(Attempt("a"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) >= RESERVE_BYTES
    write = runs.write_atomically

    def full(path: Path, text: str) -> None:
        if sum(one.stat().st_size for one in tmp_path.iterdir()) >= RESERVE_BYTES:
            raise MachineError("the disk is full")
        write(path, text)

    monkeypatch.setattr(runs, "write_atomically", full)
    folder.write_state(RunState("failed", reason="the disk is full"))
    state = folder.read_state()
    assert state is not None
    assert state.reason == "the disk is full"
    (tmp_path / "filler").write_bytes(bytes(RESERVE_BYTES))
    with pytest.raises(MachineError):  # there was only one
        folder.write_state(RunState("failed"))


def test_a_disk_that_is_really_full_leaves_room_for_one_last_state(tmp_path: Path) -> None:
    with small_disk(tmp_path, size="256k"):
        folder = RunFolder(tmp_path).begin(Attempt("a"))
        fill(tmp_path / "filler")
        assert shutil.disk_usage(tmp_path).free == 0
        folder.write_state(RunState("failed", reason="the disk is full"))
        state = folder.read_state()
        assert state is not None
        assert state.status == "failed"


def test_where_each_process_leaves_what(tmp_path: Path) -> None:
    """Names that other versions, scripts and people look for."""
    folder = RunFolder(tmp_path)
    named = [folder.log(3), folder.error(3), folder.stacks(3), folder.rank(3)]
    assert [str(path.relative_to(tmp_path)) for path in named] == [
        "logs/rank3.log", "errors/rank3.json", "errors/rank3.stacks.txt", "ranks/rank3.json",
    ]  # fmt: skip
    assert RunState("created") == RunState("created", 0, 0, None, 0.0, None, None)


def test_an_attempt_says_where_and_when_it_began(tmp_path: Path) -> None:
    before = time.time()
    RunFolder(tmp_path).begin(Attempt("a", "7", 2))
    attempt = RunFolder(tmp_path).read_attempt()
    assert attempt is not None
    assert (attempt.name, attempt.job_id, attempt.restart, attempt.host) == ("a", "7", 2, os.uname().nodename)
    assert before <= attempt.started_at <= time.time()


def test_a_file_far_too_large_for_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # without a block on the disk
    with pytest.raises(Unreadable, match=rf"{path} cannot be read: it is larger than {MAX_JSON_BYTES >> 20} MiB"):
        read_json(path)
