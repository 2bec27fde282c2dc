"""A pre-training and the tasks that start from it, by one command that is stopped again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import Interrupted
from tclx.runs import RunFolder
from tests.launch.toy import SPEC, write_spec

TASKS = ("vqa", "entailment")
PATIENCE = 300.0


def task_spec(folder: Path, task: str) -> Path:
    data: dict[str, Any] = {**SPEC["data"], "max_caption_tokens": 24}
    for split, num_images in (("train", 32), ("val", 8), ("test", 8)):
        data[split] = {"source": "scenes", "split": split, "num_images": num_images, "picture_size": 16, "form": task}
    changes = {"init": {"experiment": "pre.yaml"}, "task": {"name": task}, "objectives": {}, "data": data}
    return write_spec(folder, task, **changes, training=LENGTH, evaluation={task: {}, "at_end": "test"})


LENGTH = {"steps": 200, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 50}}


@pytest.mark.faults
def test_each_stage_of_a_chain_is_stopped_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre", training=LENGTH)
    specs = [str(task_spec(tmp_path, task)) for task in TASKS]
    command = [sys.executable, "-m", "tclx.cli", "run", *specs, "--runs-dir", str(tmp_path / "runs")]
    stopped: list[str] = []
    codes = []
    for _ in range(4):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            for path in (tmp_path / "runs").glob("*/state.json"):
                folder = RunFolder(path.parent)
                state = folder.read_state()
                trains = state is not None and state.status == "running" and 0 < state.step < 200
                if trains and folder.run_id not in stopped:
                    stopped.append(folder.run_id)
                    process.send_signal(signal.SIGTERM)
                    process.wait(PATIENCE)
                    break
            time.sleep(0.01)
        codes.append(process.wait(1))
    assert [name.partition("-")[0] for name in stopped] == ["pre", *TASKS]
    assert codes == [Interrupted.exit_code] * 3 + [0]
    for name in stopped:
        state = RunFolder(tmp_path / "runs" / name).read_state()
        assert state is not None
        assert state.status == "finished"
    for name, metric in zip(stopped, ("retrieval/test/r_mean", "vqa/test/accuracy", "entailment/test/accuracy"), strict=True):
        assert metric in RunFolder(tmp_path / "runs" / name).read_evaluations()["test"].metrics
