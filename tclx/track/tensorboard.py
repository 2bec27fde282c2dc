"""How do a run's numbers get into TensorBoard? As a copy of metrics.jsonl in RUN/tensorboard/, one event a row.

Whoever starts, trains on or asks for a copy afterwards writes it afresh from the rows that metrics.jsonl has then, and appends
the rows that follow. So it never holds a row twice or one that a resume took back, and nothing has to be taken out of it.

A TensorBoard that looks on goes from a file to the next by name, as long as the one that it reads is there, and forgets what it
has read when the next one says START at step 0. Uses tensorboard's own records and messages, imported where they are needed
only.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tclx.errors import MachineError
from tclx.files import machine_error
from tclx.runs import RunFolder
from tclx.track.jsonl import Row, append_whole, numbers, read
from tclx.track.sink import Sink, TrackedRun

_FILES = "events.out.tfevents.*"
"""TensorBoard reads what has `tfevents` in its name, the others of its files are none of ours."""
_UNFINISHED = "unfinished"


def tensorboard_sink(run: TrackedRun) -> AbstractContextManager[Sink] | None:
    """The copy beside a run that trains, written afresh."""
    return nullcontext(TensorBoard(run)) if run.spec.tracking.tensorboard else None


class TensorBoard(Sink):
    """The copy beside a run that trains. Whatever happens to it, training goes on."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder, self._say = run.folder, run.say
        self._file: Path | None = None
        """Where rows are appended; None after a failure: a row left out is never followed by another."""
        with self._not_stopping():
            self._file = _write_afresh(self._folder.tensorboard, run.rows)

    def row(self, row: Row) -> None:
        if self._file is None:
            return
        with self._not_stopping():
            append_whole(self._file, _event_of(row, time.time()), create=False)

    @contextmanager
    def _not_stopping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            reason = str(machine_error(error, f"could not write {self._folder.tensorboard}"))
            rest = "metrics.jsonl has every row and training is not touched"
            self._say(f"TensorBoard: {reason}; {rest}: `tclx tensorboard {self._folder.path}` writes the copy afresh")
            with suppress(MachineError):  # the disk may be what is wrong; the console has it
                self._folder.add_event("tensorboard_degraded", reason=reason)


def write_copy(folder: RunFolder) -> int:
    """Give a run that is not training its copy, afresh; returns the number of rows.

    Raises:
        InputError: metrics.jsonl is not what tclx writes.
        MachineError: the folder cannot be written.
    """
    rows = read(folder.metrics) if folder.metrics.exists() else []
    try:
        _write_afresh(folder.tensorboard, rows)
    except OSError as error:
        raise machine_error(error, f"could not write {folder.tensorboard}") from error
    return len(rows)


def _write_afresh(place: Path, rows: Sequence[Row]) -> Path:
    """A file with all rows, in place of those that are there; returns it.

    A row keeps the time that it had in the copy before; one that was in none is as old as this file.
    """
    place.mkdir(exist_ok=True)
    earlier, now = sorted(place.glob(_FILES)), time.time()
    times = _wall_times(earlier[-1]) if earlier else []
    unfinished = place / _UNFINISHED
    try:
        with unfinished.open("wb") as file:
            file.write(_record(wall_time=now, file_version="brain.Event:2") + _start_of_session(now))
            for number, row in enumerate(rows):
                step, written_at = times[number] if number < len(times) else (None, now)
                file.write(_event_of(row, written_at if step == row["step"] else now))
    except OSError:
        unfinished.unlink(missing_ok=True)  # on a full disk others want the space
        raise
    path = place / f"events.out.tfevents.{max(time.time_ns(), *map(_number_of, earlier), 0):020d}"
    unfinished.rename(path)
    for older in earlier[:-1]:
        older.unlink()
    for replaced in earlier[-1:]:
        os.truncate(replaced, 0)  # whoever reads it would stay at it for ever if it was gone
    return path


def _number_of(path: Path) -> int:
    """One more than a file's number, so that the next sorts behind it whatever the clock says."""
    number = path.name.rpartition(".")[2]
    return int(number) + 1 if number.isdecimal() else 0


def _wall_times(path: Path) -> list[tuple[int, float]]:
    """Step and wall time of every row in a file, in order; up to what is damaged."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [(event.step, event.wall_time) for event in LegacyEventFileLoader(str(path)).Load() if event.HasField("summary")]


def _event_of(row: Row, written_at: float) -> bytes:
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row).items()]
    return _record(wall_time=written_at, step=row["step"], summary=Summary(value=values))


def _start_of_session(now: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import SessionLog

    return _record(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))


def _record(**fields: Any) -> bytes:
    """One event as it stands in a file, between its length and its checksum."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(**fields).SerializeToString())
    return record.getvalue()
