"""`tclx du` and `tclx rm`: what takes room, and away with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, aligned, print_json, say, show

DU_EXAMPLE = "Example:  tclx du quickstart"
RM_EXAMPLE = "Example:  tclx rm quickstart --checkpoints --yes"


def du(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS]...", help=f"{RUNS_HELP}; all by default.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: AsJson = False,
) -> None:
    """What do runs take on the disk, and what of it may go?

    The largest first. `spare` are checkpoints of finished runs besides that of the best evaluation: `tclx rm --checkpoints`
    removes them.
    """
    from tclx.found import find
    from tclx.use.room import rooms

    found = rooms(find(runs or [], runs_dir=runs_dir, trials=True).folders)
    if as_json:
        trees = [{"run_id": room.folder.run_id, "folder": str(room.folder.path), **_numbers(room)} for room in found]
        print_json([{**tree, "state": room.standing} for tree, room in zip(trees, found, strict=True)])
        return
    if not found:
        say(f"no runs in {runs_dir}; choose another folder with --runs-dir")
        return
    rows = [[room.folder.run_id, room.standing, *(in_words(value) for value in _numbers(room).values())] for room in found]
    totals = [sum(column) for column in zip(*(_numbers(room).values() for room in found), strict=True)]
    show(aligned([["run", "state", "total", "checkpoints", "spare"], *rows, ["all", "", *map(in_words, totals)]]))


def rm(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help=f"{RUNS_HELP}.", autocompletion=complete_runs)],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Only checkpoints of finished runs, besides that of the best evaluation.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs, or the checkpoints that nothing needs any more.

    A run that goes on is refused, and one that another, unfinished run starts from; then nothing is removed. What is on
    W&B stays there.
    """
    from tclx.errors import InputError, Problem
    from tclx.found import find
    from tclx.use.room import remove, rooms

    folders = find(runs, runs_dir=runs_dir, trials=checkpoints).folders
    if not yes:
        for room in rooms(folders):
            show(f"{room.folder.path}  {in_words(room.spare if checkpoints else room.total)}")
        if not sys.stdin.isatty():
            raise InputError(Problem("", "nothing was removed: nobody is there to be asked", "--yes removes what is listed"))
        typer.confirm("Remove these for good?", abort=True)
    for run, freed in remove(folders, runs_dir=Path(runs_dir), checkpoints=checkpoints):
        say(f"{run.run_id}: {in_words(freed)} removed")


def _numbers(room: object) -> dict[str, int]:
    return {f"{name}_bytes": getattr(room, name) for name in ("total", "checkpoints", "spare")}


def in_words(size: int) -> str:
    """Bytes in the largest unit that leaves a number above one."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
