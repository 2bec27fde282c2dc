"""Promises of `tclx du` and `tclx rm`: what is counted is there, what goes is needed by nobody, or nothing goes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.runs import RunFolder, RunState
from tclx.use.room import bytes_in, remove, rooms, spare_checkpoints
from tests.cli.test_cli import Ended, run_process
from tests.launch.toy import write_spec


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a best checkpoint and a newer one, and the file of its spec."""
    folder = tmp_path_factory.mktemp("room")
    training = {"steps": 6, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 2}}
    ended = run_process("run", write_spec(folder, training=training), "--runs-dir", folder / "runs")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def only(runs: Path) -> RunFolder:
    (path,) = runs.glob("toy-*")
    return RunFolder(path)


def with_another_checkpoint(run: RunFolder) -> Path:
    """As a run has it whose best evaluation was not its last."""
    best = run.read_best()
    assert best is not None
    kept = run.checkpoints / f"step-{best.step:08d}"
    other = run.checkpoints / "step-00000099"
    shutil.copytree(kept, other)
    return other


def test_bytes_are_those_that_du_counts(runs: Path) -> None:
    (runs / "again").hardlink_to(only(runs).metrics)  # a second name takes no room
    told = subprocess.run(["du", "--summarize", "--block-size=1", runs], capture_output=True, text=True, check=True).stdout
    folders = sum(512 * path.lstat().st_blocks for path in [runs, *(path for path in runs.rglob("*") if path.is_dir())])
    assert bytes_in(runs) == int(told.split()[0]) - folders


def test_the_best_checkpoint_of_a_finished_run_stays_and_the_others_are_spare(runs: Path) -> None:
    run = only(runs)
    other = with_another_checkpoint(run)
    best = run.read_best()
    assert best is not None
    spare = spare_checkpoints(run, "finished")
    assert other in spare
    assert run.checkpoints / f"step-{best.step:08d}" not in spare
    assert spare_checkpoints(run, "interrupted") == []  # it goes on from the newest
    (room,) = rooms([run.path])
    assert room.spare == sum(map(bytes_in, spare))
    assert room.spare < room.checkpoints < room.total
    ended = Ended("rm", run.path, "--checkpoints", "--yes", "--runs-dir", runs)
    assert (ended.code, other.exists()) == (0, False)
    assert Ended("eval", run.path, "--split", "val").code == 0  # what is left is whole


def test_where_the_best_one_is_gone_nothing_is_spare(runs: Path) -> None:
    run = only(runs)
    with_another_checkpoint(run)
    best = run.read_best()
    assert best is not None
    shutil.rmtree(run.checkpoints / f"step-{best.step:08d}")
    assert spare_checkpoints(run, "finished") == []


def test_a_run_is_removed_whole_when_somebody_says_so(runs: Path) -> None:
    run = only(runs)
    asked = Ended("rm", run.run_id, "--runs-dir", runs)
    assert (asked.code, run.path.exists()) == (2, True)
    assert "nobody is there to be asked (--yes removes what is listed)" in asked.err
    assert Ended("rm", run.run_id, "--yes", "--runs-dir", runs).code == 0
    assert list(runs.glob("toy-*")) == list(runs.glob(".removing-*")) == []


@pytest.mark.parametrize("what", ["running", "held"])
def test_a_run_that_goes_on_is_refused_and_nothing_is_removed(what: str, runs: Path) -> None:
    run = only(runs)
    second = runs / "toy-second"
    shutil.copytree(run.path, second)
    if what == "running":
        run.write_state(RunState("running", step=1, total_steps=6))
        run.heartbeat.touch()
        with pytest.raises(InputError, match=f"{run.run_id} is running: nothing was removed"):
            list(remove([second, run.path], runs_dir=runs))
    else:
        with run.lock(), pytest.raises(InputError, match=f"{run.run_id} has begun to train meanwhile"):
            list(remove([run.path], runs_dir=runs))
    assert run.path.exists()
    assert second.exists()


def test_a_run_that_another_one_starts_from_is_refused_until_that_is_finished(runs: Path) -> None:
    run, second = only(runs), RunFolder(runs / "toy-second")
    shutil.copytree(run.path, second.path)
    spec = json.loads(second.spec.read_text())
    spec["init"] = {"checkpoint": str(run.checkpoints / "step-00000006"), "experiment": None, "variant": None}
    second.spec.write_text(json.dumps(spec))
    second.write_state(RunState("interrupted", step=2, total_steps=6))
    with pytest.raises(InputError, match=rf"toy-second \(interrupted\) starts from {run.run_id}: nothing was removed"):
        list(remove([run.path], runs_dir=runs))
    assert len(list(remove([run.path, second.path], runs_dir=runs))) == 2


def test_a_checkpoint_that_another_run_starts_from_is_kept_for_it(runs: Path) -> None:
    run, second = only(runs), RunFolder(runs / "toy-second")
    other = with_another_checkpoint(run)
    shutil.copytree(run.path, second.path)
    spec = json.loads(second.spec.read_text())
    spec["init"] = {"checkpoint": str(other), "experiment": None, "variant": None}
    second.spec.write_text(json.dumps(spec))
    second.write_state(RunState("interrupted", step=2, total_steps=6))
    with pytest.raises(InputError, match=rf"toy-second \(interrupted\) starts from {run.run_id}: nothing was removed"):
        list(remove([run.path], runs_dir=runs, checkpoints=True))
    assert other.exists()
    second.write_state(RunState("finished", step=6, total_steps=6))
    (run.checkpoints / ".removing-step-00000001-1").mkdir()
    assert len(list(remove([run.path], runs_dir=runs, checkpoints=True))) == 1
    assert not other.exists()
    assert not list(run.checkpoints.glob(".removing-*"))


def test_a_trial_is_not_taken_from_its_study(runs: Path) -> None:
    run = only(runs)
    run.trial.write_text(json.dumps({"study": "s", "number": 3}))
    with pytest.raises(InputError, match="is a trial, and its study counts on it"):
        list(remove([run.path], runs_dir=runs))


def test_what_a_killed_command_left_is_removed_by_the_next(runs: Path) -> None:
    run = only(runs)
    shutil.copytree(run.path, runs / ".removing-old-1" / "old")
    assert Ended("status", "--runs-dir", runs, "--json").out.count('"run_id"') == 1  # it is no run
    assert Ended("rm", run.run_id, "--yes", "--runs-dir", runs).code == 0
    assert not list(runs.glob(".removing-*"))


def test_the_table_and_the_json(runs: Path) -> None:
    run = only(runs)
    table = Ended("du", "--runs-dir", runs).out.splitlines()
    assert table[0].split() == ["run", "state", "total", "checkpoints", "spare"]
    assert table[1].split()[:2] == [run.run_id, "finished"]
    (tree,) = json.loads(Ended("du", "--runs-dir", runs, "--json").out)
    assert tree.keys() == {"run_id", "folder", "state", "total_bytes", "checkpoints_bytes", "spare_bytes"}
    assert tree["total_bytes"] == bytes_in(run.path)
