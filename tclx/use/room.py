"""What takes room on the disk, and how runs are removed: never one that goes on, or that another one still needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, machine_error
from tclx.launch.watch import GOING_ON, Standing, watch_runs
from tclx.runs import RunFolder
from tclx.spec.load import load_spec_json

_REMOVING = ".removing-"
"""The beginning of a folder's name while it is removed: what a killed command leaves is removed by the next."""


class Room(NamedTuple):
    """What one run takes, in bytes."""

    folder: RunFolder
    standing: Standing
    total: int
    checkpoints: int
    spare: int
    """Of the checkpoints those that `tclx rm --checkpoints` removes."""


def bytes_in(folder: Path) -> int:
    """On the disk, whatever is in the folder and below; a file of several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # it was replaced meanwhile
                facts = Path(where, name).lstat()
                if (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    total += 512 * facts.st_blocks
    return total


def rooms(folders: Sequence[Path]) -> list[Room]:
    """What runs take, the largest first."""
    found = []
    for status in watch_runs(folders):
        sizes = {path: bytes_in(path) for path in status.folder.checkpoints.glob("step-*") if path.is_dir()}
        spare = sum(sizes[path] for path in spare_checkpoints(status.folder, status.standing))
        total = bytes_in(status.folder.path)
        found.append(Room(status.folder, status.standing, total, sum(sizes.values()), spare))
    return sorted(found, key=lambda room: -room.total)


def spare_checkpoints(run: RunFolder, standing: Standing) -> list[Path]:
    """Of a finished run the checkpoints besides that of its best evaluation; besides the newest where nothing was evaluated."""
    if standing != "finished":
        return []
    paths = sorted(path for path in run.checkpoints.glob("step-*") if (path / "manifest.json").exists())
    best = run.read_best()
    kept = run.checkpoints / f"step-{best.step:08d}" if best is not None else next(reversed(paths), None)
    return [path for path in paths if path != kept] if kept in paths else []


def remove(folders: Sequence[Path], *, runs_dir: Path, checkpoints: bool = False) -> Iterator[tuple[RunFolder, int]]:
    """Remove runs, or the spare checkpoints of finished ones. Everything is looked at before anything is removed.

    Args:
        folders: of the runs.
        runs_dir: where runs are looked for that start from one of these.
        checkpoints: only these.

    Yields:
        Each run and the bytes that became free, as it is done.

    Raises:
        InputError: a run goes on, is a trial of a sweep, or another one that is not finished starts from it.
        MachineError: it cannot be removed.
    """
    statuses = watch_runs(folders)
    problems = [problem for status in statuses if (problem := _in_use(status.folder, status.standing))]
    if not checkpoints:
        problems += [_of_a_trial(status.folder) for status in statuses if status.folder.trial.exists()]
    going = {
        status.folder: spare_checkpoints(status.folder, status.standing) if checkpoints else [status.folder.path]
        for status in statuses
    }
    problems += list(_needed(going, runs_dir))
    if problems:
        raise InputError(*problems)
    for run, paths in going.items():
        with run.lock() as mine:
            if not mine:
                raise InputError(Problem("", f"{run.run_id} has begun to train meanwhile", "tclx cancel it first"))
            freed = sum(map(bytes_in, paths))
            for path in paths:
                _remove(path)
        yield run, freed
    for folder in {place for run in going for place in (run.path.parent, run.checkpoints)}:
        for left in folder.glob(f"{_REMOVING}*"):
            shutil.rmtree(left, ignore_errors=True)


def _in_use(run: RunFolder, standing: Standing) -> Problem | None:
    if standing in (*GOING_ON, "unknown"):
        hint = "tclx cancel it first" if standing != "unknown" else "tclx status says what is unknown of it"
        return Problem("", f"{run.run_id} is {standing}: nothing was removed", hint)
    return None


def _of_a_trial(run: RunFolder) -> Problem:
    message = f"{run.run_id} is a trial, and its study counts on it: nothing was removed"
    return Problem("", message, "--checkpoints removes what no evaluation needs")


def _needed(going: Mapping[RunFolder, Sequence[Path]], runs_dir: Path) -> Iterator[Problem]:
    """Other runs that have not finished and start from what goes of one of these."""
    resolved = {path.resolve(): run for run, paths in going.items() for path in paths}
    others = [path.parent for path in runs_dir.glob("*/spec.json") if path.parent.resolve() not in resolved]
    for status in watch_runs(others):
        if status.standing == "finished":
            continue
        try:
            init = load_spec_json(status.folder.spec).init
        except Unreadable:
            continue  # whatever it is, it starts from nothing
        source = Path(init.checkpoint).resolve() if init is not None and init.checkpoint is not None else None
        for path, run in resolved.items():
            if source is not None and source.is_relative_to(path):
                message = f"{status.folder.run_id} ({status.standing}) starts from {run.run_id}: nothing was removed"
                yield Problem("", message, "let it finish, or name it, too")


def _remove(path: Path) -> None:
    """At once for everybody who looks: under another name first."""
    leaving = path.with_name(f"{_REMOVING}{path.name}-{os.getpid()}")
    try:
        leaving.mkdir()
        path.rename(leaving / path.name)  # a folder deeper, where nobody looks for runs
        shutil.rmtree(leaving)
    except OSError as error:
        raise machine_error(error, f"could not remove {path}") from error
