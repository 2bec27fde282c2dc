"""Which code does a job run that waited in the queue for a day? The code of its submission, copied when it was submitted.

The copy is of the `tclx` package as it is imported: committed or not, from a working tree or from site-packages. Equal code
is copied once. The alternatives were worse: to refuse a changed tree costs a day in the queue, to warn trains what nobody asked
for. Other packages are not copied; the copy says which versions there were, and the job compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from tclx.provenance import CODE_FILE, code_folder, describe_code, package_versions
from tclx.runs import machine_error

CODE_FOLDER = ".code"
_LEFT_OUT = ("__pycache__",)


def snapshot_code(runs_dir: Path) -> Path:
    """Copy the running tclx beside the runs, unless it is there already; returns the folder to put on PYTHONPATH.

    Raises:
        MachineError: it cannot be written.
    """
    package = code_folder() / "tclx"
    place = (runs_dir / CODE_FOLDER / _digest(package)).resolve()
    if (place / package.name).is_dir():
        return place
    building = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)  # of a killed submitter whose process id has come again
        building.mkdir(parents=True)
        origin = {**describe_code(), "packages": package_versions(), "copied_from": str(package.parent)}
        (building / CODE_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
        shutil.copytree(package, building / package.name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        try:
            building.rename(place)
        except OSError:
            if not (place / package.name).is_dir():  # somebody else was faster: the same code
                raise
            shutil.rmtree(building)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise machine_error(error, f"could not copy the code to {place}") from error
    return place


def _digest(package: Path) -> str:
    """Of all files of the package, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and not any(part in _LEFT_OUT for part in path.parts):
            digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
