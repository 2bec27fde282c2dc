"""Promises of curves and cost: means by a slow loop, times by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tclx.launch.watch import RunStatus
from tclx.report.cost import SPEED, read_cost
from tclx.report.history import History, curve, history_of
from tclx.report.results import RunResult
from tclx.runs import RunFolder, RunState
from tclx.spec.difference import differences
from tclx.train.measure import Tally


def history(values: Mapping[int, float | None]) -> History:
    return history_of([{"step": step, "epoch": 0.5, "loss": value} for step, value in values.items()])


def test_a_seed_that_is_behind_counts_where_it_has_been() -> None:
    found = curve([history({1: 2.0, 2: 4.0, 3: 6.0}), history({1: 4.0})], "loss")
    assert found is not None
    assert (found.steps, found.mean, found.low, found.high) == ([1, 2, 3], [3.0, 4.0, 6.0], [2.0, 4.0, 6.0], [4.0, 4.0, 6.0])


def test_long_histories_are_averaged_in_neighbours_for_each_run_by_itself() -> None:
    runs = [{step: float(step * scale) for step in range(1, 1001)} for scale in (1, 3)]
    found = curve([history(run) for run in runs], "loss", max_points=100)
    assert found is not None
    assert len(found.steps) == 100
    assert found.rows_per_point == 10
    for index, last in enumerate(found.steps):
        low, high = (statistics.fmean(run[step] for step in range(last - 9, last + 1)) for run in runs)
        assert (found.low[index], found.high[index]) == pytest.approx((low, high))
        assert found.mean[index] == pytest.approx((low + high) / 2)


def test_a_metric_that_nobody_logged_has_no_curve() -> None:
    assert curve([history({1: None})], "loss") is None
    assert curve([history({1: 1.0})], "other") is None


def run_with(tmp_path: Path, events: list[dict[str, Any]], *, last_sign: float, **environment: Any) -> RunResult:
    folder = RunFolder(tmp_path)
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 9')
    folder.write_json(folder.environment, environment)
    state = RunState("finished", step=10, total_steps=10, updated_at=last_sign)
    folder.write_json(folder.state, asdict(state))
    return RunResult("run", tmp_path, "run", None, 0, state, "", {}, RunStatus(folder, "finished", 10, 10))


def test_time_is_counted_while_something_trains_and_not_in_queues(tmp_path: Path) -> None:
    events = [
        {"time": 0.0, "event": "submitted"},
        {"time": 100.0, "event": "started"},
        {"time": 150.0, "event": "saved", "step": 5},
        {"time": 5000.0, "event": "submitted"},
        {"time": 7000.0, "event": "resumed", "step": 5},
        {"time": 7060.0, "event": "saved", "step": 10},
    ]
    run = run_with(tmp_path, events, last_sign=7070.0, world_size=4, gpu="A100")
    rows = [{"step": step, SPEED: speed} for step, speed in ((1, 5.0), (2, 100.0), (3, 120.0), (4, 110.0))]
    cost = read_cost(RunFolder(run.folder), history_of(rows))
    assert cost.wall_seconds == 50 + 70
    assert cost.images_per_second == 110.0
    assert cost.num_attempts == 2


def test_the_first_row_of_each_attempt_does_not_count_as_throughput(tmp_path: Path) -> None:
    events = [{"time": 0.0, "event": "started"}, {"time": 9.0, "event": "resumed", "step": 3}]
    run = run_with(tmp_path, events, last_sign=20.0, world_size=1, gpu="A100")
    speeds = [(1, 1.0), (2, 100.0), (3, 104.0), (4, 2.0), (5, 108.0)]
    rows = [{"step": step, SPEED: speed, "speed/share_waiting_for_data": 1 / speed} for step, speed in speeds]
    cost = read_cost(RunFolder(run.folder), history_of(rows))
    assert cost.images_per_second == statistics.median([100.0, 104.0, 108.0])
    assert cost.share_waiting == 1 / 104.0
    assert read_cost(RunFolder(run.folder), history_of(rows[:1])).images_per_second == 1.0


@pytest.mark.parametrize(("gpu", "name"), [("A100", "GPU-hours"), (None, "CPU-hours")])
def test_hours_are_training_time_times_processes_and_called_after_the_processor(
    tmp_path: Path, gpu: str | None, name: str
) -> None:
    run = run_with(tmp_path, [{"time": 1.0, "event": "started"}], last_sign=3.0, world_size=4, gpu=gpu, cpu="x86_64")
    folder = RunFolder(run.folder)
    rows = [{"step": step, SPEED: speed} for step, speed in ((1, 10.0), (4, 20.0))]
    assert read_cost(RunFolder(run.folder), history_of(rows)).process_hours is None  # without its plan
    folder.write_json(folder.plan, {"global_batch_size": 40, "world_size": 4})
    cost = read_cost(RunFolder(run.folder), history_of(rows))
    assert cost.process_hours == pytest.approx((1 * 40 / 10 + 3 * 40 / 20) * 4 / 3600)
    assert cost.hours_name == name


def test_peak_memory_is_what_a_run_logs(tmp_path: Path) -> None:
    run = run_with(tmp_path, [{"time": 1.0, "event": "started"}], last_sign=3.0, world_size=1, gpu=None, cpu="x86_64")
    tally = Tally(num_bad_images=0, num_bad_in_epoch=0, num_images=8, seconds=1.0)
    logged = tally.speed(torch.device("cpu"))
    peak = read_cost(RunFolder(run.folder), history_of([{"step": 1, **logged}])).peak_memory_gib
    assert peak == next(value for name, value in logged.items() if "memory" in name) > 0
    assert read_cost(RunFolder(run.folder), history_of([{"step": 1}])).peak_memory_gib is None


def test_specs_differ_in_their_deepest_keys() -> None:
    one = {"name": "a", "seed": 0, "optim": {"rate": 1e-3, "betas": [0.9, 0.999]}, "imc": {"weight": 1.0, "temperature": None}}
    two = {"name": "b", "seed": 1, "optim": {"rate": 1e-4, "betas": [0.9, 0.999]}, "imc": None, "extra": True}
    found = {difference.key: difference.values for difference in differences([one, two])}
    assert found == {"optim.rate": ("0.001", "0.0001"), "imc": ("{weight: 1.0}", "null"), "extra": ("-", "true")}
