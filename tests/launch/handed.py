"""Made-up parts for tests of launching: stand-ins for SLURM's commands, run folders without a run in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tclx.launch.order import PlannedRun, plan_runs
from tclx.launch.prepare import hand_over, prepare
from tclx.runs import Job, RunFolder
from tests.launch.toy import write_spec


class Commands:
    """A folder of stand-ins that is all of PATH; a real cluster's commands may be on this machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        for tool in ("cat", "sleep", "wc"):
            (folder / tool).symlink_to(shutil.which(tool, path=os.defpath) or tool)
        for name in ("squeue", "sacct", "scontrol", "sbatch", "scancel", "sinfo"):
            self.refuse(name, "the test did not expect this call", code=99)

    def put(self, name: str, script: str) -> None:
        """A shell script of this name; its arguments are kept in `calls`."""
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.folder}/calls\n{script}\n')
        path.chmod(0o755)

    def say(self, name: str, output: str) -> None:
        """Answers, with the same words each time."""
        (self.folder / f"{name}.answer").write_text(output)
        self.put(name, f"cat {self.folder}/{name}.answer")

    def refuse(self, name: str, words: str, *, code: int = 1) -> None:
        self.put(name, f"echo '{name}: error: {words}' >&2; exit {code}")

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


def planned(folder: Path, name: str = "toy", **changes: Any) -> PlannedRun:
    (run,) = plan_runs([write_spec(folder, name, **changes)], runs_dir=folder / "runs")
    return run


def prepared_run(folder: Path, name: str = "toy", **changes: Any) -> RunFolder:
    """A run's folder, as it is before anything has started."""
    run = planned(folder, name, **changes)
    made = RunFolder(folder / "runs" / run.plan.run_id)
    prepare(run, made)
    return made


def handed_over(folder: RunFolder, *, job_id: str | None = "7", token: str = "abcd", submitted_at: float = 0.0) -> Path:
    """As if it had been submitted; returns the submission's folder."""
    submission = folder.path.parent / ".submissions" / token
    submission.mkdir(parents=True, exist_ok=True)
    (submission / "runs.json").write_text(f'["{folder.path}"]')
    (submission / "name").write_text(f"toy.{token}")
    hand_over(folder, Job(token, "slurm", submitted_at, "login", str(submission), job_id))
    return submission
