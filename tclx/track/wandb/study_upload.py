"""What does the process do that brings a study's W&B run in line with the study? As `tclx.track.wandb.upload` for a run.

    python -m tclx.track.wandb.study_upload STUDY_FOLDER SECONDS

The run is of the job type `sweep`, in the group of the study's trials; later uploads go on with it. Exit codes as there; the
one line on stdout says why something is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tclx.errors import TclxError
from tclx.files import holding
from tclx.track.wandb.study import StudyDue, StudySent, begin_study_sent, write_study_sent
from tclx.track.wandb.upload import (
    ARRIVAL_SECONDS,
    BUG,
    Missing,
    client_settings,
    ending_within,
    explained,
    ignore_signals,
    own_stdout,
    stage_inside,
)

JOB_TYPE = "sweep"


def main(arguments: list[str]) -> int:
    """Upload one study; returns the exit code."""
    ignore_signals()
    folder, seconds = Path(arguments[0]), float(arguments[1])
    say = own_stdout()
    try:
        with ending_within(seconds), holding(folder / "wandb.lock") as free:
            if not free:
                raise Missing("another process is uploading this study")
            _upload(folder, seconds)
        return 0
    except TclxError as error:
        say(str(error))
        return error.exit_code
    except Exception:  # a bug: the sweep has ended as it has, and whoever mends it wants to know
        traceback.print_exc()
        return BUG


def _upload(folder: Path, seconds: float) -> None:
    """Send what is due, close the run, and ask the server what it has.

    Raises:
        Unusable: no connection.
        Missing: the server does not have everything.
    """
    due = StudyDue.read(folder)
    with _files_inside(folder), _errors_explained():
        sent = _send(folder, due, finish_seconds=max(1.0, seconds - due.wandb.init_timeout_seconds))
        lacking = _lacking(sent, due)
    if lacking:
        raise Missing(f"{len(lacking)} of {len(due.summary)} metrics have not arrived ({lacking[0]})")
    write_study_sent(folder, replace(sent, digest=due.digest(), problem=None))


def _send(folder: Path, due: StudyDue, *, finish_seconds: float) -> StudySent:
    import wandb

    sent = begin_study_sent(folder, due)
    run: Any = wandb.init(
        mode="online",
        id=sent.wandb_id,
        resume="allow",
        dir=str(folder),
        project=sent.project,
        entity=sent.entity,
        name=due.name,
        group=due.wandb.group,
        tags=list(due.wandb.tags),
        notes=due.wandb.notes,
        job_type=JOB_TYPE,
        settings=client_settings(due.wandb, finish_seconds=finish_seconds),
    )
    sent = replace(sent, entity=run.entity, url=run.url)
    write_study_sent(folder, sent)
    run.config.update(due.config, allow_val_change=True)  # more trials, another sampler
    run.log({"trials": wandb.Table(columns=list(due.columns), data=[list(row) for row in due.rows])})
    run.summary.update(due.summary)
    run.finish(exit_code=0)
    return sent


def _lacking(sent: StudySent, due: StudyDue) -> list[str]:
    """The metrics that the server does not show as they are, once it has had time enough."""
    import wandb

    deadline = time.monotonic() + ARRIVAL_SECONDS
    while True:
        there = wandb.Api(timeout=due.wandb.init_timeout_seconds).run(f"{sent.entity}/{sent.project}/{sent.wandb_id}")
        summary: dict[str, Any] = there.summary_metrics
        lacking = [name for name, value in due.summary.items() if summary.get(name) != value]
        lacking += [] if (summary.get("trials") or {}).get("nrows") == len(due.rows) else ["trials"]
        if not lacking or time.monotonic() > deadline:
            return lacking
        time.sleep(1.0)


@contextmanager
def _files_inside(folder: Path) -> Iterator[None]:
    """All that the client writes lies in the study's folder, and goes when everything has arrived."""
    place = folder / "wandb"
    stage_inside(place)
    yield
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Whatever the client raises becomes `Unusable`, in a line."""
    try:
        yield
    except Exception as error:  # its service may die at any moment, and then any call raises anything
        if isinstance(error, TclxError):
            raise
        with suppress(Exception):  # raises too, where the service is dead, and has done its work by then
            import wandb

            wandb.teardown()
        raise explained(error) from error


if __name__ == "__main__":
    # Everything has been said and written; the client's own clean-up would wait for a server that does not answer.
    os._exit(main(sys.argv[1:]))
