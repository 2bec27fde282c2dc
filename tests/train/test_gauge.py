"""What the machine was busy with is in every row, and a GPU that says nothing stops nobody."""

from __future__ import annotations

import os
import time

import psutil
import pytest
import torch

from tclx.metrics import CPU_USE, GPU_MEMORY_USE, GPU_POWER, GPU_USE, MEMORY_USE
from tclx.system import num_cpus
from tclx.train.gauge import Gauge


def test_the_cores_that_the_run_may_use_are_read_since_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([[0.0, 0.0, 0.0, 0.0], [10.0, 90.0, 50.0, 0.0]])
    monkeypatch.setattr(psutil, "cpu_percent", lambda percpu: next(read))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 2}, raising=False)
    row = Gauge(torch.device("cpu"), pytest.fail).read()
    assert row.keys() == {CPU_USE, MEMORY_USE}
    assert row[CPU_USE] == 70.0
    assert 0 < row[MEMORY_USE] < 100


def test_a_core_that_computes_is_seen_to() -> None:
    gauge, until = Gauge(torch.device("cpu"), pytest.fail), time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    assert gauge.read()[CPU_USE] > 80 / num_cpus()


def test_the_gpu_is_asked_through_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (25, 100))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _device: 40)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _device: 300_500)
    row = Gauge(torch.device("cuda"), pytest.fail).read()
    assert (row[GPU_USE], row[GPU_MEMORY_USE], row[GPU_POWER]) == (40.0, 75.0, 300.5)


def test_a_driver_that_says_nothing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(_device: torch.device) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (25, 100))
    monkeypatch.setattr(torch.cuda, "utilization", not_supported)
    said: list[str] = []
    gauge = Gauge(torch.device("cuda"), said.append)
    assert [gauge.read().keys() for _ in range(2)] == [{CPU_USE, MEMORY_USE}] * 2
    assert said == ["the driver does not say how busy the GPU is, so the run does not record it: Not Supported"]
