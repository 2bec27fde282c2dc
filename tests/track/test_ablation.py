"""Promise: an experiment trained without a network and killed again and again is on W&B afterwards as it is here."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tclx.runs import RunFolder
from tests.conftest import PROJECT
from tests.track.wandb.test_upload import expected, plain, received
from tests.track.wandb_file import read_history
from tests.track.wandb_server import WandbServer

ABLATION = PROJECT / "experiments" / "ablation" / "scenes.yaml"
KILLS = 3
STEPS = 40
SHORT = {
    "training.steps": STEPS,
    "training.checkpoints.every_steps": 5,
    "evaluation.every_steps": 10,
    "tracking.log_every_steps": 1,
    "tracking.wandb": "{project: tests, mode: offline}",
}


def start(*words: str | Path, runs_dir: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tclx.cli", *map(str, words)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "TCLX_RUNS": str(runs_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_in_the_middle(process: subprocess.Popen[str], runs_dir: Path, chance: random.Random) -> bool:
    """SIGKILL whatever trains, some time after it has saved; returns whether there was anything before the command ended."""
    wanted = chance.randrange(8, 35)
    while process.poll() is None:
        time.sleep(0.02)
        for worker in psutil.Process(process.pid).children(recursive=True):
            folder = next((path for path in runs_dir.glob("scenes-*") if str(path) in worker_of(worker)), None)
            if folder is not None and wanted <= num_rows(folder) < STEPS:
                worker.kill()
                return True
    return False


def worker_of(process: psutil.Process) -> list[str]:
    """The command line of a training process; nothing of any other."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return []
    return words if "tclx.worker" in words else []


def num_rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.faults
def test_an_ablation_that_is_killed_offline_is_on_wandb_as_it_is_here(tmp_path: Path, server: WandbServer) -> None:
    environment = server.environment
    command = ["run", ABLATION, *(word for key, value in SHORT.items() for word in ("--set", f"{key}={value}"))]
    chance, killed = random.Random(0), 0
    for _ in range(KILLS + 1):
        process = start(*command, runs_dir=tmp_path, environment=environment)
        killed += killed < KILLS and kill_in_the_middle(process, tmp_path, chance)
        process.communicate()
        if process.returncode == 0:
            break
    assert (killed, process.returncode) == (KILLS, 0)
    folders = [RunFolder(path) for path in sorted(tmp_path.glob("scenes-*"))]
    assert len(folders) == 12
    for folder in folders:
        (file,) = folder.path.glob("wandb/offline-run-*/*.wandb")
        assert [plain(row) for row in read_history(file)] == expected(folder)
    assert server.requests == []

    synced = start("sync", "--json", runs_dir=tmp_path, environment=environment)
    synced.communicate()
    assert synced.returncode == 0
    there = {run.facts["displayName"]: run for run in server.runs.values()}
    assert there.keys() == {folder.run_id for folder in folders}
    for folder in folders:
        steps = [row["trainer/step"] for row in there[folder.run_id].rows if "loss/total" in row]
        assert steps == list(range(1, STEPS + 1))
        assert received(there[folder.run_id]) == expected(folder)
        assert (there[folder.run_id].facts["groupName"], there[folder.run_id].exit_code) == ("scenes-ablation", 0)
    print(f"{len(folders)} runs, {killed} kills, {sum(len(run.rows) for run in there.values())} rows")
