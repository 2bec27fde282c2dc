"""What share of a GPU's peak training uses: the plan's operations over the data sheet, whatever is computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tclx.gpus import PEAK_TFLOPS, peak_tflops
from tclx.launch.order import PlannedRun, plan_runs
from tclx.metrics import MFU
from tclx.train.cost import estimate_cost
from tclx.train.utilisation import Utilisation
from tests.launch.toy import SPEC, write_spec

GPU = torch.device("cuda")


def planned(folder: Path, **training: object) -> PlannedRun:
    path = write_spec(folder, training={**SPEC["training"], "device": "auto", **training})
    (run,) = plan_runs([path], runs_dir=folder / "runs")
    return run


def on(card: str, run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> Utilisation:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: card)
    return Utilisation(run.spec, run.plan, GPU, vocab_size=128)


def test_it_is_the_planned_operations_over_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path, precision="bf16")
    flops = estimate_cost(run.spec, run.plan, vocab_size=128).flops_per_step / run.plan.global_batch_size
    found = on("NVIDIA H100 80GB HBM3", run, monkeypatch).read(1e6)
    assert found == {MFU: pytest.approx(100 * 1e6 * flops / 989.4e12)}


def test_several_gpus_have_several_peaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path)
    (path,) = tmp_path.glob("*.yaml")
    (two,) = plan_runs([path], ["launch.num_processes=2"], runs_dir=tmp_path / "runs")
    one_gpu, two_gpus = (on("A100-SXM4-80GB", each, monkeypatch).read(1e5)[MFU] for each in (run, two))
    assert two_gpus == pytest.approx(one_gpu / 2, rel=0.05)


def test_what_is_computed_again_for_want_of_memory_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path)
    again = run._replace(
        spec=run.spec.model_copy(update={"training": run.spec.training.model_copy(update={"activation_checkpointing": True})})
    )
    assert on("H200", run, monkeypatch).read(1e6) == on("H200", again, monkeypatch).read(1e6)


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("mps")])
def test_without_a_data_sheet_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    run = planned(tmp_path)
    assert Utilisation(run.spec, run.plan, device, vocab_size=128).read(1e6) == {}
    assert on("Some GPU of tomorrow", run, monkeypatch).read(1e6) == {}


@pytest.mark.parametrize("card", PEAK_TFLOPS)
def test_a_card_is_found_by_its_own_name_and_half_precision_is_no_slower(card: str) -> None:
    peaks = PEAK_TFLOPS[card]
    assert {precision: peak_tflops(f"NVIDIA {card}", precision) for precision in peaks} == peaks
    assert peaks["fp32"] <= peaks["tf32"] <= peaks["bf16"]
