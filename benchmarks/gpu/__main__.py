"""`just gpu`: run every check on the GPU of this machine and write what it says into one JSON file. See docs/gpu.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIMITS = {
    "machine": 60,
    "parity": 100,
    "tests": 150,
    "step-fp32": 90,
    "step-tf32": 75,
    "step-bf16": 75,
    "profile-bf16": 60,
    "syncs": 60,
    "out-of-memory": 60,
    "kill-and-resume": 90,
    "step-bf16-compiled": 240,
    "profile-bf16-compiled": 120,
}
"""The parts in order of worth, and after how many seconds each is ended. The compiler is last: it takes minutes, and may find
no C compiler there. They are listed here since this process imports no torch, and so holds none of the GPU's memory."""

REHEARSAL = 10
"""On a CPU every limit is so many times as long: its cores are few, and others use them."""

SHORTEST_SECONDS = 20
"""A part that has less time than this is not begun."""


def main() -> None:
    options = argparse.ArgumentParser(prog="just gpu", description="Every check that needs a GPU, in under ten minutes.")
    options.add_argument("--out", type=Path, default=PROJECT / "build" / "gpu", help="folder of gpu.json and gpu.log")
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--size", choices=["full", "tiny"], help="tiny rehearses; by default with --device cpu")
    options.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    options.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="PART", help=", ".join(LIMITS))
    options.add_argument("--again", action="store_true", help="repeat what is done already")
    options.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    given = options.parse_args()
    size = given.size or ("full" if given.device == "cuda" else "tiny")
    if given.part:
        from benchmarks.gpu.conditions import Conditions
        from benchmarks.gpu.parts import run_part

        print(json.dumps(run_part(given.part, Conditions(given.device, size))))
        return
    results = run_all(given.only, out=given.out, device=given.device, size=size, minutes=given.minutes, again=given.again)
    sys.exit(0 if all(part["status"] in ("done", "skipped") for part in results["parts"].values()) else 1)


def run_all(names: Sequence[str], *, out: Path, device: str, size: str, minutes: float, again: bool = False) -> dict[str, Any]:
    """Each part in a process of its own, until the time is up; what gpu.json has as done is not repeated.

    Returns:
        The content of gpu.json, which is written anew after every part.
    """
    out.mkdir(parents=True, exist_ok=True)
    place, deadline = out / "gpu.json", time.monotonic() + 60 * minutes
    results: dict[str, Any] = {"device": device, "size": size, "parts": {}}
    if place.exists() and not again:
        found = json.loads(place.read_text(encoding="utf-8"))
        if (found["device"], found["size"]) == (device, size):
            results = found
    for name in names:
        if results["parts"].get(name, {}).get("status") == "done":
            print(f"{name:20} done before", flush=True)
            continue
        part = results["parts"][name] = _begin(name, out=out, device=device, size=size, seconds=deadline - time.monotonic())
        _write(place, results)
        print(f"{name:20} {part['status']:8} {part['seconds']:6.1f} s  {_shown(part)}", flush=True)
    return results


def _begin(name: str, *, out: Path, device: str, size: str, seconds: float) -> dict[str, Any]:
    """Run a part in a process; "status" is done, failed, ended (for its time) or skipped."""
    if seconds < SHORTEST_SECONDS:
        return {"status": "no time", "seconds": 0.0, "reason": "the minutes were used up; the same command goes on here"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", device, "--size", size]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    }
    began = time.monotonic()
    with (out / "gpu.log").open("a", encoding="utf-8") as log:
        print(f"--- {name} on {device}, {time.strftime('%H:%M:%S')}", file=log, flush=True)
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=min(seconds, LIMITS[name] * (1 if device == "cuda" else REHEARSAL)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            process.communicate()
            return {"status": "ended", "seconds": time.monotonic() - began, "reason": "it took longer than it may"}
    took = time.monotonic() - began
    lines = printed.splitlines()
    if process.returncode != 0 or not lines:
        return {"status": "failed", "seconds": took, "reason": f"exit code {process.returncode}; gpu.log has its traceback"}
    return {**json.loads(lines[-1]), "seconds": took}


def _shown(part: dict[str, Any]) -> str:
    """The figures of a part that fit into a line."""
    if "reason" in part and part["status"] != "done":
        return str(part["reason"]).splitlines()[0]
    if "num_passed" in part:
        return f"{part['num_passed']} of {part['num_tests']} passed, {len(part['skipped'])} skipped"
    for batch in part.get("batches", ())[-1:]:
        mfu = f"{batch['mfu']:.1%} MFU" if batch["mfu"] else f"{batch['tflops']:.3g} TFLOP/s"
        return f"{batch['samples_per_second']:.4g} samples/s at batch {batch['batch_size']}, {mfu}"
    known = ("card", "syncs_per_step", "names_the_key", "same_bits_as_undisturbed")
    return ", ".join(f"{name}: {part[name]}" for name in known if name in part)


def _write(place: Path, results: dict[str, Any]) -> None:
    building = place.with_suffix(".tmp")
    building.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    building.replace(place)


if __name__ == "__main__":
    main()
