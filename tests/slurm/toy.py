"""Runs on the real cluster: small specs, the tclx command, and means to wait for what SLURM does in its own time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tclx.launch.watch import RunStatus, watch_runs
from tclx.runs import RunFolder
from tests.launch.toy import SPEC, write_spec

REPEATED = pytest.mark.parametrize("repeat", range(int(os.environ.get("TCLX_REPEATS", "1"))))
"""Once, or as often as the environment says: some faults are a matter of moments."""

PATIENCE = 600.0
"""Seconds that the slowest machine may take; a requeued job alone waits for 11."""


def slurm_spec(
    folder: Path,
    name: str = "toy",
    *,
    steps: int = 6,
    every_steps: int = 2,
    launch: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """An experiment that runs on the cluster's CPUs; without an evaluation on the way unless `changes` bring one."""
    section = {"backend": "slurm", "gpus_per_node": 0, "cpus_per_task": 1, "time_limit_minutes": 10, "signal_seconds": 30}
    length = {"steps": steps, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": every_steps}}
    evaluation = {**SPEC["evaluation"], "every_steps": steps}
    return write_spec(
        folder,
        name,
        launch=section | (launch or {}),
        training=length | (training or {}),
        **{"evaluation": evaluation, "tracking": {"log_every_steps": 1}, **changes},
    )


def tclx(*arguments: str | Path, runs_dir: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tclx.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TCLX_RUNS": str(runs_dir), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"tclx {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def folders_in(runs_dir: Path) -> list[RunFolder]:
    """The run folders, by name."""
    return [RunFolder(path) for path in sorted(runs_dir.iterdir()) if (path / "spec.json").is_file()]


def only_run(runs_dir: Path) -> RunFolder:
    """The one run that is there."""
    (folder,) = folders_in(runs_dir)
    return folder


def until(condition: Callable[[], bool], *, what: str, seconds: float = PATIENCE) -> None:
    """Wait for it.

    Raises:
        AssertionError: it does not happen.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"within {seconds:.0f} s not {what}")
        time.sleep(0.2)


def status_of(folder: RunFolder) -> RunStatus:
    """What `tclx status` shows."""
    (status,) = watch_runs([folder.path])
    return status


def until_standing(folders: Iterable[RunFolder], *standings: str, seconds: float = PATIENCE) -> None:
    """Wait until each run stands so.

    Raises:
        AssertionError: with what they say instead.
    """
    folders = list(folders)
    try:
        until(lambda: _all_stand(folders, standings), what="so", seconds=seconds)
    except AssertionError as error:
        found = "\n".join(f"{status_of(folder)}\n{logs_of(folder)}" for folder in folders)
        raise AssertionError(f"within {seconds:.0f} s not all {standings}:\n{found}") from error


def _all_stand(folders: Iterable[RunFolder], standings: tuple[str, ...]) -> bool:
    found = [status_of(folder).standing for folder in folders]
    if "failed" in found and "failed" not in standings:
        raise AssertionError("one has failed")
    return all(standing in standings for standing in found)


def logs_of(folder: RunFolder) -> str:
    """Everything that was printed around a run, for a failed test."""
    job = folder.read_job()
    paths = [*sorted((folder.path / "logs").glob("*")), *(sorted(Path(job.folder).glob("*.out")) if job else [])]
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


def until_step(folder: RunFolder, step: int) -> None:
    """Wait until the run has logged a step."""
    until(lambda: status_of_state(folder) >= step, what=f"at step {step}: {logs_of(folder)}")


def status_of_state(folder: RunFolder) -> int:
    state = folder.read_state()
    return state.step if state else 0


def fingerprint(folder: RunFolder) -> dict[str, str]:
    """SHA-256 of the last checkpoint's tensors."""
    last = max(folder.checkpoints.glob("step-*"), key=lambda path: path.name)
    return {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in ("model.safetensors", "optimizer.safetensors")
    } | {"step": last.name}


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of metrics without what depends on time."""
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(("speed/", "memory/"))} for line in lines
    ]


def events(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    """The events of one name."""
    return [
        event for event in map(json.loads, folder.events.read_text(encoding="utf-8").splitlines()) if event["event"] == name
    ]
