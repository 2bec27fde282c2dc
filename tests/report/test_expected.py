"""What runs will take, told beforehand: from a run of the same shape where one was measured, by arithmetic elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tclx.launch.costs import Estimate, estimate_costs
from tclx.launch.order import PlannedRun, plan_runs
from tclx.report.cost import SPEED
from tclx.report.expected import ASSUMED_GPU, CPU_SHARE, Expected, expect, total
from tclx.runs import RunFolder, RunState
from tests.launch.toy import SPEC, write_spec

TRAINING = {**SPEC["training"], "steps": 100, "device": "auto", "checkpoints": {"every_steps": 10}}
EVALUATION = {**SPEC["evaluation"], "every_steps": 50}


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def planned(folder: Path, **changes: Any) -> list[PlannedRun]:
    spec = write_spec(folder, **json.loads(json.dumps({"training": TRAINING, "evaluation": EVALUATION, **changes})))
    return plan_runs([spec], runs_dir=folder / "runs")


def estimated(flops: float = 1e9, **more: Any) -> Estimate:
    """A step of 1 GFLOP, a checkpoint of 2 GiB."""
    known = {"flops_per_step": flops, "checkpoint_gib": 2.0, "peak_memory_gib": 3.0, "device": "gpu", "matrix_gflops": 100.0}
    return Estimate({**known, **more})


def only(runs: Sequence[PlannedRun], folder: Path, estimate: Estimate | None = None, **options: Any) -> Expected:
    (found,) = expect(runs, [estimate or estimated()], runs_dir=folder / "runs", **options)
    return found


def measured(
    folder: Path, run_id: str, *, speed: float = 16.0, finished_after: float | None = None, **changes: Any
) -> RunFolder:
    """A run of 10 steps of 8 images, evaluated after the last one and at the end."""
    training = {**TRAINING, "steps": 10, **changes.pop("training", {})}
    (run,) = planned(folder, training=training, evaluation={**EVALUATION, "every_steps": 10}, **changes)
    place = RunFolder(folder / "runs" / run_id)
    place.path.mkdir(parents=True)
    place.write_json(place.spec, run.spec.model_dump(mode="json"))
    place.write_json(place.plan, run.plan.to_json())
    place.write_json(place.environment, {"started_at": 0.0, "world_size": 1, "cpu": "x86_64", "gpu": None, "packages": {}})
    rows = [{"step": 1, SPEED: 1.0}, *({"step": step, SPEED: speed} for step in range(2, 11))]
    place.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished_after is not None:
        place.add_event("started")
        place.write_state(RunState("finished", step=10, total_steps=10))
        state = place.read_json(place.state)
        event = json.loads(place.events.read_text())
        place.write_json(place.state, {**state, "updated_at": event["time"] + finished_after})
    return place


# --------------------------------------------------------------------------------------------------------------- by arithmetic


def test_on_a_cpu_it_is_half_of_what_its_matrix_products_reach(tmp_path: Path) -> None:
    found = only(planned(tmp_path), tmp_path)
    assert found.seconds == pytest.approx(100 * 1e9 / (CPU_SHARE * 100e9))
    assert found.process_hours == pytest.approx(found.seconds / 3600)
    assert (found.hours_name, found.memory_of, found.memory_gib, found.jobs) == ("CPU-hours", "CPU", 3.0, None)
    assert found.basis == "50% of this machine's 100 GFLOP/s, evaluations not counted"


def test_one_that_goes_on_from_another_takes_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "other" / "checkpoints" / "step-00000075").mkdir(parents=True)
    init = {"checkpoint": str(tmp_path / "other"), "resume": True}
    found = only(planned(tmp_path, init=init), tmp_path)
    assert found.seconds == pytest.approx(25 * 1e9 / (CPU_SHARE * 100e9))


def test_on_a_gpu_it_is_a_stated_share_of_the_named_cards_peak(tmp_path: Path) -> None:
    launch = {"backend": "slurm", "gpus_per_node": 2, "num_nodes": 2, "gpu_type": "h100", "time_limit_minutes": 60}
    runs = planned(tmp_path, launch=launch, training={**TRAINING, "precision": "bf16"})
    found = only(runs, tmp_path, estimated(flops=4 * 989.4e12 * 0.2 * 90))  # 90 s a step of four cards
    assert found.seconds == pytest.approx(9000)
    assert found.process_hours == pytest.approx(10)
    assert (found.hours_name, found.jobs) == ("GPU-hours", 3)
    assert found.basis == "20% of an h100's 989.4 TFLOP/s in bf16, evaluations not counted"


@pytest.mark.parametrize(("named", "why"), [({}, "name yours as launch.gpu_type"), ({"gpu_type": "v100"}, "v100 is not known")])
def test_a_card_that_nobody_knows_is_assumed_and_said_to_be(tmp_path: Path, named: dict[str, str], why: str) -> None:
    runs = planned(tmp_path, launch={"backend": "slurm", "gpus_per_node": 1, **named})
    assert f"an {ASSUMED_GPU}'s 19.5 TFLOP/s in fp32 (assumed: {why})" in only(runs, tmp_path).basis


def test_planned_for_another_machine_it_has_gpus_where_the_spec_takes_them(tmp_path: Path) -> None:
    assert only(planned(tmp_path), tmp_path, elsewhere=True).hours_name == "GPU-hours"
    assert only(planned(tmp_path, training={**TRAINING, "device": "cpu"}), tmp_path, elsewhere=True).hours_name == "CPU-hours"


def test_the_disk_holds_the_newest_the_best_and_one_that_is_written(tmp_path: Path) -> None:
    assert only(planned(tmp_path), tmp_path).disk_gib == 2.0 * (2 + 1 + 1)
    few = {**TRAINING, "checkpoints": {"every_steps": 50, "keep_last": 5}}
    assert only(planned(tmp_path, training=few), tmp_path).disk_gib == 2.0 * 2


# ------------------------------------------------------------------------------------------------------------------- measured


def test_a_run_of_the_same_shape_tells_better(tmp_path: Path) -> None:
    measured(
        tmp_path,
        "before",
        name="other",
        seed=9,
        optim={"learning_rate": 5e-3},
        objectives={**SPEC["objectives"], "cma": {"weight": 3.0}},
    )
    found = only(planned(tmp_path), tmp_path)
    assert found.seconds == pytest.approx(100 * 8 / 16)
    assert found.basis == "16 images/s, as before reached on 1 x x86_64, evaluations not counted"


def test_what_it_took_besides_its_steps_counts_by_evaluations(tmp_path: Path) -> None:
    # Its first step took 8 s, nine others half a second each; the two evaluations took the other 20 s.
    measured(tmp_path, "before", finished_after=8 + 4.5 + 20)
    found = only(planned(tmp_path), tmp_path)
    assert found.seconds == pytest.approx(100 * 8 / 16 + 3 * 10)  # at steps 50 and 100, and at the end
    assert found.basis == "16 images/s, as before reached on 1 x x86_64"


@pytest.mark.parametrize(
    "other",
    [
        {"training": {"batch_size_per_gpu": 16}},
        {"training": {"precision": "bf16"}},
        {"objectives": {"cma": {}, "itm": {}}},
        {"model": {**SPEC["model"], "embed_dim": 16}},
    ],
)
def test_a_run_of_another_shape_tells_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    measured(tmp_path, "before", **other)
    assert "before" not in only(planned(tmp_path), tmp_path).basis


def test_the_newest_run_tells_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    for age, (name, speed) in enumerate((("damaged", 1.0), ("new", 32.0), ("old", 64.0))):
        place = measured(tmp_path, name, speed=speed)
        os.utime(place.metrics, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "damaged" / "plan.json").write_text('{"world_size": ')
    (tmp_path / "runs" / "no run").mkdir()
    assert only(planned(tmp_path), tmp_path).basis.startswith("32 images/s, as new reached")


# ------------------------------------------------------------------------------------------------------------------- together


def test_together_they_take_the_sum_as_many_at_a_time_as_there_is_room_for(tmp_path: Path) -> None:
    runs = planned(tmp_path, variants={"a": {}, "b": {"training": {**TRAINING, "steps": 300}}}, launch={"max_parallel_runs": 2})
    expected = expect(runs, [estimated(), estimated()], runs_dir=tmp_path / "runs")
    found = total(runs, expected, repeats=5)
    assert (found.seconds, found.at_once) == (pytest.approx(5 * (2 + 6) / 2), 2)
    assert (found.process_hours, found.disk_gib) == (pytest.approx(5 * 8 / 3600), 5 * 2 * 8.0)
    unknown = [expected[0], expected[1]._replace(seconds=None)]
    assert total(runs, unknown).seconds is None


def test_a_cluster_says_itself_when_it_has_room(tmp_path: Path) -> None:
    runs = planned(tmp_path, launch={"backend": "slurm", "gpus_per_node": 1})
    assert total(runs, expect(runs, [estimated()], runs_dir=tmp_path)).seconds is None


def test_where_nothing_was_estimated_that_is_said(tmp_path: Path) -> None:
    found = only(planned(tmp_path), tmp_path, Estimate(None, "the estimate took more than 2 s"))
    assert (found.seconds, found.disk_gib, found.memory_gib) == (None, None, None)
    assert found.basis.startswith("not known")


def test_the_memory_of_a_process_on_a_cpu_is_what_one_takes(tmp_path: Path) -> None:
    runs = planned(tmp_path, training={**TRAINING, "steps": 3, "batch_size_per_gpu": 32}, optim={"learning_rate": 1e-3})
    (found,) = expect(runs, estimate_costs(runs), runs_dir=tmp_path)
    command = [
        sys.executable,
        "-m",
        "tclx.cli",
        "run",
        "toy.yaml",
        "--runs-dir",
        "measured",
        "--set",
        "tracking.log_every_steps=1",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (metrics,) = tmp_path.glob("measured/*/metrics.jsonl")
    peak = max(row.get("memory/peak_gib", 0.0) for row in map(json.loads, metrics.read_text().splitlines()))
    assert found.memory_gib == pytest.approx(peak, rel=0.15)


def test_a_real_estimate_goes_in(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    (found,) = expect(runs, estimate_costs(runs), runs_dir=tmp_path)
    assert found.seconds is not None
    assert 0 < found.seconds < 60
    assert found.memory_gib is not None
    assert 0.9 < found.memory_gib < 1.2
