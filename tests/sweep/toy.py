"""The smallest sweep that is a whole one, on the toy of tests/launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from ruamel.yaml import YAML

from tclx.sweep import claims
from tclx.sweep.load import load_sweep
from tclx.sweep.parts import Part
from tclx.sweep.searched import Sweep
from tclx.sweep.stage import stages_of
from tclx.sweep.study import StudyFolder
from tclx.sweep.trial import Worker, run_trial
from tclx.sweep.worker import Chosen, _next, _num_trials
from tests.launch.toy import write_spec

EVALUATION = {"retrieval": {"top_k": 4, "batch_size": 8}, "during_training": "val", "every_steps": 1}
TRAINING = {"steps": 4, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 1}}
SWEEP: dict[str, Any] = {
    "name": "toy-sweep",
    "experiment": "toy.yaml",
    "objective": {"metric": "retrieval/val/r_mean", "direction": "maximize"},
    "space": {"optim.learning_rate": {"log_uniform": [1e-5, 1e-1]}},
    "num_trials": 3,
}
PATIENCE = 240.0


def write_sweep(folder: Path, *, experiment: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A sweep file and its experiment; `changes` replace whole keys of the sweep, None takes one away."""
    whole = {"training": TRAINING, "evaluation": EVALUATION, "tracking": {"log_every_steps": 1}, **(experiment or {})}
    write_spec(folder, **whole)
    path = folder / "sweep.yaml"
    content = {key: value for key, value in {**SWEEP, **changes}.items() if value is not None}
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


def load(folder: Path, **changes: Any) -> Sweep:
    """The checked sweep, with runs in `folder / "runs"`."""
    return load_sweep(write_sweep(folder, **changes), runs_dir=folder / "runs")


def part_of(sweep: Sweep, study: optuna.Study, folder: StudyFolder | None = None) -> Part:
    """A search without a confirmation."""
    return Part(folder or StudyFolder(Path()), sweep, study, None)


def work_through(folder: StudyFolder) -> None:
    """The real worker's choices, here: trial after trial until none is left."""
    stages = stages_of(folder, seed=_num_trials(folder))
    name = claims.new_worker()
    with claims.living(folder, name):
        while isinstance(found := _next(stages, folder, name), Chosen):
            run_trial(found.trial, found.claim, Worker(found.stage, lambda line: None, lambda: False))
    assert found is None


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """`tclx sweep` as a process."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tclx.cli import main; main()",
            "sweep",
            str(path),
            "--runs-dir",
            str(path.parent / "runs"),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stdout, stderr


def run(path: Path, *arguments: str) -> tuple[int, str, str]:
    return finish(start(path, *arguments))


def status(path: Path) -> dict[str, Any]:
    """`tclx sweep status --json`."""
    from tclx.sweep.parts import open_parts
    from tclx.sweep.showing import tree_of
    from tclx.sweep.study import find_study

    tree: dict[str, Any] = json.loads(json.dumps(tree_of(open_parts(find_study(str(path), path.parent / "runs")))))
    return tree


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.02)
