"""`just gpu-pack`: one folder that a bare machine with a GPU can run without a network. See docs/gpu.md.

    FOLDER/run.sh            bash run.sh OUT: brings what is missing there and runs the parts
    FOLDER/project/          this source tree, as git lists it
    FOLDER/shared/parity/    the recorded official numbers, when they are beside this project
    FOLDER/wheels/           what tclx and its tests need and such a machine lacks

Versions are those installed here, hence tested. What is large is taken for granted there (`THERE`), and run.sh says what is
missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tclx.provenance import CODE_FILE, describe_code, package_versions

PROJECT = Path(__file__).resolve().parents[2]

THERE = frozenset(
    (
        *("torch", "torchvision", "transformers", "tokenizers", "safetensors", "huggingface-hub"),
        *("numpy", "pillow", "scipy", "scikit-learn", "opencv-python-headless"),
    )
)
"""A machine for training has these, in whatever version; as wheels they would be gigabytes."""

UNUSED = frozenset(("wandb", "wandb-workspaces", "plotly"))
"""Dependencies that no part touches: uploads and the report's figures."""

TESTS_NEED = ("pytest", "pytest-xdist", "hypothesis")

PLATFORMS = tuple(f"{name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_24", "manylinux2014", "manylinux_2_17"))
MOST_BYTES = 60 * 2**20


def main() -> None:
    options = argparse.ArgumentParser(prog="just gpu-pack", description="A folder for a machine with a GPU and no network.")
    options.add_argument("--out", type=Path, default=PROJECT / "build" / "gpu-pack")
    options.add_argument("--python", default="3.12", help="version of that machine's Python")
    given = options.parse_args()
    size = pack(given.out, python=given.python)
    print(f"{given.out}: {size / 2**20:.1f} MiB; there: bash {given.out.name}/run.sh OUT")


def pack(folder: Path, *, python: str) -> int:
    """Build the folder anew; returns its size in bytes.

    Raises:
        SystemExit: it is larger than `MOST_BYTES`, or a wheel cannot be had.
    """
    shutil.rmtree(folder, ignore_errors=True)
    _copy_project(folder / "project")
    parity = PROJECT.parent / "shared" / "parity"
    if parity.is_dir():
        shutil.copytree(parity, folder / "shared" / "parity", copy_function=shutil.copyfile)
    else:
        print("no ../shared/parity beside the project: the parity tests will be skipped there", file=sys.stderr)
    shutil.copyfile(Path(__file__).with_name("run.sh"), folder / "run.sh")
    needed = requirements()
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    _download(closure(needed, python=python), folder / "wheels", python=python)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        sys.exit(f"{folder} has {size / 2**20:.1f} MiB, more than {MOST_BYTES / 2**20:.0f}")
    return size


def _copy_project(place: Path) -> None:
    """What git lists, committed or not, and which commit it was."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout.decode()
    for name in listed.split("\0"):
        if name and (PROJECT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, place / name)
    origin = {**describe_code(), "packages": package_versions()}
    (place / CODE_FILE).write_text(json.dumps(origin) + "\n", encoding="utf-8")


def requirements() -> list[str]:
    """What must be importable there, with the lowest versions that pyproject.toml states."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tests = [one for one in project["optional-dependencies"]["dev"] if Requirement(one).name in TESTS_NEED]
    return [one for one in (*project["dependencies"], *tests) if canonicalize_name(Requirement(one).name) not in UNUSED]


def closure(needed: Iterable[str], *, python: str) -> dict[str, str]:
    """The packages that are carried, with their versions: what is needed, and what that needs, less `THERE`."""
    found: dict[str, str] = {}
    waiting = list(needed)
    target = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": ""}
    while waiting:
        one = Requirement(waiting.pop())
        name = canonicalize_name(one.name)
        if name in THERE or name in found or (one.marker is not None and not one.marker.evaluate(target)):
            continue
        found[name] = version(name)
        waiting += requires(name) or []
    return found


def _download(packages: dict[str, str], place: Path, *, python: str) -> None:
    wanted = [f"{name}=={number}" for name, number in sorted(packages.items())]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    only = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *only, "--dest", place, *wanted], check=False)
    if done.returncode != 0:
        sys.exit("not every wheel could be had")


if __name__ == "__main__":
    main()
