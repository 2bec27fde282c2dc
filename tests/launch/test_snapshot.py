"""Promises of the code's copy: it is the code that submits, whole, copied once, and what runs from it is it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tclx.errors import MachineError
from tclx.launch import snapshot
from tclx.launch.snapshot import snapshot_code
from tclx.provenance import CODE_FILE, PACKAGES

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tclx that stands for the one that is imported; returns its package."""
    package = tmp_path / "tree" / "tclx"
    (package / "launch" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    (package / "launch" / "task.py").write_text("two = 2\n")
    (package / "launch" / "__pycache__" / "task.pyc").write_text("compiled")
    monkeypatch.setattr(snapshot, "code_folder", lambda: package.parent)
    return package


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_copy_is_the_package_without_what_python_compiled(tmp_path: Path, tree: Path) -> None:
    place = snapshot_code(tmp_path / "runs")
    assert place.parent == tmp_path / "runs" / ".code"
    assert names(place) == {CODE_FILE, "tclx/__init__.py", "tclx/launch/task.py"}
    assert (place / "tclx" / "launch" / "task.py").read_text() == "two = 2\n"


def test_equal_code_is_copied_once_and_changed_code_beside_it(tmp_path: Path, tree: Path) -> None:
    first = snapshot_code(tmp_path / "runs")
    before = (first / CODE_FILE).stat().st_mtime_ns
    (tree / "launch" / "__pycache__" / "task.pyc").write_text("compiled again")
    assert snapshot_code(tmp_path / "runs") == first
    assert (first / CODE_FILE).stat().st_mtime_ns == before
    (tree / "launch" / "task.py").write_text("two = 3\n")
    changed = snapshot_code(tmp_path / "runs")
    assert changed != first
    assert (first / "tclx" / "launch" / "task.py").read_text() == "two = 2\n"
    (tree / "launch" / "task.py").rename(tree / "launch" / "other.py")
    assert snapshot_code(tmp_path / "runs") not in (first, changed)


def test_it_says_where_the_code_came_from(tmp_path: Path, tree: Path) -> None:
    origin = json.loads((snapshot_code(tmp_path / "runs") / CODE_FILE).read_text())
    assert origin["copied_from"] == str(tree.parent)
    assert list(origin["packages"]) == list(PACKAGES)
    assert {"commit", "diff", "diff_sha256"} <= set(origin)


def test_a_process_with_the_copy_on_its_path_imports_the_copy(tmp_path: Path) -> None:
    place = snapshot_code(tmp_path / "runs")
    code = "import tclx.launch.task, tclx.provenance as p; print(tclx.__file__, p.packages_at_submission()['torch'])"
    environment = {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    file, version = done.stdout.split()
    assert file == str(place / "tclx" / "__init__.py")
    assert version != "None"


def test_several_submitters_at_once_make_one_copy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tclx.launch.snapshot import snapshot_code; snapshot_code(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    processes = [subprocess.Popen(command, env={"PYTHONPATH": str(PROJECT)}) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    (place,) = (tmp_path / "runs" / ".code").iterdir()
    assert {name for name in names(place) if "__pycache__" not in name} >= {"tclx/worker.py", CODE_FILE}


def test_what_a_killed_submitter_left_is_in_nobodys_way(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process id may come again."""
    monkeypatch.setattr(snapshot.os, "getpid", lambda: 7)
    left = tmp_path / "runs" / ".code" / f".{snapshot._digest(tree)}.7.tmp"
    (left / "tclx" / "launch").mkdir(parents=True)
    (left / "tclx" / "launch" / "half.py").write_text("")
    place = snapshot_code(tmp_path / "runs")
    assert "tclx/launch/half.py" not in names(place)
    assert list(place.parent.iterdir()) == [place]


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".code").write_text("a file")
    with pytest.raises(MachineError, match=r"could not copy the code to .*/\.code/"):
        snapshot_code(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".code"]
