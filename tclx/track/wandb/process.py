"""How do a run's numbers get from its folder to W&B without training noticing? The side that trains, and `tclx sync`.

metrics.jsonl is the truth and W&B a copy of it. A process of its own (`tclx.track.wandb.upload`) reads the run folder and
uploads, so training writes its row into the file and is done: it never imports wandb, holds no connection and cannot be hit by
what becomes of one. At the end it waits for the last rows to arrive, for `finish_timeout_seconds` and no longer.

**Which rows, and how often.** Row n of metrics.jsonl is W&B's step n. So the number of rows that the server has is the whole
state of the upload: whoever goes on, after a crash, a requeue or from another machine, asks for it and sends what follows, and
every row arrives once and in order. A resumed run writes the rows after its checkpoint again, at the same steps and with the
same values but for `speed/` and `memory/` (on a GPU the last bits, too): with `rows: live` W&B keeps those it has and goes on
after them; with `rows: saved` it is never sent a row that can be taken back, and is the beginning of metrics.jsonl at any time.

`wandb.json` in the run folder says which W&B run is meant and what is known to have arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tclx
from tclx.errors import Interrupted, MachineError, RunFailed
from tclx.files import read_as
from tclx.runs import RunFolder, checkpoint_name
from tclx.spec.tracking import WandbSpec
from tclx.track.jsonl import Row
from tclx.track.sink import Sink, TrackedRun

Mode = Literal["online", "offline", "disabled"]
Say = Callable[[str], None]
Ending = Literal["finished", "interrupted", "failed"]

INTERRUPTED_SECONDS = 5.0
"""How long a run that was asked to stop waits for W&B: whoever asked will not wait long."""

POLL_SECONDS = 0.2
"""So often it is looked whether somebody is in a hurry."""

_SAID = (0, RunFailed.exit_code, MachineError.exit_code)
"""Exit codes with which the uploading process has said what is the matter, if anything is."""

_KEPT = ("API_KEY", "BASE_URL", "ENTITY", "CONFIG_DIR", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE")
"""Variables `WANDB_*` that the uploading process keeps: who and where. The others may speak of another run."""


@dataclass(frozen=True)
class Sent:
    """Which W&B run stands for a run folder, and what has arrived there."""

    wandb_id: str
    project: str
    entity: str | None = None
    url: str | None = None
    num_rows: int = 0
    """Rows of metrics.jsonl that the server has confirmed."""
    summary: str | None = None
    """Digest of the summary it has."""
    artifacts: tuple[str, ...] = ()
    """Names of the checkpoint folders it has."""


class Due(NamedTuple):
    """What W&B should have by now."""

    up_to_step: int | None
    """Rows of later steps are not sent yet; None sends all there are."""
    summary: dict[str, Any]
    checkpoints: dict[str, tuple[str, ...]]
    """Folder name -> aliases."""


class RowReader:
    """The rows of a metrics file one after another, as it grows; only the one at hand is in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.num_read = 0
        """Rows that were handed out or skipped."""

    def skip(self, num_rows: int) -> Row | None:
        """Go on after the file's first so many rows; returns the last of them, or None while there are not so many."""
        last, offset, number = b"", 0, 0
        for number, line in enumerate(self._lines(0), 1):
            last, offset = line, offset + len(line)
            if number == num_rows:
                break
        if number < num_rows:
            return None
        self._offset, self.num_read = offset, num_rows
        row: Row = json.loads(last)
        return row

    def rows(self, up_to_step: int | None) -> Iterator[Row]:
        """The following rows, up to the first of a later step or the end of what is there."""
        for line in self._lines(self._offset):
            row: Row = json.loads(line)
            if up_to_step is not None and row["step"] > up_to_step:
                return
            self._offset, self.num_read = self._offset + len(line), self.num_read + 1
            yield row

    def _lines(self, offset: int) -> Iterator[bytes]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):  # the last one may be half written
                    yield line


# ------------------------------------------------------------------------------------------------------------ the run folder


def wandb_mode(spec: WandbSpec | None, environment: Mapping[str, str]) -> Mode:
    """What W&B does: the spec's word, or WANDB_MODE's where somebody set it for this machine."""
    if spec is None:
        return "disabled"
    named: dict[str, Mode] = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    return named.get(environment.get("WANDB_MODE", ""), spec.mode)


def read_sent(folder: RunFolder) -> Sent | None:
    """What is known of the upload; None before the first."""
    if not folder.wandb.exists():
        return None
    return read_as(folder.wandb, Sent)


def begin_sent(folder: RunFolder, spec: WandbSpec) -> Sent:
    """The W&B run of this folder, named once: after the run, and a few random letters, since `--again` is another run there."""
    if (sent := read_sent(folder)) is not None:
        return sent
    sent = Sent(new_wandb_id(folder.run_id), spec.project, spec.entity)
    write_sent(folder, sent)
    return sent


def new_wandb_id(name: str) -> str:
    """An id that no W&B run has yet, of 64 characters at most, which ends as the name does and in six letters more."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)[-57:].lstrip('-.')}-{secrets.token_hex(3)}"


def write_sent(folder: RunFolder, sent: Sent) -> None:
    """Replace wandb.json."""
    folder.write_json(folder.wandb, asdict(sent))


def due(folder: RunFolder, spec: WandbSpec) -> Due:
    """Everything that W&B should have by now."""
    events = folder.read_events()
    up_to_step = saved_step(events) if spec.rows == "saved" else None
    return Due(up_to_step, summary_of(folder), _checkpoints(folder, spec, events))


def saved_step(events: list[dict[str, Any]]) -> int:
    """The step of the newest checkpoint: no resume takes back its rows and those before."""
    steps = [event["step"] for event in events if event["event"] in ("saved", "resumed") and "step" in event]
    return steps[-1] if steps else 0


def num_due(folder: RunFolder, wanted: Due) -> int:
    """How many rows W&B should have."""
    return sum(1 for _ in RowReader(folder.metrics).rows(wanted.up_to_step))


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """The final and the best metrics, by their names in the run folder."""
    summary: dict[str, Any] = {}
    if (best := folder.read_best()) is not None:
        summary |= {"best/step": best.step, f"best/{best.metric}": best.value}
    for evaluated in folder.read_evaluations().values():
        summary |= evaluated.metrics
    return summary


def digest(summary: Mapping[str, Any]) -> str:
    """A short mark by which two summaries are told apart."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()[:16]


def _checkpoints(folder: RunFolder, spec: WandbSpec, events: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    found = folder.read_best()
    best = checkpoint_name(found.step) if found is not None else None
    saved = [event["checkpoint"] for event in events if event["event"] == "saved" and "checkpoint" in event]
    ended = any(event["event"] == "finished" for event in events)
    if spec.checkpoints == "none" or (spec.checkpoints == "best" and not ended) or not saved:
        return {}
    chosen = list(dict.fromkeys(saved)) if spec.checkpoints == "all" else [best or saved[-1]]
    there = [name for name in chosen if (folder.checkpoints / name).is_dir()]
    return {name: (name, "best") if name == best and ended else (name,) for name in there}


def missing(folder: RunFolder, spec: WandbSpec) -> str | None:
    """What W&B is not known to have yet, in words; None when it has everything."""
    wanted, sent = due(folder, spec), read_sent(folder) or Sent("", spec.project)
    num_rows = num_due(folder, wanted)
    artifacts = [name for name in wanted.checkpoints if name not in sent.artifacts]
    lacks = {
        f"{num_rows - sent.num_rows} of {num_rows} rows": num_rows > sent.num_rows,
        "the final metrics": bool(wanted.summary) and digest(wanted.summary) != sent.summary,
        f"{len(artifacts)} checkpoints": bool(artifacts),
    }
    return ", ".join(what for what, lacking in lacks.items() if lacking) or None


# -------------------------------------------------------------------------------------------------------------- its process


def child_environment(folder: Path) -> dict[str, str]:
    """The environment of a process that uploads a folder: the same code, W&B's files inside, nothing of other runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "_WANDB_"))}
    kept |= {name: os.environ[name] for name in (f"WANDB_{ending}" for ending in _KEPT) if os.environ.get(name)}
    code = str(Path(tclx.__file__).parents[1])
    place = folder.resolve() / "wandb"
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "WANDB_DATA_DIR": str(place / "data"),  # staged artifacts; a node's own home folder would lose them
        "WANDB_CACHE_DIR": str(place / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }


def _start(folder: RunFolder, mode: Mode, *, once: bool, seconds: float) -> subprocess.Popen[str]:
    how = ["once"] if once else ["follow", folder.attempt_name or ""]
    return start_process("tclx.track.wandb.upload", folder.path, mode, str(seconds), *how)


def start_process(module: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start an uploading process. Its stdout is for people; what wandb prints goes into logs/wandb.log.

    Args:
        module: that it runs.
        folder: of a run or study, its first argument.
        arguments: the others.

    Raises:
        OSError: it cannot be started, or the log cannot be written.
    """
    log = folder / "logs" / "wandb.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder.resolve()), *arguments],
            env=child_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the training process, which says when it is over
        )


@contextmanager
def sending(
    folder: RunFolder, spec: WandbSpec | None, *, say: Say, hurried: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Upload what the block writes into the run folder, from another process.

    Nothing that happens to the upload reaches the block. At its end the last rows are waited for, at most
    `finish_timeout_seconds`; what then is missing is said, noted in events.jsonl, and left to `tclx sync`.

    Args:
        folder: of the run that trains.
        spec: None does nothing at all.
        say: receives what a user wants to know.
        hurried: whether somebody has asked the run to stop; then `INTERRUPTED_SECONDS` are enough.
    """
    mode = wandb_mode(spec, os.environ)
    if spec is None or mode == "disabled":
        yield
        return
    try:
        upload = _Upload(folder, _start(folder, mode, once=False, seconds=spec.finish_timeout_seconds), say)
    except OSError as error:
        degraded(folder, f"it could not be started: {error}", say)
        yield
        return
    ending: Ending = "failed"
    try:
        yield
        ending = "finished"
    except (Interrupted, KeyboardInterrupt):
        ending = "interrupted"
        raise
    finally:
        seconds = float(spec.finish_timeout_seconds)
        upload.end(ending, seconds, hurried=hurried)


def wandb_sink(run: TrackedRun) -> AbstractContextManager[Sink] | None:
    """The uploading process beside a run that trains; it reads metrics.jsonl, so no row is told to it."""
    return _uploading(run) if run.spec.tracking.wandb is not None else None


@contextmanager
def _uploading(run: TrackedRun) -> Iterator[Sink]:
    with sending(run.folder, run.spec.tracking.wandb, say=run.say, hurried=run.in_a_hurry):
        yield Sink()


class _Upload:
    """The uploading process, seen by the one that trains."""

    def __init__(self, folder: RunFolder, process: subprocess.Popen[str], say: Say) -> None:
        self._folder, self._process, self._say = folder, process, say
        self._ended = False
        self._listener = threading.Thread(target=self._listen, name="wandb", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Pass on what it says; a thread that sleeps until there is something."""
        for line in self._process.stdout or ():
            self._say(line.rstrip("\n"))
        if (code := self._process.wait()) not in _SAID and not self._ended:
            degraded(self._folder, f"the uploading process ended with {code} (logs/wandb.log)", self._say)

    def end(self, ending: Ending, seconds: float, *, hurried: Callable[[], bool]) -> None:
        """Say that it is over, and wait so long and no longer; `INTERRUPTED_SECONDS` from when somebody is in a hurry."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as stdin:  # it has ended before, and said so
                stdin.write(f"{ending}\n")
        began = time.monotonic()
        ends, in_a_hurry = began + seconds, False
        while self._process.poll() is None and time.monotonic() < ends:
            if not in_a_hurry and (ending == "interrupted" or hurried()):
                ends, in_a_hurry = min(ends, time.monotonic() + INTERRUPTED_SECONDS), True
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(POLL_SECONDS, max(0.0, ends - time.monotonic())))
        if self._process.poll() is None:
            self._ended = True
            self._process.kill()
            degraded(self._folder, f"not everything was taken within {time.monotonic() - began:.0f} s", self._say)
        self._listener.join(INTERRUPTED_SECONDS)  # a process of the client's that outlived it may hold the pipe open
        if self._process.stdout is not None and not self._listener.is_alive():
            self._process.stdout.close()


def degraded(folder: RunFolder, reason: str, say: Say) -> None:
    """The one sentence of every failure, on the console and in events.jsonl."""
    say(f"W&B: {reason}; metrics.jsonl has every row and training is not touched: `tclx sync {folder.path}` uploads them")
    with suppress(MachineError):  # the disk may be what is wrong; the console has it
        folder.add_event("wandb_degraded", reason=reason)


def send_now(folder: RunFolder, mode: Mode, *, seconds: float, say: Say) -> int:
    """Upload what is missing and wait for it, at most so many seconds.

    Returns:
        0 when W&B has everything, 1 when some of it did not arrive, 3 when W&B cannot be used from here.

    Raises:
        MachineError: the run folder cannot be written.
    """
    try:
        process = _start(folder, mode, once=True, seconds=seconds)
    except OSError as error:
        raise MachineError(f"the upload of {folder.path} could not be started: {error}") from error
    timer = threading.Timer(seconds + 5, process.kill)  # its own bounds come first
    timer.start()
    with process:
        try:
            for line in process.stdout or ():
                say(line.rstrip("\n"))
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if code < 0:
        say(f"W&B: not done after {seconds:g} s; the same command goes on from there")
    elif code not in _SAID:
        say(f"W&B: the uploading process ended with {code} (logs/wandb.log)")
    return code if code in _SAID else RunFailed.exit_code
