"""How long do commands take that people wait for, beside a Python that does nothing?

Each is run in turns with `python -c pass`, in processor time of the process and its children; medians, and the ratio of each
turn's pair. `status` and `results` read a folder of as many finished runs as asked for.

    python -m benchmarks.cli [--runs 100] [--turns 7]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.gpu.conditions import PROJECT, Conditions, describe
from tclx.launch.order import plan_runs
from tclx.launch.prepare import prepare
from tclx.runs import RunFolder, RunState

QUICKSTART = PROJECT / "experiments" / "quickstart.yaml"


def make_runs(folder: Path, number: int) -> None:
    """Finished runs of the quickstart, with the figures of a final evaluation."""
    for run in plan_runs([QUICKSTART], [f"seeds={list(range(number))}"], runs_dir=folder):
        made = RunFolder(folder / run.plan.run_id)
        prepare(run, made)
        made.write_state(RunState("finished", step=run.plan.total_steps, total_steps=run.plan.total_steps))
        made.write_json(made.evaluated("retrieval", "test"), {"metrics": {"retrieval/test/r_mean": 50.0 + run.spec.seed % 7}})


def processor_seconds(command: list[str]) -> float:
    """Of a process and its children; it has to end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    nothing = [sys.executable, "-c", "pass"]
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder), arguments.runs)
        commands = {
            "--help": ["--help"],
            "status": ["status", "--runs-dir", folder],
            "results": ["results", "--runs-dir", folder, "--metric", "r_mean"],
            "plan --quick": ["plan", str(QUICKSTART), "--quick", "--runs-dir", folder],
        }
        found = {}
        for name, words in commands.items():
            command = [sys.executable, "-m", "tclx.cli", *words]
            processor_seconds(command)  # what is compiled and cached once
            pairs = [(processor_seconds(command), processor_seconds(nothing)) for _ in range(arguments.turns)]
            found[f"tclx {name}"] = {
                "milliseconds": round(1000 * median(own for own, _ in pairs)),
                "python -c pass": round(1000 * median(empty for _, empty in pairs)),
                "times that": round(median(own / empty for own, empty in pairs), 1),
            }
    about = describe(Conditions("cpu", "tiny"))
    about.pop("size")
    print(json.dumps({"conditions": about, "runs": arguments.runs, "commands": found}, indent=1))


if __name__ == "__main__":
    main()
