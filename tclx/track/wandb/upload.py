"""What does the process do that brings W&B in line with a run folder? Beside it only media.py and wandb_study.py import wandb.

    python -m tclx.track.wandb.upload RUN_FOLDER MODE SECONDS follow ATTEMPT    beside a run that trains
    python -m tclx.track.wandb.upload RUN_FOLDER MODE SECONDS once              `tclx sync`

`follow` uploads rows as they are written (see `sending`), until a word on stdin says how training ended or stdin closes because
the training process is gone; then it has SECONDS for the rest. What people should know goes to stdout, a line each; what wandb
prints goes to stderr, which is a file.

Row n of metrics.jsonl is logged as W&B's step n and `step=` is never passed: W&B drops a step that is not newer than its last
one without an error. After a new start the server says how many rows it has, and sending continues with the next. So a lost
connection or a killed `wandb-core` is mended by starting again: nothing is doubled and nothing left out.

Online, the client's transaction log is of no further use (metrics.jsonl can do all it could) and is removed once all has
arrived. Offline it is written afresh from metrics.jsonl whenever training ends, for W&B's own tools. `tclx sync` does not use
it: `wandb sync` reports success on a wrong key and on a torn log, and numbers the rows of a second log anew.

Exit codes: 0 everything has arrived, 1 something is missing, 3 W&B cannot be used from here, all of which have been said. 70 is
a bug, with its traceback in the file.
"""

from __future__ import annotations

import math
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tclx.errors import InputError, MachineError, Problem, RunFailed, TclxError
from tclx.files import Unreadable, read_as
from tclx.plan import Plan
from tclx.runs import RunFolder, Superseded
from tclx.spec.load import load_spec_json
from tclx.spec.tracking import WandbSpec
from tclx.track.jsonl import Row
from tclx.track.wandb.process import Due, Ending, RowReader, Say, begin_sent, degraded, digest, due, write_sent

POLL_SECONDS = 2.0
"""Between two looks at the run folder."""

TRANSMIT_SECONDS = 5.0
"""Between two of the client's requests that carry rows; its own default is 15."""

RETRY_SECONDS = (5.0, 300.0)
"""Before the second try to reach W&B, and at most; each wait is twice the last."""

ARRIVAL_SECONDS = 10.0
"""How long the server may take to show rows that it has acknowledged."""

STAGED = "staged"

BUG = 70
"""EX_SOFTWARE of sysexits.h."""

_AGAIN = "`tclx sync --again` uploads the whole run as a new one"

_ENDINGS: tuple[Ending, ...] = ("finished", "interrupted", "failed")


class Unusable(MachineError):
    """W&B cannot be used from here at the moment: no network, no answer, the client's service is dead."""


class Refused(Unusable):
    """W&B does not want us: no login, a wrong key, no right to the project. Trying again is no use."""


class Missing(RunFailed):
    """W&B does not have everything that it was sent."""


def main(arguments: list[str]) -> int:
    """Upload one run; returns the exit code."""
    ignore_signals()
    path, mode, seconds, how = Path(arguments[0]), arguments[1], float(arguments[2]), arguments[3]
    folder = RunFolder(path, attempt_name=(arguments[4] or None) if how == "follow" else None)
    say = own_stdout()
    if how == "follow":
        os.nice(10)  # where cores are short, training has them
    try:
        if mode == "offline":
            return _keep_offline(folder, seconds, say)
        return _follow(folder, seconds, say) if how == "follow" else _once(folder, seconds)
    except Superseded:
        return 0  # the newer attempt has a process like this one
    except TclxError as error:
        if how == "follow":
            degraded(folder, str(error), say)
        else:
            say(f"W&B: {error}")
        return error.exit_code
    except Exception:  # a bug: training must go on, and whoever mends it wants to know
        traceback.print_exc()
        return BUG


def ignore_signals() -> None:
    """The process that started this one decides when it is over; SLURM and terminals signal everybody."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def own_stdout() -> Say:
    """stdout, which from here on nobody else has: the client and its service would write into it and keep it open."""
    file = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(text: str) -> None:
        with suppress(BrokenPipeError):  # the training process is gone; events.jsonl has what matters
            file.write(text + "\n")

    return say


def _ending_asked_for(seconds: float | None) -> Ending | None:
    """How training ended, as soon as its process says so or is gone; None when it has said nothing for so long."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return None
    word = sys.stdin.readline().strip()
    return cast("Ending", word) if word in _ENDINGS else "failed"


@contextmanager
def _alone(folder: RunFolder, seconds: float) -> Iterator[None]:
    """The right to upload this run; the last start's process may still be finishing.

    Raises:
        Missing: another process holds it.
    """
    deadline = time.monotonic() + seconds
    while True:
        with folder.lock("wandb.lock") as free:
            if free:
                yield
                return
        if time.monotonic() >= deadline:
            raise Missing("another process is uploading this run")
        time.sleep(0.5)


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """The whole process is gone after so many seconds, whatever it waits for: nobody may be there any more to kill it."""
    timer = threading.Timer(seconds, os._exit, [RunFailed.exit_code])
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def _follow(folder: RunFolder, seconds: float, say: Say) -> int:
    """Upload beside a run that trains."""
    copy = Copy(folder, finish_seconds=max(1.0, seconds - 1), watched_process=os.getppid())
    wait, next_try, in_trouble = RETRY_SECONDS[0], 0.0, False
    with _alone(folder, seconds):
        ending = _ending_asked_for(0)
        while ending is None:
            folder.check_attempt()
            if time.monotonic() >= next_try:
                try:
                    copy.advance(due(folder, copy.wandb))
                    if in_trouble:
                        say("W&B: reached again; nothing is lost")
                        folder.add_event("wandb_recovered")
                    wait, in_trouble = RETRY_SECONDS[0], False
                except Refused:
                    raise
                except Unusable as error:
                    if not in_trouble:
                        degraded(folder, f"{error} (it is tried again)", say)
                    next_try, in_trouble = time.monotonic() + wait, True
                    wait = min(2 * wait, RETRY_SECONDS[1])
            ending = _ending_asked_for(POLL_SECONDS)
        with ending_within(seconds + ARRIVAL_SECONDS):
            copy.complete(due(folder, copy.wandb), ending)
    folder.add_event("wandb_complete", rows=copy.sent.num_rows, url=copy.sent.url)
    return 0


def _once(folder: RunFolder, seconds: float) -> int:
    """Upload what is missing, now."""
    state = folder.read_state()
    status = state.status if state is not None else "created"
    ending: Ending = "finished" if status == "finished" else "failed" if status == "failed" else "interrupted"
    copy = Copy(folder, finish_seconds=seconds)
    with _alone(folder, 0):
        copy.complete(due(folder, copy.wandb), ending)
    return 0


def _keep_offline(folder: RunFolder, seconds: float, say: Say) -> int:
    """Write the client's own file when training has ended: afresh, so that every row stands there once."""
    copy = Copy(folder, finish_seconds=max(1.0, seconds - 1))
    ending = _ending_asked_for(None) or "failed"
    with ending_within(seconds), _alone(folder, seconds):
        copy.write_offline(due(folder, copy.wandb), ending)
    say(f"W&B: offline; `tclx sync {folder.path}` uploads this run")
    return 0


class Copy:
    """A run's copy on W&B, as far as this process has brought it."""

    def __init__(self, folder: RunFolder, *, finish_seconds: float, watched_process: int | None = None) -> None:
        """
        Args:
            folder: of the run.
            finish_seconds: how long the client may take to send what it holds.
            watched_process: whose CPU, memory and GPUs W&B records, with its children; None records none.
        """
        spec = load_spec_json(folder.spec)
        if spec.tracking.wandb is None:
            raise InputError(Problem("tracking.wandb", "the run's spec has none"))
        self.wandb = spec.tracking.wandb
        self.sent = begin_sent(folder, self.wandb)
        self._folder, self._spec = folder, spec
        self._plan = read_as(folder.plan, Plan)
        self._finish_seconds, self._watched_process = finish_seconds, watched_process
        self._run: Any = None
        self._reader = RowReader(folder.metrics)
        self._num_there = 0
        """Rows that the server had before this connection."""
        self._last_step: int | None = None
        """Of training, in the last of those; None once it was compared with this run's."""
        self._expected = 0
        """Rows that the next look at the server should find."""
        self._next_look = 0.0
        self._api: Any = None
        self._artifacts: dict[str, Any] = {}
        self._lacks_media = False

    def advance(self, wanted: Due) -> None:
        """Log what has been written since, connecting first where there is no connection.

        Raises:
            Unusable: it does not work; the next call starts anew.
        """
        if self._run is None:
            self._connect("online")
        with self._starting_anew_on_errors():
            self._log(wanted.up_to_step)
            self._log_checkpoints(wanted)
            self._look_whether_rows_arrive()

    def complete(self, wanted: Due, ending: Ending) -> None:
        """Send the rest, close the run, and ask the server what it has.

        Raises:
            Unusable: no connection.
            Missing: the server does not have everything.
        """
        self.advance(wanted)
        with self._starting_anew_on_errors():
            self._summarise(wanted)
            for artifact in self._artifacts.values():
                artifact.wait(timeout=math.ceil(self._finish_seconds))
            if ending == "interrupted":
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if ending == "finished" else 1)
            num_rows = self._num_arrived(self._num_logged)
        self._run = None
        names = tuple(dict.fromkeys((*self.sent.artifacts, *self._artifacts)))
        self.sent = replace(self.sent, num_rows=num_rows, summary=digest(wanted.summary), artifacts=names)
        write_sent(self._folder, self.sent)
        if num_rows < self._num_logged:
            raise Missing(f"{self._num_logged - num_rows} of {self._num_logged} rows have not arrived")
        if ending == "finished" and num_rows > self._reader.num_read:
            raise Missing(f"{num_rows} rows are there and the run has {self._reader.num_read}; {_AGAIN}")
        self._remove("latest-run", "debug*", "run-*", "data", "cache", STAGED)

    def write_offline(self, wanted: Due, ending: Ending) -> None:
        """Write a transaction log of the whole run into the run folder, in place of an earlier one."""
        self._remove("offline-run-*")
        self._connect("offline")
        with self._starting_anew_on_errors():
            self._log(wanted.up_to_step)
            self._summarise(wanted)
            self._run.finish(exit_code=0 if ending == "finished" else 1)
        self._remove(STAGED)

    def _connect(self, mode: str) -> None:
        self._remove("run-*")
        stage_inside(self._folder.path / "wandb")
        import wandb

        settings = client_settings(self.wandb, finish_seconds=self._finish_seconds, watched_process=self._watched_process)
        config = self._spec.model_dump(mode="json") | {"run_id": self._folder.run_id, "plan": self._plan.to_json()}
        with self._starting_anew_on_errors():
            self._run = wandb.init(
                mode=cast("Any", mode),
                id=self.sent.wandb_id,
                resume="allow" if mode == "online" else None,
                dir=str(self._folder.path),
                project=self.sent.project,
                entity=self.sent.entity,
                name=self._folder.run_id,
                group=self.wandb.group or self._spec.name,
                tags=list(self.wandb.tags),
                notes=self.wandb.notes,
                job_type=self.wandb.job_type or ("train" if self._spec.init is None else "finetune"),
                config=config,
                settings=settings,
            )
            for axis in ("trainer/step", "trainer/samples", "epoch"):
                self._run.define_metric(axis)
            self._run.define_metric("*", step_metric="trainer/step")
        self._num_there = self._run.starting_step
        if mode == "online" and self._num_there < self.sent.num_rows:
            raise Missing(
                f"the server shows {self._num_there} rows and had {self.sent.num_rows}: was something deleted? {_AGAIN}"
            )
        self._last_step = self._run.summary.get("trainer/step") if self._num_there else None
        self._reader = RowReader(self._folder.metrics)
        if self.sent.url is None and mode == "online":
            self.sent = replace(self.sent, entity=self._run.entity, url=self._run.url)
            write_sent(self._folder, self.sent)

    def _log(self, up_to_step: int | None) -> None:
        """Log the rows that the server does not have yet; none while a resumed run writes again what it has.

        Raises:
            Missing: the server's rows are not the beginning of this run's.
        """
        if self._last_step is not None:
            here = self._reader.skip(self._num_there)
            if here is None:
                return
            if here["step"] != self._last_step:
                raise Missing(
                    f"row {self._num_there} is of step {self._last_step} there and of step {here['step']} here (was "
                    f"tracking.log_every_steps changed, or a checkpoint lost?); {_AGAIN}"
                )
            self._last_step = None
        from tclx.track.wandb.media import media_of_row

        for row in self._reader.rows(up_to_step):
            logged = as_logged(row, global_batch_size=self._plan.global_batch_size)
            self._with_media(self._run.log, logged, partial(media_of_row, self._folder, row))

    def _summarise(self, wanted: Due) -> None:
        from tclx.track.wandb.media import final_media

        self._with_media(self._run.summary.update, wanted.summary, partial(final_media, self._folder))

    def _with_media(
        self, send: Callable[[dict[str, Any]], object], metrics: dict[str, Any], media: Callable[[], dict[str, Any]]
    ) -> None:
        """Send metrics with what people look at; the metrics alone where that cannot be read, or written: they need no disk."""
        try:
            send(metrics | media())
        except ConnectionError:
            raise
        except (OSError, Unreadable, ValueError) as error:  # the last: an image's text that is not base64
            traceback.print_exc()
            if not self._lacks_media:
                self._lacks_media = True
                with suppress(MachineError):  # the same disk
                    self._folder.add_event("wandb_without_images", reason=str(error))
            send(metrics)

    @property
    def _num_logged(self) -> int:
        return max(self._num_there, self._reader.num_read)

    def _log_checkpoints(self, wanted: Due) -> None:
        import wandb

        for name, aliases in wanted.checkpoints.items():
            if name in self.sent.artifacts or name in self._artifacts:
                continue
            artifact = wandb.Artifact(f"{self.sent.wandb_id}-checkpoint", "model", metadata={"run_id": self._folder.run_id})
            place = (self._folder.checkpoints / name).resolve()
            if self.wandb.checkpoint_files == "reference":
                artifact.add_reference(place.as_uri())
            else:
                artifact.add_dir(str(place), skip_cache=True)
            self._artifacts[name] = self._run.log_artifact(artifact, aliases=list(aliases))

    def _look_whether_rows_arrive(self) -> None:
        """Ask the server now and then: the client goes on without a word when it cannot upload.

        Raises:
            Unusable: what was logged at the last look has not arrived at this one.
        """
        if time.monotonic() < self._next_look:
            return
        expected, self._expected = self._expected, self._num_logged
        self._next_look = time.monotonic() + self.wandb.init_timeout_seconds + TRANSMIT_SECONDS
        if expected > self.sent.num_rows:
            shown = self._num_shown()
            self.sent = replace(self.sent, num_rows=max(shown, self.sent.num_rows))
            write_sent(self._folder, self.sent)
            if shown < expected:
                raise Unusable(f"{expected - shown} rows do not arrive")

    def _num_shown(self) -> int:
        """How many rows the server has."""
        import wandb

        if self._api is None:
            self._api = wandb.Api(timeout=self.wandb.init_timeout_seconds)
        run = self._api.run(f"{self.sent.entity}/{self.sent.project}/{self.sent.wandb_id}")
        num_rows: int = run.lastHistoryStep + 1
        return num_rows

    def _num_arrived(self, num_rows: int) -> int:
        """How many rows the server has, once that is all of them or it has had time enough."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while (shown := self._num_shown()) < num_rows and time.monotonic() < deadline:
            time.sleep(1.0)
        return shown

    @contextmanager
    def _starting_anew_on_errors(self) -> Iterator[None]:
        """Whatever the client raises becomes `Unusable`, and what is left of it is taken down.

        Without the teardown the next init fails: the client thinks that the run is still in use.
        """
        import wandb

        try:
            yield
        except Exception as error:  # its service may die at any moment, and then any call raises anything
            if isinstance(error, TclxError) and not isinstance(error, Unusable):
                raise
            self._run, self._artifacts, self._expected = None, {}, 0
            with suppress(Exception):  # raises too, where the service is dead, and has done its work by then
                wandb.teardown()
            raise explained(error) from error

    def _remove(self, *patterns: str) -> None:
        """Delete what earlier clients left in the run folder."""
        for pattern in patterns:
            for path in (self._folder.path / "wandb").glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def client_settings(spec: WandbSpec, *, finish_seconds: float, watched_process: int | None = None) -> Any:
    """The client's settings: nothing of this process is recorded but what we log.

    Args:
        spec: says how long a start may take.
        finish_seconds: how long an end may take.
        watched_process: whose CPU, memory and GPUs W&B records; None records none.
    """
    import wandb

    return wandb.Settings(
        init_timeout=float(spec.init_timeout_seconds),
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        x_file_stream_transmit_interval=TRANSMIT_SECONDS,
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=watched_process is None,
        x_stats_pid=watched_process or os.getpid(),
    )


def stage_inside(place: Path) -> None:
    """Before the client is imported: its temporary files, of tables and images, lie in this folder, and whoever is done with
    them removes them, since this process ends without the client's clean-up.

    TMPDIR would move its service's socket, too, to too long a path.
    """
    staged = place / STAGED
    staged.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(staged)


def as_logged(row: Row, *, global_batch_size: int) -> dict[str, Any]:
    """A row of metrics.jsonl as W&B gets it: the axes in front, and NaN again what JSON could not say."""
    nonfinite = row.get("nonfinite", ())
    values = {name: math.nan if name in nonfinite else value for name, value in row.items()}
    for name in ("step", "nonfinite"):
        values.pop(name, None)
    return {"trainer/step": row["step"], "trainer/samples": row["step"] * global_batch_size, **values}


def explained(error: Exception) -> Unusable:
    """A client's error in one line, and whether trying again makes sense."""
    import wandb

    if isinstance(error, Unusable):
        return error

    text = re.sub(r"^Failed to get resume status for run \S+: ", "", " ".join(str(error).split()))[:300]
    if isinstance(error, TimeoutError):
        return Unusable("what was left was not taken in time")
    refused = re.search(r"\b(error|HTTP) (401|403|404|409)\b", text)
    if isinstance(error, wandb.errors.AuthenticationError | wandb.errors.UsageError) or (refused and refused[2] == "401"):
        return Refused(f"{text} (set WANDB_API_KEY or log in with `wandb login`)")
    if refused:
        return Refused(f"{text} (look at tracking.wandb.entity and project)")
    return Unusable(text or type(error).__name__)


if __name__ == "__main__":
    # Everything has been said and written; the client's own clean-up would wait for a server that does not answer.
    os._exit(main(sys.argv[1:]))
