"""What runs cost is asked of a process that may take only so much, and compared with the memory that is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import MachineError
from tclx.launch import costs
from tclx.launch.costs import GIB, Estimate, estimate_costs, refuse_what_does_not_fit
from tclx.launch.local import slots
from tclx.launch.order import PlannedRun, plan_runs
from tclx.launch.slurm import commands as slurm
from tclx.system import memory
from tests.launch.toy import write_spec


@pytest.fixture
def toy(tmp_path: Path) -> list[PlannedRun]:
    """One run with two seeds."""
    return plan_runs([write_spec(tmp_path, seeds=[0, 1])], runs_dir=tmp_path)


def with_launch(run: PlannedRun, tmp_path: Path, **launch: Any) -> PlannedRun:
    return plan_runs([write_spec(tmp_path, launch=launch)], runs_dir=tmp_path)[0]


def test_the_estimate_is_the_models(toy: list[PlannedRun]) -> None:
    from tclx.train.cost import estimate_cost

    first, second = estimate_costs(toy)
    vocab_size = toy[0].spec.data.tokenizer.vocab_size  # type: ignore[union-attr]
    assert first.cost is not None
    found = dict(first.cost)
    assert found.pop("matrix_gflops") > 1
    assert found.pop("device") == "cpu"
    assert found == asdict(estimate_cost(toy[0].spec, toy[0].plan, vocab_size=vocab_size, on_cpu=True))
    assert second == first


def test_runs_that_differ_in_their_seed_are_asked_about_once(toy: list[PlannedRun]) -> None:
    assert toy[0].plan.run_id != toy[1].plan.run_id
    assert costs._question(toy[0]) == costs._question(toy[1])
    assert costs.sections_of(toy[0]) == costs.sections_of(toy[1])


def test_variants_are_asked_about_each(tmp_path: Path) -> None:
    variants = {"a": {}, "b": {"training": {"batch_size_per_gpu": 16}}}
    first, second = plan_runs([write_spec(tmp_path, variants=variants)], runs_dir=tmp_path)
    assert costs._question(first) != costs._question(second)
    assert costs.sections_of(first) != costs.sections_of(second)


def test_an_estimate_that_takes_too_much_memory_is_ended_and_says_so(toy: list[PlannedRun]) -> None:
    assert estimate_costs(toy, max_bytes=GIB // 16) == [Estimate(None, "the estimate took more than 0.062 GiB of memory")] * 2


def test_an_estimate_that_takes_too_long_is_ended_and_says_so(toy: list[PlannedRun]) -> None:
    assert estimate_costs(toy, max_seconds=0.2) == [Estimate(None, "the estimate took more than 0.2 s")] * 2


def test_a_bug_in_the_estimate_keeps_its_traceback(toy: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_question", lambda run, elsewhere: '{"plan": {}}')
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: 'spec'"):
        estimate_costs(toy)


# -------------------------------------------------------------------------------------------------------------- what there is


def estimated(*, fixed: float, peak: float) -> Estimate:
    return Estimate({"checkpoint_gib": fixed, "peak_memory_gib": peak, "device": "cpu"})


def test_weights_beyond_the_machines_memory_are_refused_and_activations_remarked_on(toy: list[PlannedRun]) -> None:
    has = memory().total / GIB
    assert refuse_what_does_not_fit(toy[0], estimated(fixed=has / 2, peak=has / 2)) == []
    (remark,) = refuse_what_does_not_fit(toy[0], estimated(fixed=has / 2, peak=has * 1.1))
    assert "(estimated), and this machine has for each process" in remark.message
    with pytest.raises(
        MachineError, match=r"^model: weights, the optimizer's moments and queues take .* GiB, and this machine has"
    ):
        refuse_what_does_not_fit(toy[0], estimated(fixed=has * 1.1, peak=has * 2))


def test_a_queue_that_fills_the_memory_is_named(toy: list[PlannedRun]) -> None:
    model = toy[0].spec.model.model_copy(update={"queue_size": 100_000_000, "embed_dim": 4096})
    run = toy[0]._replace(spec=toy[0].spec.model_copy(update={"model": model}))
    with pytest.raises(MachineError, match=r"^model\.queue_size: "):
        refuse_what_does_not_fit(run, estimated(fixed=3100.0, peak=3200.0))


def test_where_memory_is_short_the_copy_that_is_written_in_the_background_is_named(
    toy: list[PlannedRun], tmp_path: Path
) -> None:
    run = with_launch(toy[0], tmp_path, backend="slurm", gpus_per_node=0, memory_gb=4)
    (remark,) = refuse_what_does_not_fit(run, estimated(fixed=1.9, peak=4.2))
    assert remark.hint is not None
    assert remark.hint.endswith("or training.checkpoints.in_background: false")
    training = run.spec.training
    waiting = training.model_copy(update={"checkpoints": training.checkpoints.model_copy(update={"in_background": False})})
    run = run._replace(spec=run.spec.model_copy(update={"training": waiting}))
    (remark,) = refuse_what_does_not_fit(run, estimated(fixed=1.9, peak=4.2))
    assert "background" not in str(remark)


def test_processes_on_one_machine_share_its_memory(toy: list[PlannedRun], tmp_path: Path) -> None:
    run = with_launch(toy[0], tmp_path, num_processes=2)
    with pytest.raises(MachineError):
        refuse_what_does_not_fit(run, estimated(fixed=memory().total / GIB * 0.6, peak=1.0))


def test_a_job_without_gpus_has_what_it_asks_for(toy: list[PlannedRun], tmp_path: Path) -> None:
    run = with_launch(toy[0], tmp_path, backend="slurm", gpus_per_node=0, tasks_per_node=2, memory_gb=8)
    assert refuse_what_does_not_fit(run, estimated(fixed=3.9, peak=3.9)) == []
    with pytest.raises(MachineError, match=r"launch\.memory_gb gives each process 4 GiB"):
        refuse_what_does_not_fit(run, estimated(fixed=4.1, peak=4.1))


def test_the_memory_of_a_jobs_gpu_is_not_known_here(toy: list[PlannedRun], tmp_path: Path) -> None:
    run = with_launch(toy[0], tmp_path, backend="slurm")
    assert refuse_what_does_not_fit(run, estimated(fixed=1e6, peak=1e6)) == []


def stand_in(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the cluster or of the driver, which this machine lacks."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_partitions_largest_node_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "sinfo", "[ \"$3\" = --partition=big ] && printf '128000\\n512000+\\n' || exit 1", monkeypatch)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert slurm.node_memory_gib("big") == 500
    assert slurm.node_memory_gib("other") is None


def test_more_memory_than_any_node_has_is_refused(
    toy: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_launch(toy[0], tmp_path, backend="slurm", memory_gb=600)
    stand_in(tmp_path, "sinfo", "echo 512000", monkeypatch)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    with pytest.raises(MachineError, match=r"^launch\.memory_gb: 600 GB, and the partition's largest node has 500 GiB"):
        refuse_what_does_not_fit(run, estimated(fixed=1.0, peak=1.0))


def test_the_memory_of_this_machines_gpus_is_the_drivers_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "nvidia-smi", "printf '81920, NVIDIA A100-SXM4-80GB\\n40960, NVIDIA A100-PCIE-40GB\\n'", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert slots.listed_gpus() == [("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA A100-PCIE-40GB", 40)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.listed_gpus() == []


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    training = {"steps": 2, "batch_size_per_gpu": 8, "device": "cuda"}
    (run,) = plan_runs([write_spec(tmp_path, training=training)], runs_dir=tmp_path)
    with pytest.raises(MachineError, match=r"^training\.device: cuda was asked for, and this machine has no GPU"):
        slots.check_fits(run)
