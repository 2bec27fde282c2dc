"""The benchmarks of `just bench-step` and `just bench-cli` at their smallest: they end, and compare what is comparable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import PROJECT


def printed(module: str, *arguments: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory begins anew on Linux alone")
def test_a_step_is_compared_with_the_plain_one_of_the_same_losses() -> None:
    found = printed("benchmarks.step", "--size", "quickstart", "--turns", "1")
    (size,) = found["sizes"].values()
    assert size["losses"]["tclx"] == pytest.approx(size["losses"]["plain"], rel=1e-5)
    assert all(seconds > 0 for seconds in size["seconds"].values())
    assert all(0 < gib < 4 for gib in size["memory"]["gib"].values())
    assert found["conditions"]["threads"] == 1


@pytest.mark.slow
def test_commands_are_compared_with_a_python_that_does_nothing() -> None:
    found = printed("benchmarks.cli", "--runs", "2", "--turns", "1")
    assert found["commands"].keys() == {"tclx --help", "tclx status", "tclx results", "tclx plan --quick"}
    assert all(one["times that"] > 1 for one in found["commands"].values())


def test_fusing_is_compared_with_copies() -> None:
    """Which it refuses to do where both do not give the same."""
    arguments = ["-m", "benchmarks.fusing", "--batch", "4", "--width", "64", "--turns", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=PROJECT, capture_output=True, text=True, check=True
    )
    copies, blocks, ratio = ended.stdout.splitlines()
    assert copies.startswith("copies: ")
    assert blocks.startswith("blocks: ")
    memory = re.search(r"memory (\d\.\d+)$", ratio)
    assert memory is not None
    assert 0.5 < float(memory[1]) < 0.95


def test_each_recipe_names_a_benchmark_that_is_there() -> None:
    modules = re.findall(r"python -m (benchmarks\.\w+) ", (PROJECT / "justfile").read_text())
    assert len(modules) >= 6
    for module in modules:
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
