"""Where does Optuna keep a study? In a journal file that survives a kill or a full disk in mid-write, or in a database."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Callable
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from tclx.errors import MachineError
from tclx.files import machine_error
from tclx.patience import retried

PATIENCE_SECONDS = 180.0
"""A database is restarted, and a disk cleaned up, within minutes."""

Answer = TypeVar("Answer")


class StorageAway(MachineError):
    """The storage cannot be opened now."""


class HealingJournalFile(JournalFileBackend):
    """Optuna's journal, whose last line may be torn: what was never complete is cut off before the next line is written.

    The stock file appends to a torn line, and from then on nobody can read the study. Its lock is a file: a dead writer's
    holds the next one up, and who is merely paused is overtaken and then writes as if it still held it. This one is the
    kernel's, which lasts exactly as long as its holder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Whole lines or nothing.

        Raises:
            OSError: the disk is full, for instance; the journal is what it was.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with Path(self._file_path).open("a+b", buffering=0) as file:  # unbuffered: closing must not write what did not fit
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _end_of_lines(file)
            if end < file.seek(0, os.SEEK_END):
                file.truncate(end)
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def _end_of_lines(file: FileIO) -> int:
    """The offset behind the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """The study's storage.

    Args:
        url: of a database; None is the journal file.
        journal: that file's place.

    Raises:
        StorageAway: the database cannot be reached, or the file cannot be written.
        MachineError: the database's driver is missing.
    """
    if url is None:
        try:
            return JournalStorage(HealingJournalFile(journal))
        except OSError as error:
            raise StorageAway(str(machine_error(error, f"could not open {journal}"))) from error
    try:
        return RDBStorage(url.replace("postgresql://", "postgresql+psycopg://", 1))
    except ImportError as error:
        raise MachineError(f"storage: the database's driver is missing ({error}): pip install 'tclx[postgres]'") from error
    except Exception as error:  # every driver has its own; none of them is a bug of ours before the first query
        raise StorageAway(f"storage: cannot open {url}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]


def patiently(call: Callable[[], Answer], *, say: Callable[[str], None] = lambda line: None) -> Answer:
    """Ask again for a while when the storage does not answer: databases are restarted, disks fill up and are cleaned.

    Raises:
        MachineError: it has not come back.
    """
    waits = (min(2.0**number, 10.0) for number in count(-1))

    def told(error: Exception) -> None:
        say(f"the study's storage does not answer ({_first_line(error)}); trying for {PATIENCE_SECONDS:g} s")

    try:
        return retried(call, is_away=lambda error, _: _is_outage(error), seconds=PATIENCE_SECONDS, waits=waits, say=told)
    except Exception as error:
        if not _is_outage(error):
            raise
        message = f"the study's storage has not answered for {PATIENCE_SECONDS:g} s: {_first_line(error)}"
        raise MachineError(message) from error


def _is_outage(error: Exception) -> bool:
    """Whether the storage is away, rather than asked for something wrong."""
    from sqlalchemy.exc import DBAPIError, InvalidRequestError

    if isinstance(error, StorageAway | optuna.exceptions.StorageInternalError | OSError | DBAPIError | InvalidRequestError):
        return True
    # Optuna's RDB storage trips over its own clean-up when a connection is lost inside a transaction.
    return isinstance(error, UnboundLocalError) and isinstance(error.__context__, DBAPIError)


def quieten() -> None:
    """Optuna's log speaks of trials that our own lines speak of; what is experimental in it is our choice."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
