"""How much slower are training steps while W&B uploads beside them?

One real run on the CPU, one thread, a row every ten steps, online against the tests' server on loopback (an unmodified client).
The uploading processes are stopped (SIGSTOP) and let go in turns, a few seconds each, so that whatever else the machine does
meets both alike: the training process is the same one throughout and has no code of W&B's in its steps. The ratio is of
neighbouring turns' mean step times, and of the CPU time that training took for them, which a busy machine blurs less;
`cpu_share` is what the uploading processes use of one core.

    python -m benchmarks.wandb_overhead [--turns 40] [--steps-per-turn 50]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tclx.track.jsonl import read
from tests.track.wandb_server import WandbServer, wait_for
from tests.train.toy import prepare, toy_spec

STEPS_PER_ROW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="with and without, half each")
    parser.add_argument("--steps-per-turn", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, WandbServer() as server:
        print(json.dumps(measure(Path(folder), server, arguments.turns, arguments.steps_per_turn), indent=1))


def measure(place: Path, server: WandbServer, turns: int, steps_per_turn: int) -> dict[str, Any]:
    """Train, stopping and letting go the upload in turns, and compare."""
    warm_up = 2 * steps_per_turn  # the client starts meanwhile
    num_steps = warm_up + turns * steps_per_turn
    changes = {
        "training": {"steps": num_steps, "batch_size_per_gpu": 16, "device": "cpu", "checkpoints": {"every_steps": num_steps}},
        "tracking": {"log_every_steps": STEPS_PER_ROW, "wandb": {"project": "benchmark"}},
        "evaluation": {},
    }
    folder = prepare(place / "run", toy_spec(**changes))
    log = (place / "printed.txt").open("w")
    environment = {**os.environ, **server.environment, "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen([sys.executable, "-m", "tclx.worker", str(folder.path)], env=environment, stdout=log, stderr=log)
    wait_for(lambda: "file_stream" in server.requests, seconds=120)
    upload = [child for child in psutil.Process(worker.pid).children(recursive=True) if "wandb" in " ".join(child.cmdline())]
    cpu, started = sum(cpu_seconds(process) for process in upload), time.monotonic()
    first_row = num_rows(folder.metrics) + 1
    goes: list[bool] = []  # of every turn from here on
    training = psutil.Process(worker.pid)
    spent: list[float] = []  # CPU seconds of training at the beginning of every turn
    while worker.poll() is None:
        turn = (num_rows(folder.metrics) - first_row) * STEPS_PER_ROW // steps_per_turn
        if turn >= len(goes) and turn < turns:
            goes.append(len(goes) % 2 == 0)
            spent.append(cpu_seconds(training))
            for process in upload:
                process.send_signal(signal.SIGCONT if goes[-1] else signal.SIGSTOP)
            cpu_after, seconds = sum(cpu_seconds(process) for process in upload), time.monotonic() - started
        if len(goes) == turns and turn >= turns:
            break
        time.sleep(0.002)
    for process in upload:
        process.send_signal(signal.SIGCONT)
    worker.wait()
    rows = read(folder.metrics)[first_row:]
    per_turn = steps_per_turn // STEPS_PER_ROW
    step_times = [
        statistics.mean(16 / row["speed/images_per_second"] for row in rows[turn * per_turn : (turn + 1) * per_turn])
        for turn in range(len(goes))
    ]
    cpu_times = [after - before for before, after in pairwise(spent)]
    return {
        "step_time_with_over_without": compared(step_times),
        "training_cpu_time_with_over_without": compared(cpu_times),
        "median_step_milliseconds": round(1000 * statistics.median(step_times), 2),
        "cpu_share": round((cpu_after - cpu) / (seconds / 2), 4),
        "rows_received": len(server.only_run.rows),
        "load_average": os.getloadavg()[0],
    }


def compared(times: Sequence[float]) -> dict[str, Any]:
    """Of turns with and without in alternation."""
    ratios = [times[turn] / times[turn + 1] for turn in range(0, len(times) - 1, 2)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "pairs": len(ratios)}


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def num_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
