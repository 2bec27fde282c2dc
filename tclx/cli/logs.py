"""`tclx logs`: what a run printed."""

from __future__ import annotations

import codecs
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, show
from tclx.errors import InputError, Problem
from tclx.runs import RunFolder

EXAMPLE = "Example:  tclx logs quickstart --rank 0 --lines 20"
FOLLOW_SECONDS = 0.5


def logs(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run folder, a run id, or a name that matches a single run.", autocompletion=complete_runs
        ),
    ],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Rank of the training process.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new output; Ctrl-C stops.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Number of lines to print from the end.")] = 50,
) -> None:
    """Print what a run's process has printed, over all of its starts.

    A run in the foreground prints to its terminal; only its tracebacks are here.
    """
    from tclx.found import find_one

    folder = RunFolder(find_one(run, runs_dir=runs_dir))
    log = folder.log(rank)
    if not log.is_file():
        log = _before_training(folder)
    content = log.read_bytes()
    show("".join(_text(content.decode(errors="replace")).splitlines(keepends=True)[-lines:]), end="")
    sys.stdout.flush()
    if follow:
        _follow(log, len(content))


def _before_training(folder: RunFolder) -> Path:
    """What SLURM or the queue printed for a run whose own process has printed nothing yet.

    Raises:
        InputError: that is nothing, too.
    """
    from tclx.launch.backend import BACKENDS

    job = folder.read_job()
    if job is not None and (log := BACKENDS[job.backend].log(job)).is_file():
        return log
    there = ", ".join(path.stem.removeprefix("rank") for path in sorted((folder.path / "logs").glob("rank*.log"))) or "none"
    raise InputError(Problem("--rank", f"{folder.run_id} has no log of this process yet", f"ranks with a log: {there}"))


def _text(written: str) -> str:
    """Progress bars of other programs go back to the beginning of their line; here each of their states is a line."""
    return written.replace("\r\n", "\n").replace("\r", "\n")


def _follow(log: Path, position: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a letter may be written in two halves
    try:
        with log.open("rb") as file:
            file.seek(position)
            while True:
                if added := file.read():
                    show(_text(decoder.decode(added)), end="")
                    sys.stdout.flush()
                else:
                    time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
