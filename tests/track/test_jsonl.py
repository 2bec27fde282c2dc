from __future__ import annotations

import json
import math
import os
import resource
from pathlib import Path

import pytest

from tclx.errors import InputError, MachineError
from tclx.files import Unreadable
from tclx.track.jsonl import MetricsFile, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_rows_come_back_as_they_went_in(path: Path) -> None:
    rows = [{"step": 1, "loss/total": 0.1 + 0.2}, {"step": 2, "loss/total": 1e-300}]
    for row in rows:
        MetricsFile(path).append(row)
    assert read(path) == rows


def test_what_json_cannot_hold_becomes_null_and_is_named(path: Path) -> None:
    MetricsFile(path).append({"step": 3, "a": math.nan, "b": -math.inf, "c": 1.0})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "step": 3, "a": None, "b": None, "c": 1.0, "nonfinite": ["a", "b"],
    }  # fmt: skip


def test_a_row_without_a_step_is_a_bug(path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        MetricsFile(path).append({"loss/total": 1.0})


def test_a_torn_last_line_is_left_out(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2, "loss')
    assert read(path) == [{"step": 1}]


def test_even_one_that_lacks_nothing_but_its_end_of_line(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_damaged_line_in_the_middle_is_refused_by_its_number(path: Path, line: str) -> None:
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match="line 2"):
        read(path)


def test_truncating_drops_later_rows_and_the_torn_tail_and_appending_goes_on(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "retrieval/val/r_mean": 5.0}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path)
    kept = metrics.truncate_after(2)
    metrics.append({"step": 3, "new": 1})
    assert [row["step"] for row in kept] == [1, 2, 2]
    assert read(path) == [*kept, {"step": 3, "new": 1}]


def test_truncating_a_file_that_is_not_there_is_nothing(path: Path) -> None:
    assert MetricsFile(path).truncate_after(10) == []
    MetricsFile(path).sync()
    assert not path.exists()


def test_a_full_disk_leaves_the_rows_before_whole(path: Path) -> None:
    """A file-size limit stands in for the disk: the kernel takes a part of the line, then refuses the rest."""
    metrics = MetricsFile(path)
    metrics.append({"step": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(MachineError, match=r"metrics\.jsonl"):
            metrics.append({"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    metrics.append({"step": 2})
    assert [row["step"] for row in read(path)] == [1, 2]


def test_a_folder_that_cannot_be_written_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="could not write"):
        MetricsFile(tmp_path / "file" / "metrics.jsonl").append({"step": 1})


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_killed_writer_loses_at_most_the_row_it_was_writing(path: Path) -> None:
    """Every row that `append` returned from is there after SIGKILL."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        metrics = MetricsFile(path)
        for step in range(10**9):
            metrics.append({"step": step})
            os.write(writer, b".")
    os.close(writer)
    acknowledged = len(os.read(reader, 200))
    os.kill(child, 9)
    os.waitpid(child, 0)
    while chunk := os.read(reader, 65536):
        acknowledged += len(chunk)
    os.close(reader)
    steps = [row["step"] for row in read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) - acknowledged in (0, 1)


def test_a_file_that_a_disk_does_not_give_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")

    def broken(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(Unreadable, match=rf"{path} cannot be read: Input/output error"):
        read(path)
