"""How does a study get to W&B, beside its trials' runs? What W&B should have of it, and a process that uploads just that.

A study has one run there, made or brought up to date when nobody works on the study any more, and by `tclx sync`:

    STUDY/wandb_due.json   what W&B should have of it
    STUDY/wandb.json       which W&B run stands for it, what that has, and why it has no more
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from tclx.errors import MachineError, RunFailed
from tclx.files import machine_error, write_atomically
from tclx.spec.tracking import WandbSpec
from tclx.track.wandb.process import digest, new_wandb_id, start_process

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class StudyDue:
    """What W&B should have of a study by now, as JSON knows it."""

    name: str
    wandb: WandbSpec
    """Its trials', with their group."""
    config: dict[str, Any]
    summary: dict[str, Any]
    columns: tuple[str, ...]
    """Of the table of its trials; in each all values are of one kind, or None: W&B takes no mixture."""
    rows: tuple[tuple[Any, ...], ...]

    def digest(self) -> str:
        """A short mark by which two states of a study are told apart."""
        return digest({"config": self.config, "summary": self.summary, "columns": self.columns, "rows": self.rows})

    def write(self, folder: Path) -> None:
        """For the process that uploads."""
        content = {**self.__dict__, "wandb": self.wandb.model_dump(mode="json")}
        write_atomically(folder / "wandb_due.json", json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> Self:
        content = json.loads((folder / "wandb_due.json").read_text(encoding="utf-8"))
        wandb = WandbSpec.model_validate_json(json.dumps(content.pop("wandb")))
        columns, rows = tuple(content.pop("columns")), tuple(map(tuple, content.pop("rows")))
        return cls(**content, wandb=wandb, columns=columns, rows=rows)


@dataclass(frozen=True)
class StudySent:
    """Which W&B run stands for a study, and what has arrived there."""

    wandb_id: str
    project: str
    entity: str | None = None
    url: str | None = None
    digest: str | None = None
    """Of what it has."""
    problem: str | None = None
    """Why the last try did not bring it up to date."""


def read_study_sent(folder: Path) -> StudySent | None:
    """What is known of the upload; None before the first."""
    path = folder / "wandb.json"
    return StudySent(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def begin_study_sent(folder: Path, due: StudyDue) -> StudySent:
    """The W&B run of this study, named once."""
    if (sent := read_study_sent(folder)) is not None:
        return sent
    sent = StudySent(new_wandb_id(due.name), due.wandb.project, due.wandb.entity)
    write_study_sent(folder, sent)
    return sent


def write_study_sent(folder: Path, sent: StudySent) -> None:
    """Replace wandb.json."""
    write_atomically(folder / "wandb.json", json.dumps(asdict(sent), indent=1))


def note_problem(folder: Path, problem: str) -> None:
    """Why the study could not be brought up to date, for whoever asks how it stands."""
    with suppress(MachineError):  # the disk may be what is wrong; it has been said
        if (sent := read_study_sent(folder)) is not None:
            write_study_sent(folder, replace(sent, problem=problem))


def forget_study_sent(folder: Path) -> None:
    """The next upload makes another W&B run."""
    (folder / "wandb.json").unlink(missing_ok=True)


def is_up_to_date(folder: Path, due: StudyDue) -> bool:
    """Whether W&B is known to have all of it."""
    sent = read_study_sent(folder)
    return sent is not None and sent.digest == due.digest()


class Ended(NamedTuple):
    """How an upload ended."""

    exit_code: int
    """0: W&B has everything; 1: something did not arrive; 3: W&B cannot be used from here."""
    problem: str | None
    """In words; None where it has everything."""


def send_study(folder: Path, due: StudyDue, *, seconds: float, stopping: Callable[[], bool] = lambda: False) -> Ended:
    """Bring the study's W&B run up to date, in at most so many seconds; nothing is sent where it has everything.

    Args:
        folder: of the study.
        due: what its W&B run should have.
        seconds: after which it is given up.
        stopping: whether it is to be given up at once.

    Raises:
        MachineError: the folder cannot be written.
    """
    begin_study_sent(folder, due)
    if is_up_to_date(folder, due):
        return Ended(0, None)
    due.write(folder)
    try:
        process = start_process("tclx.track.wandb.study_upload", folder, str(seconds))
    except OSError as error:
        raise machine_error(error, f"could not start the upload of {folder}") from error
    ended = _waited_for(process, seconds, stopping)
    if ended.problem is not None:
        note_problem(folder, ended.problem)
    return ended


def _waited_for(process: subprocess.Popen[str], seconds: float, stopping: Callable[[], bool]) -> Ended:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not stopping():
        time.sleep(POLL_SECONDS)
    given_up = process.poll() is None
    process.kill()
    said, _ = process.communicate()
    if given_up:
        return Ended(RunFailed.exit_code, "stopped" if stopping() else f"not everything was taken within {seconds:g} s")
    if process.returncode not in (0, RunFailed.exit_code, MachineError.exit_code):
        return Ended(RunFailed.exit_code, f"the uploading process ended with {process.returncode} (logs/wandb.log)")
    return Ended(process.returncode, said.strip() or None)
