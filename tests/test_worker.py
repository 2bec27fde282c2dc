"""Promises of the worker: every ending has its exit code and its state, and nobody else's run is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tclx import worker
from tclx.errors import InputError, Interrupted, MachineError, Problem, RunFailed
from tclx.launch.order import plan_runs
from tclx.launch.prepare import prepare
from tclx.runs import Attempt, RunFolder
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[1]

Start = Callable[[Exception | None], int]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (run,) = plan_runs([write_spec(tmp_path)], runs_dir=tmp_path)
    made = RunFolder(tmp_path / run.plan.run_id)
    prepare(run, made)
    return made


@pytest.fixture
def start(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Runs the worker with a training loop that only ends, in the way given."""

    def start(ending: BaseException | None) -> int:
        def train(*arguments: object) -> None:
            if ending is not None:
                raise ending

        monkeypatch.setattr("tclx.train.loop.train", train)
        return begin(folder)

    return start


def begin(folder: RunFolder) -> int:
    """As `python -m tclx.worker`, but that it goes on printing where this process does."""
    return worker.work(folder, Attempt(f"test-{os.getpid()}"))


@pytest.mark.parametrize(
    ("ending", "code", "status", "reason"),
    [
        (Interrupted("saved at step 3"), 75, "interrupted", "saved at step 3"),
        (KeyboardInterrupt(), 75, "interrupted", "stopped while it started"),
        (RunFailed("the loss is NaN"), 1, "failed", "the loss is NaN"),
        (InputError(Problem("optim", "wrong")), 2, "failed", "optim: wrong"),
        (MachineError("the disk is full"), 3, "failed", "the disk is full"),
    ],
)
def test_an_ending_is_told_by_code_and_state(
    start: Start, folder: RunFolder, ending: Exception, code: int, status: str, reason: str | None
) -> None:
    assert start(ending) == code
    state = folder.read_state()
    assert state is not None
    assert (state.status, state.reason) == (status, reason)


def test_a_mistake_is_printed_without_traceback(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(RunFailed("the loss is NaN"))
    assert capsys.readouterr().err == "error: the loss is NaN\n"


LOOP = """
import sys, types, warnings

def train(folder, spec, plan):
    warnings.warn("a library's warning")
    {body}

loop = types.ModuleType("tclx.train.loop")
loop.train = train
sys.modules["tclx.train.loop"] = loop
"""


def run_worker(folder: RunFolder, place: Path, body: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """A worker process whose training loop does nothing else."""
    (place / "sitecustomize.py").write_text(LOOP.format(body=body))
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{place}"}
    command = [sys.executable, "-m", "tclx.worker", str(folder.path)]
    return subprocess.run(
        command, env=environment, text=True, timeout=60, check=False, **(streams or {"stderr": subprocess.PIPE})
    )


def test_a_run_in_the_foreground_leaves_its_log_like_any_other(folder: RunFolder, tmp_path: Path) -> None:
    ended = run_worker(folder, tmp_path, "raise ZeroDivisionError('oops')")
    log = folder.log(0).read_text()
    assert ended.returncode == 1
    assert "a library's warning" in log
    assert log.startswith("--- ")
    for text in (log, ended.stderr):
        assert "Traceback" in text
        assert "ZeroDivisionError: oops" in text
    state = folder.read_state()
    assert state is not None
    assert state.status == "failed"
    assert "ZeroDivisionError: oops" in (state.reason or "")


def test_what_a_user_can_mend_is_in_the_log_too(folder: RunFolder, tmp_path: Path) -> None:
    run_worker(folder, tmp_path, "from tclx.errors import RunFailed; raise RunFailed('the loss is NaN')")
    assert "error: the loss is NaN" in folder.log(0).read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_print_ends_a_run(folder: RunFolder, tmp_path: Path) -> None:
    """The log is on a full disk: the device that has no room for any byte."""
    folder.log(0).parent.mkdir()
    folder.log(0).symlink_to("/dev/full")
    body = "print('a row', flush=True); print('another', file=sys.stderr, flush=True); (folder.path / 'trained').touch()"
    with Path("/dev/full").open("w") as full:
        ended = run_worker(folder, tmp_path, body, stdout=full, stderr=full)
    assert ended.returncode == 0
    assert (folder.path / "trained").exists()


def test_a_state_that_cannot_be_written_does_not_look_alive(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.heartbeat.touch()

    def refuse(self: RunFolder, state: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr(RunFolder, "write_state", refuse)
    assert start(MachineError("could not write metrics.jsonl: the disk is full")) == 3
    assert not folder.heartbeat.exists()


def test_a_run_that_another_process_holds_keeps_its_state(start: Start, folder: RunFolder) -> None:
    before = folder.state.read_bytes()
    with folder.lock():
        assert start(None) == worker.HELD_BY_ANOTHER
    assert folder.state.read_bytes() == before


def test_the_reason_of_an_earlier_attempt_is_replaced(start: Start, folder: RunFolder) -> None:
    start(RunFailed("the first reason"))
    folder.write_json(folder.state, {**folder.read_json(folder.state), "pid": 1})
    start(RunFailed("the second reason"))
    state = folder.read_state()
    assert state is not None
    assert state.reason == "the second reason"


@pytest.mark.parametrize("ending", [RunFailed("the loss is NaN"), ZeroDivisionError("oops")])
def test_a_superseded_process_leaves_the_newer_ones_word(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, ending: Exception
) -> None:
    """Rank 1 of an old attempt lives on while a newer one begins, fails and says why."""
    monkeypatch.setenv("RANK", "1")
    newest = {"attempt": "newer", "reason": "the newer one's word"}

    def train(*arguments: object) -> None:
        folder.begin(Attempt("newer"))
        folder.write_json(folder.error(1), newest)
        raise ending

    start(None)
    monkeypatch.setattr("tclx.train.loop.train", train)
    assert begin(folder) == 1
    assert folder.read_json(folder.error(1)) == newest


def test_a_rank_that_falls_before_its_attempt_has_begun_is_heard(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rank 0 is slower, so that an older attempt still stands in the run folder."""
    folder.begin(Attempt("older"))
    monkeypatch.setenv("RANK", "1")
    start(RunFailed("the loss is NaN"))
    assert folder.read_json(folder.error(1))["reason"] == "the loss is NaN"


def test_one_of_several_processes_interrupted_is_no_crash(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start(Interrupted("saved")) == 0


def test_other_ranks_write_no_state(start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder.state.read_bytes()
    monkeypatch.setenv("RANK", "1")
    assert start(RunFailed("the loss is NaN")) == 1
    assert folder.state.read_bytes() == before


def test_the_loop_receives_the_spec_and_the_plan_as_written(
    start: Start, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def train(folder: RunFolder, spec: object, plan: object) -> None:
        seen["spec"], seen["plan"] = spec, plan

    monkeypatch.setattr("tclx.train.loop.train", train)
    assert begin(folder) == 0
    assert json.loads(seen["spec"].model_dump_json()) == folder.read_json(folder.spec)
    assert seen["plan"].to_json() == folder.read_json(folder.plan)


@pytest.mark.parametrize("arguments", [[], ["one", "two"], ["/nowhere"]])
def test_anything_but_a_prepared_folder_is_bad_input(arguments: list[str]) -> None:
    assert worker.main(arguments) == 2


def test_training_imports_neither_wandb_nor_tensorboard(folder: RunFolder, tmp_path: Path) -> None:
    """timm imports wandb by itself where it finds it. Both are installed here."""
    code = (
        "import pathlib, sys; from tclx.worker import main\n"
        "code = main([sys.argv[1]])\n"
        "names = [name for name in ('timm', 'transformers', 'wandb', 'tensorboard') if sys.modules.get(name)]\n"
        "pathlib.Path(sys.argv[2]).write_text(f'{code} {names}')\n"  # the worker has streams of its own
        "import wandb"  # it stays within reach of whoever wants it
    )
    arguments = [sys.executable, "-c", code, str(folder.path), str(tmp_path / "imported")]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "imported").read_text() == "0 ['timm', 'transformers']", ended.stderr


def test_what_a_run_prints_to_stdout_is_in_its_log(folder: RunFolder, tmp_path: Path) -> None:
    ended = run_worker(
        folder, tmp_path, "print('a row of figures', flush=True)", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert "a row of figures" in folder.log(0).read_text()
    assert "a row of figures" not in ended.stdout + ended.stderr
