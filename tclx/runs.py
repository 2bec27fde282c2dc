"""What happened: the run folder, every path of it in one place.

    RUN/spec.json          the resolved spec            RUN/metrics.jsonl     one JSON object a logged step
    RUN/plan.json          every derived number         RUN/events.jsonl      started, resumed, saved, evaluated, ended
    RUN/environment.json   code, packages, machine      RUN/checkpoints/      step-00001000/, each complete or ignored
    RUN/state.json         where it stands              RUN/evaluation/       one JSON file a split
    RUN/tokenizer/         the tokenizer it trained     RUN/run.lock          held by the process that trains

Files are replaced by rename, so a reader sees the old or the new one, never half.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tclx.errors import MachineError

Status = Literal["created", "running", "interrupted", "failed", "finished"]


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end: written beside it, flushed to the disk, renamed over it.

    Raises:
        MachineError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise machine_error(error, f"could not write {path}") from error


def machine_error(error: OSError, what: str) -> MachineError:
    """The user's words for an operating-system error while writing."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again, it continues",
        errno.EDQUOT: "your disk quota is used up: free some space and run the same command again, it continues",
        errno.EACCES: "permission denied: choose another place with --runs-dir, or change the folder's permissions",
        errno.EROFS: "the file system is read-only: choose another place with --runs-dir",
    }.get(error.errno or 0, str(error))
    return MachineError(f"{what}: {advice}")


@dataclass(frozen=True)
class RunState:
    """Where a run stands; `reason` says why it is not going on."""

    status: Status
    step: int = 0
    total_steps: int = 0
    reason: str | None = None
    updated_at: float = 0.0
    """Seconds since 1970."""
    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Reading never needs torch."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """JSON: step, metric and value of the best checkpoint; absent until something was evaluated."""
        return self.path / "best.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    def read_state(self) -> RunState | None:
        """The last state written, or None where the folder is new."""
        if not self.state.exists():
            return None
        return RunState(**json.loads(self.state.read_text(encoding="utf-8")))

    def write_state(self, state: RunState) -> None:
        """Replace the state; the time, host and process are filled in here."""
        stamped = {**state.__dict__, "updated_at": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
        write_atomically(self.state, json.dumps(stamped, indent=1))

    def read_json(self, path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    def write_json(self, path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(value, indent=1))

    def add_event(self, name: str, **facts: Any) -> None:
        """Append one line to events.jsonl."""
        line = json.dumps({"time": time.time(), "event": name, **facts}) + "\n"
        try:
            with self.events.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise machine_error(error, f"could not write {self.events}") from error

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for as long as it trains; yields False when another process on this machine holds it."""
        import fcntl

        with (self.path / "run.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
