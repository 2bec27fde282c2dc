"""What an earlier version began, this one goes on with: runs bit for bit, studies trial by trial.

The earlier version is taken from this repository's history.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tclx.runs import RunFolder

from .launch.toy import write_spec
from .sweep.toy import write_sweep
from .train.toy import outcome

EARLIER = "53ca314"
PROJECT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier version's files."""
    packed = subprocess.run(["git", "archive", EARLIER], cwd=PROJECT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"the history of this clone does not have {EARLIER}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def start(code: Path, *arguments: str | Path, runs_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from tclx.cli import main; main()", *map(str, arguments), "--runs-dir", str(runs_dir)],
        env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
        cwd=runs_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL to the command and everything that it has started, which has sessions of its own."""
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def test_a_run_that_it_began_continues_bit_for_bit(earlier: Path, tmp_path: Path) -> None:
    training = {"steps": 80, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 4}}
    evaluation = {"retrieval": {"top_k": 4, "batch_size": 8}, "during_training": "val", "every_steps": 10, "at_end": "test"}
    spec = write_spec(tmp_path, training=training, evaluation=evaluation, tracking={"log_every_steps": 1})
    finish(start(earlier, "run", spec, runs_dir=tmp_path / "whole"))
    (whole,) = (RunFolder(path.parent) for path in (tmp_path / "whole").glob("*/spec.json"))
    killed = RunFolder(tmp_path / "killed" / whole.path.name)
    process = start(earlier, "run", spec, runs_dir=tmp_path / "killed")
    kill_when(process, lambda: killed.metrics.exists() and len(killed.metrics.read_text().splitlines()) > 25)
    assert (state := killed.read_state()) is not None
    assert state.status == "running"
    finish(start(PROJECT, "run", spec, runs_dir=tmp_path / "killed"))
    before, after = outcome(whole), outcome(killed)
    assert after.checksums == before.checksums
    assert after.rows == before.rows
    assert after.best == before.best
    assert json.loads((whole.evaluation / "test.json").read_text())["metrics"] == after.evaluation["metrics"]
    assert killed.read_evaluations()["test"].metrics == whole.read_evaluations()["test"].metrics


def test_a_study_that_it_began_continues(earlier: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, num_trials=4)
    runs_dir = tmp_path / "runs"
    process = start(earlier, "sweep", sweep, runs_dir=runs_dir)
    kill_when(process, lambda: len(list(runs_dir.rglob("evaluation/examples/*.json"))) > 4)
    finish(start(PROJECT, "sweep", sweep, runs_dir=runs_dir))
    shown = finish(start(PROJECT, "sweep", "status", sweep, "--json", runs_dir=runs_dir))
    assert json.loads(shown)["finished"] == 4
