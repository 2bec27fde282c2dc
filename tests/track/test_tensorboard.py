"""Promises of TensorBoard's copy, read back with its own reader: every row of metrics.jsonl once and in order, whatever was
killed; and training goes on whatever becomes of it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from tclx.errors import InputError, MachineError
from tclx.runs import RunFolder
from tclx.spec.rules import missing_packages
from tclx.track.jsonl import MetricsFile, Row, numbers, read
from tclx.track.sink import TrackedRun
from tclx.track.tensorboard import TensorBoard, write_copy
from tests import disk
from tests.cli.test_cli import Ended
from tests.train.toy import kill, outcome, prepare, run, start, toy_spec, wait_until

ASKED = {"tracking.tensorboard": True}
Point = tuple[int, float]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def curves(folder: RunFolder) -> dict[str, list[Point]]:
    """What a TensorBoard that starts now would draw."""
    accumulator = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    return curves_of(accumulator)


def curves_of(accumulator: EventAccumulator) -> dict[str, list[Point]]:
    accumulator.Reload()
    return {name: [(one.step, one.value) for one in accumulator.Scalars(name)] for name in accumulator.Tags()["scalars"]}


def expected(folder: RunFolder) -> dict[str, list[Point]]:
    """The curves of metrics.jsonl."""
    found: dict[str, list[Point]] = {}
    for row in read(folder.metrics):
        for name, value in numbers(row).items():
            found.setdefault(name, []).append((row["step"], value))
    return found


def assert_same(there: dict[str, list[Point]], here: dict[str, list[Point]]) -> None:
    """Equal as far as TensorBoard's single precision goes."""
    assert there.keys() == here.keys()
    for name, points in here.items():
        assert [step for step, _ in there[name]] == [step for step, _ in points], name
        assert [value for _, value in there[name]] == pytest.approx([value for _, value in points], rel=1e-6, nan_ok=True)


def events_of(folder: RunFolder) -> list[Any]:
    """Of the newest file; the one before has been emptied."""
    *before, newest = sorted(folder.tensorboard.iterdir())
    assert [file.stat().st_size for file in before] in ([], [0])
    return list(LegacyEventFileLoader(str(newest)).Load())


def opened(folder: RunFolder, rows: Sequence[Row], *, say: Callable[[str], Any] = pytest.fail) -> TensorBoard:
    return TensorBoard(TrackedRun(folder, toy_spec(), rows, say=say, in_a_hurry=lambda: False))


def add(folder: RunFolder, board: TensorBoard, **values: Any) -> None:
    MetricsFile(folder.metrics).append(values)
    board.row(values)


# ------------------------------------------------------------------------------------------------------------- what is copied


def test_every_row_is_one_event_under_its_names(folder: RunFolder) -> None:
    MetricsFile(folder.metrics).append({"step": 1, "loss/total": 2.5})
    board = opened(folder, read(folder.metrics))
    add(folder, board, step=2, **{"loss/total": 1.25, "epoch": 1})
    add(folder, board, step=2, **{"retrieval/val/r_mean": 50.0})
    rows = [event for event in events_of(folder) if event.HasField("summary")]
    assert [event.step for event in rows] == [1, 2, 2]
    assert curves(folder) == {"loss/total": [(1, 2.5), (2, 1.25)], "epoch": [(2, 1.0)], "retrieval/val/r_mean": [(2, 50.0)]}


def test_what_is_not_finite_is_nan_live_and_from_the_file(folder: RunFolder) -> None:
    board = opened(folder, [])
    add(folder, board, step=1, **{"loss/total": math.inf, "loss/cma": 1.0, "empty": None})
    live = curves(folder)
    assert write_copy(folder) == 1
    for found in (live, curves(folder)):
        ((step, value),) = found.pop("loss/total")
        assert (step, math.isnan(value)) == (1, True)
        assert found == {"loss/cma": [(1, 1.0)]}


def test_a_row_keeps_the_time_at_which_it_was_first_written(folder: RunFolder) -> None:
    before = time.time()
    board = opened(folder, [])
    for step in (1, 2, 3):
        add(folder, board, step=step, **{"loss/total": 1.0})
    between = time.time()
    rows = MetricsFile(folder.metrics).truncate_after(2)
    board = opened(folder, rows)
    add(folder, board, step=3, **{"loss/total": 1.0})
    times = [event.wall_time for event in events_of(folder) if event.HasField("summary")]
    assert before < times[0] < times[1] < between < times[2]


def test_a_tensorboard_that_looks_on_forgets_what_a_resume_takes_back(folder: RunFolder) -> None:
    accumulator = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    board = opened(folder, [])
    for step in (1, 2, 3):
        add(folder, board, step=step, **{"loss/total": float(step)})
    assert len(curves_of(accumulator)["loss/total"]) == 3
    for again in (20.0, 30.0):
        board = opened(folder, MetricsFile(folder.metrics).truncate_after(1))
        add(folder, board, step=2, **{"loss/total": again})
        assert curves_of(accumulator)["loss/total"] == [(1, 1.0), (2, again)]


def test_a_half_written_copy_and_a_torn_one_are_replaced(folder: RunFolder) -> None:
    MetricsFile(folder.metrics).append({"step": 1, "loss/total": 2.5})
    write_copy(folder)
    (file,) = folder.tensorboard.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    (folder.tensorboard / "unfinished").write_bytes(b"half")
    write_copy(folder)
    assert curves(folder) == {"loss/total": [(1, 2.5)]}


# -------------------------------------------------------------------------------------------------------------- runs that train


def test_after_a_sigkill_and_a_resume_every_row_is_there_once_and_in_order(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**ASKED))
    processes = start(folder)
    wait_until(lambda: folder.metrics.exists() and '"step": 8,' in folder.metrics.read_text(), processes)
    kill(processes)
    assert folder.tensorboard.exists()
    run(folder)
    assert_same(curves(folder), expected(folder))
    assert [event.step for event in events_of(folder) if event.HasField("summary")] == [1, 2, 4, 6, 6, 8, 10, 12, 12]


def test_only_rank_0_writes_and_without_the_key_nobody_does(tmp_path: Path) -> None:
    together = run(prepare(tmp_path / "together", toy_spec(**ASKED, **{"training.steps": 6, "launch.num_processes": 2})))
    assert len(list(together.tensorboard.iterdir())) == 1
    assert_same(curves(together), expected(together))
    without = run(prepare(tmp_path / "without", toy_spec(**{"training.steps": 6})))
    assert not without.tensorboard.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**ASKED))
    folder.tensorboard.mkdir(mode=0o500)
    assert_trained_and_said(run(folder), "permission denied")


def test_a_copy_that_vanishes_stops_nothing_and_is_said_once(tmp_path: Path) -> None:
    """What stands in the folder's place is a file: nobody can write there."""
    folder = prepare(tmp_path / "run", toy_spec(**ASKED))
    folder.tensorboard.write_text("in the way")
    assert_trained_and_said(run(folder), "exists")
    without = run(prepare(tmp_path / "without", toy_spec()))
    assert outcome(folder).rows == outcome(without).rows


@pytest.fixture
def small_disk(folder: RunFolder) -> Iterator[Path]:
    """A file system of its own in the copy's place, where this user may mount one."""
    with disk.small_disk(folder.tensorboard, size="8k") as place:
        yield place


def test_a_disk_that_fills_is_said_once_and_the_copy_ends_with_a_whole_row(folder: RunFolder, small_disk: Path) -> None:
    said: list[str] = []
    board = opened(folder, [], say=said.append)
    for step in range(1, 500):
        add(folder, board, step=step, **{"loss/total": 1.0 / step, "loss/cma": 2.0 / step})
    (line,) = said
    assert "the disk is full" in line
    assert f"`tclx tensorboard {folder.path}`" in line
    assert [event["event"] for event in folder.read_events()] == ["tensorboard_degraded"]
    written = [event.step for event in events_of(folder) if event.HasField("summary")]
    assert written == list(range(1, len(written) + 1))
    assert 50 < len(written) < 499
    with pytest.raises(MachineError, match="the disk is full"):
        write_copy(folder)
    assert len(events_of(folder)) == len(written) + 2  # the copy that was there still is
    disk.resize(small_disk, "1m")
    opened(folder, read(folder.metrics))
    assert_same(curves(folder), expected(folder))


def assert_trained_and_said(folder: RunFolder, reason: str) -> None:
    state = folder.read_state()
    assert state is not None
    assert state.status == "finished"
    (event,) = [event for event in folder.read_events() if event["event"] == "tensorboard_degraded"]
    assert reason in event["reason"]
    assert (folder.path / "stderr0.txt").read_text().count("TensorBoard: ") == 1


# ------------------------------------------------------------------------------------------------------ asked for, and too late


def test_without_the_package_the_run_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tclx.spec.rules.find_spec", lambda name: None)
    (problem,) = missing_packages(toy_spec(**ASKED))
    assert problem.key == "tracking.tensorboard"
    assert "pip install 'tclx[tensorboard]'" in str(problem)
    assert not list(missing_packages(toy_spec()))
    from tclx.plan import check_spec

    with pytest.raises(InputError, match=r"tracking\.tensorboard"):
        check_spec(toy_spec(**ASKED))


def test_a_run_that_was_trained_without_gets_its_copy_afterwards(tmp_path: Path) -> None:
    folder = run(prepare(tmp_path / "toy-s3-1a2b3c4d", toy_spec(**{"training.steps": 6})))
    ended = Ended("tensorboard", folder.run_id, "--runs-dir", tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out == f"{folder.run_id}  {len(read(folder.metrics))} rows  {folder.tensorboard}\n"
    assert_same(curves(folder), expected(folder))
