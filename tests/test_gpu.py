"""Every part of `just gpu`: on a GPU where there is one, and rehearsed on the CPU at tiny sizes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import page
from benchmarks.gpu.__main__ import LIMITS, run_all
from benchmarks.gpu.conditions import Conditions
from benchmarks.gpu.faults import Syncs
from benchmarks.gpu.pack import THERE, closure, requirements
from benchmarks.gpu.parts import GPU_TESTS, PARTS, holds, run_part
from benchmarks.gpu.training import largest_that_fits
from tclx.gpus import peak_tflops

PROJECT = Path(__file__).resolve().parents[1]
CPU = Conditions("cpu", "tiny")


def conditions(device: torch.device) -> Conditions:
    return Conditions(device.type, "tiny")


def test_every_part_has_its_time_and_there_are_ten_minutes() -> None:
    assert list(PARTS) == list(LIMITS)
    assert max(LIMITS.values()) <= 300


@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize("name", ["step-fp32", "step-bf16"])
def test_a_step_is_timed_at_the_common_batch_and_at_the_largest(name: str) -> None:
    found = run_part(name, CPU)
    assert found["status"] == "done"
    assert [batch["batch_size"] for batch in found["batches"]] == [2, 4]
    for batch in found["batches"]:
        assert batch["samples_per_second"] == pytest.approx(batch["batch_size"] / batch["seconds_per_step"])
        assert batch["tflops"] == pytest.approx(batch["tflop_per_step_estimated"] / batch["seconds_per_step"])
        assert batch["mfu"] is None
        assert all(map(math.isfinite, batch["losses"]))
        assert len(set(batch["losses"])) == len(batch["losses"]) == 5  # it learns: no two steps have the same loss
    flops = [batch["tflop_per_step_estimated"] for batch in found["batches"]]
    assert 1.8 < flops[1] / flops[0] < 2.2


def test_what_this_device_cannot_compute_is_skipped_with_the_reason() -> None:
    found = run_part("step-tf32", CPU)
    assert found["status"] == "skipped"
    assert "training.precision: tf32" in found["reason"]


def test_a_batch_that_runs_out_of_memory_is_told_in_words(device: torch.device) -> None:
    found = run_part("out-of-memory", conditions(device))
    assert found["status"] == "done", found
    assert "lower training.batch_size_per_gpu" in found["reason"]
    assert found["exit_code"] == 3  # of the test's own starter: an error with a message


def test_a_killed_run_goes_on(device: torch.device) -> None:
    found = run_part("kill-and-resume", conditions(device))
    assert found["status"] == "done", found
    assert 0 < found["killed_after_step"] < 12
    if device.type == "cpu":
        assert found["same_bits_as_undisturbed"]
        assert found["largest_difference_of_weights"] == 0


@pytest.mark.usefixtures("numerics")
def test_a_runs_loop_waits_for_the_gpu_a_few_times_a_step(device: torch.device) -> None:
    found = run_part("syncs", conditions(device))
    assert found["status"] == "done"
    assert found["num_steps"] == 24
    # Rows and the first batch wait; the steps between do not (tests/train/test_agreement.py).
    assert (0 < found["syncs_per_step"] < 4) if device.type == "cuda" else found["num_syncs"] == 0


def test_a_synchronising_operation_is_counted_at_the_line_of_tclx_that_led_to_it() -> None:
    """With torch's own warning, raised from inside a loss; other warnings are let through."""

    class Waiting:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def warn(*_: Any, **__: Any) -> None:
                warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)
                raise ZeroDivisionError

            return warn

    from tclx.losses.contrastive import mutual_information_bound

    syncs = Syncs()
    with syncs.counting():
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                mutual_information_bound(torch.zeros(()), Waiting())  # type: ignore[arg-type]
    (place,) = syncs.counts
    assert re.match(r"tclx/losses/contrastive\.py:\d+ mutual_information_bound", place)
    assert syncs.counts[place] == 2
    with pytest.raises(UserWarning, match="another"), syncs.counting():
        warnings.warn("another", UserWarning, stacklevel=1)


@pytest.mark.parametrize("limit", [64, 65, 100, 127, 128, 1000, 4096])
def test_the_largest_batch_is_found_to_an_eighth(limit: int) -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = largest_that_fits(fits, start=64, most=4096)
    assert found <= limit < found + max(1, found // 8) + 1
    assert len(tried) <= 10


def test_parts_run_in_processes_of_their_own_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    found = run_all(["machine"], out=tmp_path, device="cpu", size="tiny", minutes=2)
    machine = found["parts"]["machine"]
    assert machine["status"] == "done", (tmp_path / "gpu.log").read_text()
    assert machine["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    again = run_all(["machine", "syncs"], out=tmp_path, device="cpu", size="tiny", minutes=0)
    assert again["parts"]["machine"] == machine
    assert again["parts"]["syncs"]["status"] == "no time"


def test_the_tests_of_a_place_are_counted(tmp_path: Path) -> None:
    found = PARTS["tests"](CPU, tmp_path)
    assert found["exit_code"] == 0, found
    assert found["num_passed"] == found["num_tests"] > 3
    assert holds("tests", found)
    assert not holds("tests", {**found, "exit_code": 1})
    assert not holds("tests", {**found, "num_passed": 0})


def test_every_test_marked_for_a_gpu_lies_where_the_command_looks() -> None:
    marked = [
        path.relative_to(PROJECT)
        for path in sorted((PROJECT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.gpu\b|\bdevice: torch\.device\b", path.read_text(encoding="utf-8"))
    ]
    assert len(marked) > 5
    for path in marked:
        assert any(path.is_relative_to(place) for place in ("tests/parity", *GPU_TESTS)), path


def test_peaks_are_those_of_the_cards_own_data_sheet() -> None:
    """NVIDIA's data sheets, without sparsity."""
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989.4
    assert peak_tflops("NVIDIA H100 PCIe", "bf16") == 756.0
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "tf32") == 156.0
    assert peak_tflops("NVIDIA L40S", "fp32") == 91.6
    assert peak_tflops("NVIDIA GeForce GT 1030", "fp32") is None
    assert peak_tflops("a100", "fp16") == 312.0  # as SLURM calls it


def test_what_is_carried_leaves_nothing_open_but_what_is_there() -> None:
    """Every requirement of a carried package is carried, too, or taken for granted; nothing carried is large."""
    carried = closure(requirements(), python="3.12")
    assert {"pydantic", "pydantic-core", "ruamel-yaml", "simplejpeg", "sqlalchemy", "pytest"} <= set(carried)
    assert not set(carried) & {*THERE, "wandb", "plotly"}
    assert set(closure([f"{name}=={number}" for name, number in carried.items()], python="3.12")) == set(carried)


def test_the_page_says_what_the_result_files_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.partition(page.BEGIN)[2].partition(page.END)[0] == page.tables(), "just gpu-page"
    assert page.tables().count("bf16, compiled") > 0


@pytest.mark.faults
def test_the_whole_command_is_rehearsed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", tmp_path]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=900)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        name: "skipped" if name == "step-tf32" else "done" for name in LIMITS
    }
