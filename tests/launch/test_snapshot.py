"""Promises of the code's copy: it is the code that submits, whole, copied once, and what runs from it is it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tclx import provenance
from tclx.errors import MachineError
from tclx.launch import snapshot
from tclx.launch.snapshot import check_running_copy, snapshot_code
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


# ------------------------------------------------------------------------------------------------ only the code, and unchanged


def test_every_file_that_the_package_has_in_its_repository_is_taken() -> None:
    """And what setuptools is told to install."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "tclx"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    taken = {str(path.relative_to(PROJECT)) for path in snapshot._files(PROJECT / "tclx")}
    assert taken == set(listed.stdout.split())
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, names in declared.items():
        assert {f"{package.replace('.', '/')}/{name}" for name in names} <= taken


def test_secrets_links_and_large_files_stay_where_they_are(tmp_path: Path, tree: Path) -> None:
    before = snapshot._digest(tree)
    (tree / ".env").write_text("WANDB_API_KEY=hunter2")
    (tree / ".hidden.py").write_text("")
    (tree / ".git").mkdir()
    (tree / ".git" / "config.py").write_text("")
    (tree / "weights.pth").write_bytes(b"0")
    (tree / "large.js").write_bytes(bytes(snapshot._LARGEST_BYTES + 1))
    (tree / "passwd.css").symlink_to("/etc/passwd")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.py").write_text("")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    place = snapshot_code(tmp_path / "runs")
    assert names(place) == {CODE_FILE, "tclx/__init__.py", "tclx/launch/task.py"}
    assert place.name == before


def test_a_module_that_is_a_link_is_refused_by_name(tmp_path: Path, tree: Path) -> None:
    (tree / "linked.py").symlink_to("/etc/passwd")
    with pytest.raises(MachineError, match=r"tclx/linked\.py is a link"):
        snapshot_code(tmp_path / "runs")


def _purge(place: Path) -> None:
    (place / "tclx" / "launch" / "task.py").unlink()


def _change(place: Path) -> None:
    (place / "tclx" / "launch" / "task.py").write_text("two = 666\n")


def _add(place: Path) -> None:
    (place / "tclx" / "evil.py").write_text("")


def _shadow(place: Path) -> None:
    """Of a module that tclx imports: the copy's folder is first on the path."""
    (place / "torch.py").write_text("")


def _link(place: Path) -> None:
    (place / "tclx" / "launch" / "task.py").unlink()
    (place / "tclx" / "launch" / "task.py").symlink_to("/etc/passwd")


def _open_to_others(place: Path) -> None:
    (place / "tclx" / "launch").chmod(0o777)


def _forget_origin(place: Path) -> None:
    (place / CODE_FILE).unlink()


def _replace(place: Path) -> None:
    other = place.parents[2] / "others"
    shutil.copytree(place, other)
    _change(other)
    shutil.rmtree(place)
    place.symlink_to(other)


@pytest.mark.parametrize("harm", [_purge, _change, _add, _shadow, _link, _open_to_others, _forget_origin, _replace])
def test_a_copy_that_is_no_longer_whole_is_made_anew(tmp_path: Path, tree: Path, harm: Callable[[Path], None]) -> None:
    place = snapshot_code(tmp_path / "runs")
    harm(place)
    assert snapshot_code(tmp_path / "runs") == place
    assert not place.is_symlink()
    assert names(place) == {CODE_FILE, "tclx/__init__.py", "tclx/launch/task.py"}
    assert (place / "tclx" / "launch" / "task.py").read_text() == "two = 2\n"
    assert not any(path.stat().st_mode & 0o022 for path in (place, *place.rglob("*")))
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("harm", [_purge, _change, _add])
def test_a_job_does_not_train_from_a_copy_that_is_no_longer_what_was_submitted(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    check_running_copy()  # code that is no copy is not judged
    place = snapshot_code(tmp_path / "runs")
    monkeypatch.setattr(snapshot, "code_folder", lambda: place)
    (place / "tclx" / "__pycache__").mkdir()
    (place / "tclx" / "__pycache__" / "x.pyc").write_text("another rank compiled it")
    check_running_copy()
    harm(place)
    with pytest.raises(MachineError, match=r"no longer the code of the job's submission .* submit again"):
        check_running_copy()


def test_a_whole_copy_in_use_is_left_alone(tmp_path: Path, tree: Path) -> None:
    place = snapshot_code(tmp_path / "runs")
    (place / "tclx" / "__pycache__").mkdir()
    (place / "tclx" / "__pycache__" / "x.pyc").write_text("a job compiled it")
    before = place.stat().st_ino
    assert snapshot_code(tmp_path / "runs").stat().st_ino == before


def test_copies_behind_a_link_are_refused(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".code").symlink_to(tmp_path / "others")
    with pytest.raises(MachineError, match=r"\.code is a link or somebody else's"):
        snapshot_code(tmp_path / "runs")
    assert list((tmp_path / "others").iterdir()) == []


def test_copies_that_others_may_write_are_closed_to_them(tmp_path: Path, tree: Path) -> None:
    place = snapshot_code(tmp_path / "runs")
    place.parent.chmod(0o777)
    assert snapshot_code(tmp_path / "runs") == place
    assert place.parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_somebody_elses_copies_are_not_used(tmp_path: Path, tree: Path) -> None:
    theirs = snapshot_code(tmp_path / "runs")
    os.chown(theirs.parent, 12345, -1)
    mine = snapshot_code(tmp_path / "runs")
    assert mine.parent.name == f".code-{os.getuid()}"
    os.chown(theirs.parent, os.getuid(), -1)
    os.chown(theirs / "tclx", 12345, -1)
    assert (snapshot_code(tmp_path / "runs") / "tclx").stat().st_uid == os.getuid()


def test_code_that_changes_while_it_is_copied_is_submitted_again(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def change_meanwhile(source: Path, target: Path) -> Path:
        (tree / "launch" / "task.py").write_text("two = 3\n")
        return copy(source, target)

    monkeypatch.setattr(snapshot.shutil, "copyfile", change_meanwhile)
    with pytest.raises(MachineError, match="changed while it was copied"):
        snapshot_code(tmp_path / "runs")
    assert list((tmp_path / "runs" / ".code").iterdir()) == []


def test_copies_of_the_first_version_go_on_being_used(tmp_path: Path, tree: Path) -> None:
    """It named them after all files of the package, in the same way; of a clean one that is the same name."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(tree)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    place = tmp_path / "runs" / ".code" / digest.hexdigest()[:12]
    shutil.copytree(tree, place / "tclx", ignore=shutil.ignore_patterns("__pycache__"))
    (place / CODE_FILE).write_text("{}")
    before = place.stat().st_ino
    assert snapshot_code(tmp_path / "runs").stat().st_ino == before


# ------------------------------------------------------------------------------------------------------ whose commit it is


def _commit(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(folder)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def test_the_repository_around_an_installed_package_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment usually lies in the project that it is for."""
    _commit(tmp_path / "project")
    installed = tmp_path / "project" / ".venv" / "site-packages"
    (installed / "tclx").mkdir(parents=True)
    monkeypatch.setattr(provenance, "code_folder", lambda: installed)
    assert provenance.describe_code() == {"commit": None, "diff": None, "diff_sha256": None}


def test_a_hook_of_another_repository_does_not_give_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = _commit(tmp_path / "ours"), tmp_path / "other"
    _commit(other)
    subprocess.run(
        ["git", "-C", str(other), "-c", "user.name=y", "-c", "user.email=y@y", "commit", "-q", "--allow-empty", "-m", "y"],
        check=True,
    )
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setattr(provenance, "code_folder", lambda: tmp_path / "ours")
    assert provenance.describe_code()["commit"] == ours
