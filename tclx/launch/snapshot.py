"""Which code does a job run that waited in the queue for a day? The code of its submission, copied when it was submitted.

The copy is of the `tclx` package as it is imported: committed or not, from a working tree or from site-packages. Equal code
is copied once, and named after its digest, which is computed again before a copy is used: what a cleaner of old files took from
it, or somebody changed, is copied anew. The alternatives were worse: to refuse a changed tree costs a day in the queue, to warn
trains what nobody asked for. Other packages are not copied; the copy says which versions there were, and the job compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tclx.errors import MachineError
from tclx.files import machine_error
from tclx.provenance import CODE_FILE, code_folder, describe_code, package_versions

CODE_FOLDER = ".code"
_TAKEN = (".py", ".css", ".js", ".html")
"""What the package is made of; whatever else lies in somebody's tree (`.env`, weights, links to other places) stays there."""

_LARGEST_BYTES = 2 * 2**20
_OTHERS_MAY_WRITE = 0o022


class _Ours(NamedTuple):
    """How the file system shows what is ours alone; some map users, and some keep no permissions."""

    user: int
    forbidden: int
    """Bits of a mode with which others could change a file."""

    def alone(self, path: Path) -> bool:
        """Whether it is no link, belongs to us, and nobody else may write it."""
        facts = path.lstat()
        return not path.is_symlink() and facts.st_uid == self.user and not facts.st_mode & self.forbidden


def snapshot_code(runs_dir: Path) -> Path:
    """Copy the running tclx beside the runs, unless it is there already; returns the folder to put on PYTHONPATH.

    Raises:
        MachineError: it cannot be written, the place belongs to somebody else, or the code changes at this moment.
    """
    package = code_folder() / "tclx"
    digest = _digest(package)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        ours = _ours(runs_dir)
        folder = _place_for_copies(runs_dir, ours)
        place = folder.resolve() / digest
        if not _is_as_copied(place, ours):
            _copy(package, place, ours)
    except OSError as error:
        raise machine_error(error, f"could not copy the code to {runs_dir / CODE_FOLDER / digest}") from error
    return place


def check_running_copy() -> None:
    """Refuse to train from a copy that is no longer the code of its submission; code that is no copy is not judged.

    Raises:
        MachineError: something was taken from it, added or changed since.
    """
    place = code_folder()
    if place.parent.name.startswith(CODE_FOLDER) and _digest(place / "tclx") != place.name:
        raise MachineError(f"{place} is no longer the code of the job's submission (a cleaner of old files?); submit again")


def _ours(folder: Path) -> _Ours:
    with tempfile.TemporaryDirectory(prefix=".tclx-code-", dir=folder) as made:  # 0700 where permissions are kept
        facts = Path(made).stat()
    return _Ours(facts.st_uid, _OTHERS_MAY_WRITE & ~facts.st_mode)


def _place_for_copies(runs_dir: Path, ours: _Ours) -> Path:
    """The folder of all copies: a user's own where the runs folder is shared and somebody else was first.

    Raises:
        MachineError: it is a link, or not ours.
    """
    folder = runs_dir / CODE_FOLDER
    if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid != ours.user:
        folder = runs_dir / f"{CODE_FOLDER}-{ours.user}"
    folder.mkdir(exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != ours.user:
        raise MachineError(
            f"{folder} is a link or somebody else's: jobs would run the code that lies there; remove it, or choose another "
            "place with --runs-dir"
        )
    folder.chmod(folder.stat().st_mode & 0o7777 & ~ours.forbidden)
    return folder


def _is_as_copied(place: Path, ours: _Ours) -> bool:
    """Whether a copy is there, whole, unchanged, ours alone, and nothing beside it that Python would import in its place."""
    package = place / "tclx"
    if place.is_symlink() or not package.is_dir() or not (place / CODE_FILE).is_file():
        return False
    if {path.name for path in place.iterdir()} - {package.name, CODE_FILE}:
        return False
    there = list(place.rglob("*"))
    if not all(ours.alone(path) for path in (place, *there)):
        return False
    files = {path for path in there if path.is_file() and "__pycache__" not in path.parts}
    return files == {place / CODE_FILE, *_files(package)} and _digest(package) == place.name


def _copy(package: Path, place: Path, ours: _Ours) -> None:
    """Make the copy beside its place and put it there in one rename; what is there already goes."""
    building = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    aside = place.with_name(f".{place.name}.{os.getpid()}.old")
    try:
        for left in (building, aside):  # of a killed submitter whose process id has come again
            shutil.rmtree(left, ignore_errors=True)
        for file in _files(package):
            copy = building / package.name / file.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        origin = {**describe_code(), "packages": package_versions(), "copied_from": str(package.parent)}
        (building / CODE_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
        for path in (building, *building.rglob("*")):
            path.chmod(path.stat().st_mode & 0o7777 & ~ours.forbidden)
        if _digest(building / package.name) != place.name:
            raise MachineError(f"{package} changed while it was copied for the job: submit again")
        if _is_as_copied(place, ours):  # somebody was faster: the same code
            return
        if os.path.lexists(place):
            place.rename(aside)
        building.rename(place)
    except OSError:
        if not _is_as_copied(place, ours):  # as above, at the last moment
            raise
    finally:
        for left in (building, aside):
            shutil.rmtree(left, ignore_errors=True)
            if left.is_symlink():
                left.unlink()


def _files(package: Path) -> Iterator[Path]:
    """What a job needs of the package, in order.

    Raises:
        MachineError: a module is a link, which leads to who knows what when the job starts.
    """
    for path in sorted(package.rglob("*")):
        parts = path.relative_to(package).parts
        if path.suffix not in _TAKEN or any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        if path.is_symlink() or not path.resolve().is_relative_to(package.resolve()):
            if path.suffix == ".py":
                raise MachineError(
                    f"{path} is a link, and jobs run a copy: install tclx as files of its own (uv: --link-mode copy)"
                )
            continue
        if path.is_file() and path.stat().st_size <= _LARGEST_BYTES:
            yield path


def _digest(package: Path) -> str:
    """Of the files that are taken, names and contents."""
    digest = hashlib.sha256()
    for path in _files(package):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
