"""What does a sweep cost beside the training? Seconds per trial of next to nothing, through tclx and through Hydra.

- tclx: the smallest experiment (one step, one evaluation on 8 images, one checkpoint) through `tclx sweep`: a run folder, a
  process of its own, evaluation and checkpoint a trial; one worker, journal file.
- Hydra: its Optuna sweeper with its basic launcher, in memory, calling a function that squares a number; then the same where
  that function's module also imports torch, timm and transformers, as one that trains would.
- bookkeeping alone: choose and claim, draw, plan, three reports with the pruner asked, tell; nothing is trained.

Per trial means the median of the times from one trial's end to the next one's; `whole` is the command from start to end. They
take turns, so that a busy machine slows all alike.

    python -m benchmarks.sweep_overhead --hydra HYDRA_VENV/bin/python [--postgres URL] [--trials 20] [--rounds 3]

HYDRA_VENV has hydra-core and hydra-optuna-sweeper (its Optuna is another one than ours); torch is taken from this environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tclx.sweep import trial as trials
from tclx.sweep import worker
from tclx.sweep.begin import create_study
from tclx.sweep.load import load_sweep
from tclx.sweep.stage import Search
from tclx.sweep.study import StudyFolder, open_study
from tests.sweep.toy import write_sweep

HYDRA_FUNCTION = """
import sys, time
import hydra
{imports}

@hydra.main(version_base=None, config_path=None, config_name=None)
def main(config):
    with open({ends!r}, "a") as file:
        file.write(f"{{time.time()}}\\n")
    return float(config.x) ** 2

main()
"""
TRAINING_IMPORTS = "sys.path.append({site!r})\nimport torch, timm, transformers"


class Cost(NamedTuple):
    """Seconds."""

    per_trial: float
    whole: float


def cost_of(command: Sequence[str], folder: Path, ends: Callable[[], list[float]]) -> Cost:
    begun = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    whole = time.monotonic() - begun
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Cost(median(later - earlier for earlier, later in pairwise(sorted(ends()))), whole)


def tclx_sweep(folder: Path, num_trials: int) -> Cost:
    path = write_sweep(
        folder,
        experiment={"training": {"steps": 1, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 1}}},
        num_trials=num_trials,
    )

    def ends() -> list[float]:
        study = StudyFolder.of("toy-sweep", folder / "runs")
        found = open_study(study, study.read_sweep()).trials
        return [trial.datetime_complete.timestamp() for trial in found if trial.datetime_complete is not None]

    run = "from tclx.cli import main; main()"
    return cost_of([sys.executable, "-c", run, "sweep", str(path), "--runs-dir", str(folder / "runs")], folder, ends)


def hydra_sweep(folder: Path, num_trials: int, *, python: str, imports: str) -> Cost:
    times = folder / "ends"
    script = folder / "function.py"
    script.write_text(HYDRA_FUNCTION.format(imports=imports, ends=str(times)))
    options = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={num_trials}", "hydra.sweeper.n_jobs=1"]
    command = [python, str(script), "-m", "+x=interval(0.1,1.0)", *options]
    return cost_of(command, folder, lambda: [float(line) for line in times.read_text().split()])


def bookkeeping(folder: Path, num_trials: int, *, storage: str | None, name: str) -> dict[str, float]:
    """Milliseconds of each part, medians over the trials."""
    path = write_sweep(folder, num_trials=num_trials, storage=storage, name=name, pruner={"name": "median"})
    sweep = load_sweep(path, runs_dir=folder / "runs")
    study_folder = StudyFolder.of(name, folder / "runs")
    create_study(sweep, study_folder)
    study_folder.note_start()
    study = open_study(study_folder, sweep)
    working = trials.Worker(Search(study, sweep, study_folder), lambda line: None, lambda: False)
    spent: dict[str, list[float]] = {"choose and claim": [], "draw and plan": [], "3 reports": [], "tell": []}
    for number in range(num_trials):
        marks = [time.monotonic()]
        found = worker._next([working.stage], study_folder, f"me@{os.uname().nodename}")
        if not isinstance(found, worker.Chosen):
            raise RuntimeError(f"no trial {number}")
        marks.append(time.monotonic())
        trials._planned(found.trial, working)
        marks.append(time.monotonic())
        for count in range(1, 4):
            trials._report(found.trial, [1.0 + number] * count, working)
        marks.append(time.monotonic())
        study.tell(found.trial, 1.0, skip_if_finished=True)
        marks.append(time.monotonic())
        for part, (earlier, later) in zip(spent, pairwise(marks), strict=True):
            spent[part].append(1000 * (later - earlier))
    parts = {part: median(times) for part, times in spent.items()}
    return {**parts, "all": sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hydra", metavar="PYTHON", help="of an environment with Hydra and its Optuna sweeper")
    parser.add_argument("--postgres", metavar="URL", help="an empty database, for the bookkeeping")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    imports = TRAINING_IMPORTS.format(site=sysconfig.get_path("purelib"))
    ways: dict[str, Callable[[Path], Cost]] = {"tclx": lambda folder: tclx_sweep(folder, options.trials)}
    if options.hydra:
        for name, lines in (("hydra", ""), ("hydra with torch", imports)):
            ways[name] = lambda folder, lines=lines: hydra_sweep(folder, options.trials, python=options.hydra, imports=lines)  # type: ignore[misc]
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    books: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                costs[name].append(way(Path(folder)))
        for kind, storage in (("journal", None), ("postgresql", options.postgres)):
            if kind == "journal" or storage:
                with tempfile.TemporaryDirectory() as folder:
                    parts = bookkeeping(Path(folder), options.trials, storage=storage, name=f"books-{number}-{os.getpid()}")
                for part, milliseconds in parts.items():
                    books.setdefault(f"{kind}: {part} (ms)", []).append(round(milliseconds, 1))
        found = {
            name: {"per trial (s)": [round(c.per_trial, 3) for c in all_], "whole (s)": [round(c.whole, 1) for c in all_]}
            for name, all_ in costs.items()
        }
        print(json.dumps({"round": number + 1, **found, **books}, indent=1), flush=True)
    for name in [other for other in costs if other != "tclx"]:
        ratio = median(c.per_trial for c in costs["tclx"]) / median(c.per_trial for c in costs[name])
        print(f"tclx / {name}: {ratio:.2f} per trial, medians of {options.rounds}")


if __name__ == "__main__":
    main()
