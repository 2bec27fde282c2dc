"""`python -m tests.sweep.light STUDY_FOLDER`: a sweep's real worker, except that its runs train nothing and take a second.

A row a step in metrics.jsonl, as training would write it; taken over, a run goes on behind its last row.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from tclx.launch.order import PlannedRun
from tclx.runs import RunFolder, RunState
from tclx.sweep import trial, worker
from tclx.sweep.claims import Claim
from tclx.track.jsonl import read

STEP_SECONDS = 0.2


def value(learning_rate: float, seed: int) -> float:
    """What a step is worth: a seed is good or bad for all, and a little more for one than for another."""
    return learning_rate * (1 + 0.1 * (seed % 3)) if seed else learning_rate


def train(run: PlannedRun, folder: RunFolder, look: Callable[[], None], claim: Claim, working: trial.Worker) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    done = len(list(read(folder.metrics))) if folder.metrics.exists() else 0
    total = run.plan.total_steps
    for step in range(done + 1, total + 1):
        if working.stopping():
            raise trial.Stopped
        time.sleep(STEP_SECONDS)
        reached = value(run.spec.optim.learning_rate, run.spec.seed)
        row = {"step": step, "loss/total": 1 / step, "retrieval/val/r_mean": step * reached}
        with folder.metrics.open("ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")
        folder.write_state(RunState("running", step=step, total_steps=total))
        look()
    folder.write_state(RunState("finished", step=total, total_steps=total))
    look()  # as the real one does: who was killed before it could report has left that to us


if __name__ == "__main__":
    trial._train = train
    sys.exit(worker.main(sys.argv[1:]))
