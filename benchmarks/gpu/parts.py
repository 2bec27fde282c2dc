"""What does each check do? Their order and their time are in __main__.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import conditions as asked
from benchmarks.gpu.conditions import PROJECT, Conditions
from benchmarks.gpu.faults import count_syncs, kill_and_resume, run_out_of_memory
from benchmarks.gpu.training import measure_step, profile_step
from tclx.errors import MachineError

GPU_TESTS = ("tests/losses", "tests/train", "tests/test_distributed.py", "tests/test_gpu.py")
"""Where tests marked `gpu` are, those of tests/parity apart."""

REHEARSED = {"tests/parity": ("tests/parity/test_losses.py",), "others": ("tests/losses/test_masked_lm.py",)}
"""What the rehearsal runs in their place."""

MERELY_WARN = ("-W", "default")
"""Here a warning is an error; there the packages are of other versions, which warn of other things."""

_LONGEST_MESSAGE = 2000
"""Characters of a failed test's message that are kept."""


def run_tests(conditions: Conditions, folder: Path, *, which: str) -> dict[str, Any]:
    """The tests of a place that are marked `gpu` (in a rehearsal: a few that are not), with what failed."""
    places = ("tests/parity",) if which == "tests/parity" else GPU_TESTS
    chosen = [*places, "-m", "gpu"] if conditions.device == "cuda" else [*REHEARSED[which], "-m", "not gpu and not faults"]
    report = folder / "tests.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *MERELY_WARN, "--junitxml", report, *chosen],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-_LONGEST_MESSAGE:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    unhappy = [(case, found) for case in cases for kind in ("failure", "error") for found in case.iter(kind)]
    skipped = [(case, found) for case in cases for found in case.iter("skipped")]
    failed = {_name(case): (found.get("message") or "")[:_LONGEST_MESSAGE] for case, found in unhappy}
    return {
        "exit_code": done.returncode,
        "num_tests": len(cases),
        "num_passed": len(cases) - len(failed) - len(skipped),
        "failed": failed,
        "skipped": {_name(case): found.get("message") or "" for case, found in skipped},
        "end_of_output": done.stdout[-_LONGEST_MESSAGE:],
    }


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def _step(conditions: Conditions, _folder: Path, *, precision: asked.Precision, compiled: bool = False) -> dict[str, Any]:
    return measure_step(conditions, precision, compiled=compiled)


def _profile(conditions: Conditions, _folder: Path, *, precision: asked.Precision, compiled: bool = False) -> dict[str, Any]:
    return profile_step(conditions, precision, compiled=compiled)


PARTS: dict[str, Callable[[Conditions, Path], dict[str, Any]]] = {
    "machine": lambda conditions, _folder: asked.describe(conditions),
    "parity": partial(run_tests, which="tests/parity"),
    "tests": partial(run_tests, which="others"),
    "step-fp32": partial(_step, precision="fp32"),
    "step-tf32": partial(_step, precision="tf32"),
    "step-bf16": partial(_step, precision="bf16"),
    "profile-bf16": partial(_profile, precision="bf16"),
    "syncs": count_syncs,
    "out-of-memory": run_out_of_memory,
    "kill-and-resume": kill_and_resume,
    "step-bf16-compiled": partial(_step, precision="bf16", compiled=True),
    "profile-bf16-compiled": partial(_profile, precision="bf16", compiled=True),
}
"""Each takes what was asked for and a folder for its files."""


def run_part(name: str, conditions: Conditions) -> dict[str, Any]:
    """One check and its verdict, "status": done (it holds), failed (it does not), skipped (it cannot be had here)."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        try:
            found = PARTS[name](conditions, Path(folder))
        except MachineError as error:
            return {"status": "skipped", "reason": str(error)}
    return {"status": "done" if holds(name, found) else "failed", **found}


def holds(name: str, found: dict[str, Any]) -> bool:
    """Whether a part found what was promised; measurements promise nothing."""
    if name in ("parity", "tests"):
        return bool(found["exit_code"] == 0 and found["num_passed"] > 0)
    if name == "out-of-memory":
        return bool(found["names_the_key"] and not found["traceback"] and found["status_of_run"] == "failed")
    if name == "kill-and-resume":
        # A GPU adds up in an order of its own: a resumed run may be as far away as a second undisturbed one, not farther.
        allowed = max(4 * found["largest_difference_of_two_undisturbed"], 1e-6)
        near = found["same_bits_as_undisturbed"] or found["largest_difference_of_weights"] <= allowed
        return bool(found["resumed"] and found["status_of_run"] == "finished" and near)
    return True
