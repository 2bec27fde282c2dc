"""What happened: the run folder, every path of it in one place.

    RUN/spec.json          the resolved spec            RUN/metrics.jsonl     one JSON object a logged step
    RUN/plan.json          every derived number         RUN/events.jsonl      started, resumed, saved, evaluated, ended
    RUN/environment.json   code, packages, machine      RUN/checkpoints/      step-00001000/, each complete or ignored
    RUN/state.json         where it stands              RUN/evaluation/       JSON a task and split; examples/, outcomes/
    RUN/tokenizer/         the tokenizer it trained     RUN/run.lock          held by the process that trains
    RUN/job.json           whom it was handed to        RUN/attempt.json      the one process group that may write here
    RUN/heartbeat          touched while it lives         RUN/logs/             rank<r>.log: what each process printed
    RUN/cancel.json        somebody wants it to stop    RUN/errors/           rank<r>.json: why a process gave up
    RUN/ranks/             rank<r>.json: what it does
    RUN/wandb.json         its run on W&B               RUN/wandb/            what W&B's own client writes
    RUN/tensorboard/       a copy of metrics.jsonl, when asked for
    RUN/trial.json         the trial of a sweep that it is

Files are replaced by rename, so a reader sees the old or the new one, never half.

A node that loses touch with its cluster may go on training while the run is started again elsewhere. So the newest attempt
writes its name into attempt.json before anything else, and whoever is not named there any more writes nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from tclx.errors import MachineError, RunFailed
from tclx.files import (
    Unreadable,
    holding,
    lock_is_free,
    machine_error,
    parse_json,
    read_as,
    read_json,
    read_object,
    replacing,
    write_atomically,
)

MEETING_FILE, MEETING_HOST = "TCLX_MEETING_FILE", "TCLX_MEETING_HOST"
"""Environment variables of a process: where rank 0 writes its address, and under which name the other nodes reach it."""

RESERVE_BYTES = 65_536
"""More than a state takes on any file system."""

SET_ASIDE = re.compile(r"\.old-\d+$")
"""Ends the name of a run folder or study that `--again` has set aside."""

SWEEPS = "sweeps"
"""Beside the runs: a folder a study."""

BEAT_SECONDS = 5.0
"""Between two heartbeats."""

Status = Literal["created", "running", "interrupted", "failed", "finished", "unknown"]
"""`unknown` is never written: it is what a state file says that cannot be read."""


def checkpoint_name(step: int) -> str:
    """What the folder of a checkpoint is called."""
    return f"step-{step:08d}"


def step_of_checkpoint(name: str) -> int | None:
    """The optimizer steps that a checkpoint folder's name says were done; None for another name."""
    found = re.fullmatch(r"step-(\d{8,})", name)
    return int(found[1]) if found is not None else None


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


WARNING = "warning"
"""The event of training that goes on, and hardly for what was meant."""


@dataclass(frozen=True)
class Job:
    """Whom a run was handed to: written before SLURM or the local queue hears of it, so that nothing is handed over twice."""

    token: str
    """In the job's name; a job whose token is not its run's current one trains nothing."""
    backend: Literal["local", "slurm"]
    submitted_at: float
    """Seconds since 1970."""
    host: str
    """Where it was submitted; a local queue runs there."""
    folder: str
    """The submission's: script, list of runs, what was printed before training began."""
    job_id: str | None = None
    """SLURM's (`123` or `123_4`), or the process id of the local queue; None until it is known."""

    @property
    def is_local(self) -> bool:
        """Whether this machine's own queue has it, rather than a cluster."""
        return self.backend == "local"


@dataclass(frozen=True)
class Attempt:
    """One start of a run's processes, from which they write until the next attempt begins."""

    name: str
    job_id: str | None = None
    restart: int = 0
    """How often its job was started before."""
    host: str | None = None
    started_at: float = 0.0


@dataclass(frozen=True)
class TrialOf:
    """Which trial of a sweep a run is."""

    study: str | None
    """The study's name; None where only the study knows: see `RunFolder.read_trial`."""
    number: int | None
    """The trial's, in its study."""
    also_run: bool = False
    """Whether it is an ordinary run as well: the experiment as its file has it, or somebody asked for it by itself."""
    confirms: bool = False
    """Whether the trial was confirmed by it, after the search."""
    variant: str | None = None
    """Whose search the trial belongs to, where the sweep has one for each of several variants."""


_ATTEMPT_OF_A_TRIAL = re.compile(r"^trial-[0-9a-f]{8}$")
"""What a sweep's worker has always called its attempts."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, as best.json has it."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Evaluated:
    """What evaluation/<task>-<split>.json says."""

    metrics: dict[str, float]
    step: int | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Environment:
    """What of environment.json people are shown."""

    world_size: int | None = None
    gpu: str | None = None
    cpu: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    diff: str | None = None
    diff_sha256: str | None = None


class Superseded(RunFailed):
    """A newer attempt trains this run: this process must not touch it any more."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Reading never needs torch."""

    path: Path
    attempt_name: str | None = None
    """Of the process that writes; None writes without being checked."""

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

    def evaluated(self, task: str, split: str) -> Path:
        """What a task's final evaluation gave: JSON, `Evaluated` and where it comes from."""
        return self.evaluation / f"{task}-{split}.json"

    def predictions(self, task: str, split: str) -> Path:
        """What a server that keeps the truth of a task wants to see."""
        return self.evaluation / "predictions" / f"{task}-{split}.json"

    def outcomes(self, task: str, split: str) -> Path:
        """What each query of a task's final evaluation reached (`tclx.tasks.outcomes`); absent in runs of earlier versions."""
        return self.evaluation / "outcomes" / f"{task}-{split}.json"

    def examples(self, task: str, split: str, *, step: int | None = None) -> Path:
        """What people look at of an evaluation, with images; beside the metrics, which are read often.

        Args:
            task, split: that was evaluated.
            step: after which training went on; None for the final evaluation.
        """
        after = "" if step is None else f"-{step:08d}"
        path = self.evaluation / "examples" / f"{task}-{split}{after}.json"
        # At first there was retrieval alone, and names without it.
        earlier = path.with_name(f"{split}{after}.json")
        return earlier if task == "retrieval" and earlier.exists() and not path.exists() else path

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def attempt(self) -> Path:
        return self.path / "attempt.json"

    @property
    def heartbeat(self) -> Path:
        """Touched every few seconds by the main process."""
        return self.path / "heartbeat"

    @property
    def cancel(self) -> Path:
        return self.path / "cancel.json"

    @property
    def wandb(self) -> Path:
        """Its run on W&B, and what is known to have arrived there; absent without W&B."""
        return self.path / "wandb.json"

    @property
    def tensorboard(self) -> Path:
        """A copy of metrics.jsonl for TensorBoard; absent where nobody asked for one."""
        return self.path / "tensorboard"

    @property
    def trial(self) -> Path:
        """Which trial of a sweep the run is; absent in a run that no sweep has started."""
        return self.path / "trial.json"

    def log(self, rank: int) -> Path:
        """What one process printed, over all attempts."""
        return self.path / "logs" / f"rank{rank}.log"

    def error(self, rank: int) -> Path:
        """Why one process gave up."""
        return self.path / "errors" / f"rank{rank}.json"

    def stacks(self, rank: int) -> Path:
        """Where its threads were when a process ended because nothing moved any more."""
        return self.path / "errors" / f"rank{rank}.stacks.txt"

    def rank(self, rank: int) -> Path:
        """What one process does, written by it every few seconds."""
        return self.path / "ranks" / f"rank{rank}.json"

    def saved_step(self) -> int:
        """The newest checkpoint's step, by its name; torch is not needed to read it."""
        steps = [step_of_checkpoint(path.parent.name) for path in self.checkpoints.glob("step-*/manifest.json")]
        return max((step for step in steps if step is not None), default=0)

    def read_job(self) -> Job | None:
        """Whom the run was last handed to, or None.

        Raises:
            Unreadable: the file is damaged.
        """
        return read_as(self.job, Job) if self.job.exists() else None

    def read_attempt(self) -> Attempt | None:
        """The newest attempt, or None before the first.

        Raises:
            Unreadable: the file is damaged.
        """
        return read_as(self.attempt, Attempt) if self.attempt.exists() else None

    def read_trial(self) -> TrialOf | None:
        """Which trial of a sweep the run is; None for one that is none, or whose files are damaged: it is not hidden then.

        A folder of commit 53ca314 or older has no trial.json: there the newest attempt's name says that a sweep started it.
        """
        try:
            if self.trial.exists():
                return read_as(self.trial, TrialOf)
            attempt = self.read_attempt()
            return TrialOf(None, None) if attempt is not None and _ATTEMPT_OF_A_TRIAL.match(attempt.name) else None
        except Unreadable:
            return None

    def adopt(self) -> None:
        """Somebody asks for the run by itself: if it is a trial of a sweep, it is an ordinary run as well from here on."""
        trial = self.read_trial() if self.path.is_dir() else None
        if trial is not None and not trial.also_run:
            self.write_json(self.trial, asdict(replace(trial, also_run=True)))

    def begin(self, attempt: Attempt) -> Self:
        """Take the run over: from here on only this attempt writes. Returns the folder to write through."""
        stamped = replace(attempt, host=os.uname().nodename, started_at=time.time())
        self.write_json(self.attempt, asdict(stamped))
        with replacing(self._reserve) as file:
            file.write(bytes(RESERVE_BYTES))
        return replace(self, attempt_name=attempt.name)

    def check_attempt(self) -> None:
        """Nothing, while this process's attempt is the newest.

        Raises:
            Superseded: another one has begun since.
            Unreadable: which one is the newest cannot be read.
        """
        newest = self.read_attempt() if self.attempt_name is not None else None
        if newest is not None and newest.name != self.attempt_name:
            raise Superseded(
                f"{self.path} is trained by the newer attempt {newest.name} on {newest.host}; {self.attempt_name} ends"
            )

    def read_state(self) -> RunState | None:
        """The last state written, or None where the folder is new. One that cannot be read is `unknown`, with the reason.

        Nothing depends on it: a run goes on from its checkpoints, and writes its state anew.
        """
        if not self.state.exists():
            return None
        try:
            return read_as(self.state, RunState)
        except Unreadable as error:
            return RunState("unknown", reason=str(error))

    def write_state(self, state: RunState) -> None:
        """Replace the state; the time, host and process are filled in here. On a full disk a reserve makes room for the last.

        Raises:
            MachineError: even so it cannot be written.
        """
        stamped = {**state.__dict__, "updated_at": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
        text = json.dumps(stamped, indent=1)
        try:
            write_atomically(self.state, text)
        except MachineError:
            if state.status == "running" or not self._reserve.exists():
                raise  # the reserve is for how it ended
            self._reserve.unlink()
            write_atomically(self.state, text)

    @property
    def _reserve(self) -> Path:
        """Some space that a run gives up to say in its last words that the disk is full."""
        return self.path / ".reserve"

    def read_best(self) -> Best | None:
        """The best evaluation as it was noted, or None before the first.

        Raises:
            Unreadable: the file is damaged.
        """
        return read_as(self.best, Best) if self.best.exists() else None

    def read_environment(self) -> Environment:
        """Where it ran last; nothing is known before the first start.

        Raises:
            Unreadable: the file is damaged.
        """
        return read_as(self.environment, Environment) if self.environment.exists() else Environment()

    def read_evaluations(self) -> dict[str, Evaluated]:
        """The final evaluations by split, the metrics of all tasks together.

        Raises:
            Unreadable: one of the files is damaged.
        """
        found: dict[str, Evaluated] = {}
        for path in sorted(self.evaluation.glob("*.json"), key=lambda path: ("-" in path.stem, path)):
            evaluated, split = read_as(path, Evaluated), path.stem.rpartition("-")[2]
            if not all(map(math.isfinite, evaluated.metrics.values())):
                raise Unreadable(path, "a metric is not finite")
            # Files without a task in their name are of earlier versions and come first: a newer evaluation takes their place.
            before = found[split].metrics if split in found else {}
            found[split] = replace(evaluated, metrics={**before, **evaluated.metrics})
        return found

    def read_json(self, path: Path) -> dict[str, Any]:
        """As `read_object`."""
        return read_object(path)

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

    def read_warnings(self) -> list[str]:
        """What training has warned of, up to the step that the run stands at."""
        return [str(event.get("message", "")) for event in self.read_events() if event["event"] == WARNING]

    def read_events(self) -> list[dict[str, Any]]:
        """Every event so far; a line that a killed process left half written, or that is no event of ours, is skipped."""
        events = []
        for line in self.events.read_bytes().splitlines() if self.events.is_file() else ():
            with suppress(ValueError):
                event = parse_json(line)
                is_one = isinstance(event, dict) and isinstance(event.get("event"), str)
                events += [event] if is_one and isinstance(event.get("step", 0), int) else []
        return events

    @contextmanager
    def lock(self, name: str = "run.lock") -> Iterator[bool]:
        """Hold the run for as long as it trains; yields False when another process on this machine holds it.

        Args:
            name: another file stands for another right: wandb.lock for uploading its rows.
        """
        with holding(self.lock_file(name)) as free:
            yield free

    def clear_leftovers(self) -> None:
        """Remove the unfinished files of processes that were killed. Only the process that holds the run's lock may call this.

        What others write, too, may be half done right now: of that only what is old.
        """
        own = [*self.path.glob(".*.tmp"), *self.evaluation.rglob(".*.tmp")]
        for leftover in [*own, *self.error(0).parent.glob(".*.tmp")]:
            name = leftover.name[1:].removesuffix(".tmp").rpartition(".")[0]
            with suppress(FileNotFoundError):
                if (leftover in own and name not in _OTHERS_WRITE) or time.time() - leftover.stat().st_mtime > _OLD_SECONDS:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def lock_file(self, name: str = "run.lock") -> Path:
        """What `lock` holds."""
        return self.path / name


_OTHERS_WRITE = ("spec.json", "plan.json", "job.json", "cancel.json", "wandb.json")
_OLD_SECONDS = 3600

_SUBMITTED = "runs.json"


def write_submitted(submission: Path, folders: Sequence[RunFolder]) -> None:
    """Write into a submission's folder which runs it is of, in the order of the array."""
    write_atomically(submission / _SUBMITTED, json.dumps([str(folder.path.resolve()) for folder in folders]))


def read_submitted(submission: Path) -> list[RunFolder]:
    """The runs of a submission, by their index in the array.

    Raises:
        Unreadable: the list is missing or damaged.
    """
    paths = read_json(submission / _SUBMITTED)
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Unreadable(submission / _SUBMITTED, "it is no list of run folders")
    return [RunFolder(Path(path)) for path in paths]


def is_held(folder: RunFolder) -> bool:
    """Whether a process on this machine trains the run.

    Raises:
        MachineError: the folder cannot be read.
    """
    try:
        with folder.lock_file().open("rb") as file:
            return not lock_is_free(file.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise machine_error(error, f"could not look at the lock of {folder.path}") from error
