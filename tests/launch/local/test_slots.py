"""Promises of slots: as many runs as the GPUs suffice for, and no GPU is two runs' at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tclx.errors import MachineError
from tclx.launch.local.slots import Slot, check_fits, num_parallel, take, visible_gpus
from tclx.launch.order import PlannedRun
from tests.launch.handed import Commands, planned
from tests.launch.toy import SPEC

PROJECT = Path(__file__).resolve().parents[2]
GPU_RUN: dict[str, Any] = {"training": {"steps": 2, "batch_size_per_gpu": 4, "device": "auto"}}


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a queue that really runs on this machine."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")


@pytest.mark.parametrize(
    ("named", "gpus"),
    [("0,1", ("0", "1")), (" 2 , 0 ", ("2", "0")), ("GPU-5f,MIG-8a/1", ("GPU-5f", "MIG-8a/1")), ("", ()), ("-1", ())],
)
def test_the_shell_limits_what_is_handed_out(monkeypatch: pytest.MonkeyPatch, named: str, gpus: tuple[str, ...]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_otherwise_the_driver_is_asked(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ()  # no nvidia-smi
    commands.say("nvidia-smi", "GPU 0: A (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\nGPU 1: A (UUID: GPU-2)\n")
    assert visible_gpus() == ("0", "1")
    commands.refuse("nvidia-smi", "couldn't communicate with the NVIDIA driver", code=9)
    assert visible_gpus() == ()


@pytest.mark.parametrize(
    ("launch", "device", "parallel"),
    [
        ({}, "auto", 4),
        ({"num_processes": 2}, "auto", 2),
        ({"num_processes": 3}, "auto", 1),
        ({"max_parallel_runs": 3}, "auto", 3),
        ({"max_parallel_runs": 9}, "auto", 4),
        ({}, "cpu", 1),
        ({"max_parallel_runs": 9}, "cpu", 9),
    ],
)
def test_how_many_at_once_on_four_gpus(
    tmp_path: Path, four_gpus: None, launch: dict[str, Any], device: str, parallel: int
) -> None:
    run = planned(tmp_path, launch=launch, training={**GPU_RUN["training"], "device": device})
    assert num_parallel([run]) == parallel


def test_of_several_runs_the_most_modest_counts(tmp_path: Path, four_gpus: None) -> None:
    runs = [planned(tmp_path, name, launch={"max_parallel_runs": limit}) for name, limit in (("a", 3), ("b", 2))]
    assert num_parallel(runs) == 2
    assert num_parallel([]) == 1


def test_more_processes_than_gpus_are_refused(tmp_path: Path, four_gpus: None) -> None:
    check_fits(planned(tmp_path, launch={"num_processes": 4}, **GPU_RUN))
    with pytest.raises(MachineError, match=r"launch\.num_processes: 5 processes want a GPU each, and there are 4"):
        check_fits(planned(tmp_path, launch={"num_processes": 5}, **GPU_RUN))
    cpu = {"training": {**GPU_RUN["training"], "device": "cpu"}}
    check_fits(planned(tmp_path, launch={"num_processes": 5}, **cpu))


def test_less_shared_memory_than_the_loaders_need_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    data = {**SPEC["data"], "num_workers": 2}
    with pytest.raises(MachineError, match=r"MiB of shared memory are needed"):
        check_fits(planned(tmp_path, data=data))
    check_fits(planned(tmp_path))  # without loader processes
    there = {"backend": "slurm", "time_limit_minutes": 60}
    check_fits(planned(tmp_path, data=data, launch=there))  # another machine's


Take = Callable[[PlannedRun], tuple[str, ...] | None]


@pytest.fixture
def slots_taken() -> Iterator[list[Slot]]:
    """What the test holds; released at its end."""
    taken: list[Slot] = []
    yield taken
    for slot in taken:
        slot.release()


@pytest.fixture
def gpus_for(slots_taken: list[Slot]) -> Take:
    """Takes a slot and says its GPUs; None where there is none."""

    def gpus_for(run: PlannedRun) -> tuple[str, ...] | None:
        slot = take(run)
        slots_taken.extend([slot] if slot is not None else [])
        return slot.gpus if slot is not None else None

    return gpus_for


def test_a_gpu_is_one_runs_until_it_is_released(
    tmp_path: Path, four_gpus: None, gpus_for: Take, slots_taken: list[Slot]
) -> None:
    pair = planned(tmp_path, launch={"num_processes": 2}, **GPU_RUN)
    assert [gpus_for(pair) for _ in range(3)] == [("0", "1"), ("2", "3"), None]
    slots_taken[0].release()
    assert gpus_for(pair) == ("0", "1")


def test_too_few_free_gpus_are_left_to_others(tmp_path: Path, four_gpus: None, gpus_for: Take) -> None:
    """A run that wants three where one is free must not keep it."""
    three, single = (planned(tmp_path, name, launch={"num_processes": n}, **GPU_RUN) for name, n in (("a", 3), ("b", 1)))
    assert [gpus_for(run) for run in (three, three, single)] == [("0", "1", "2"), None, ("3",)]


def test_a_run_on_the_cpu_needs_no_gpu(tmp_path: Path, four_gpus: None, gpus_for: Take) -> None:
    run = planned(tmp_path)
    assert [gpus_for(run) for _ in range(9)] == [()] * 9


def test_the_gpus_of_a_killed_queue_are_free(tmp_path: Path, four_gpus: None, gpus_for: Take) -> None:
    code = (
        "import sys; from tclx.launch.local import slots; kept = slots._lock('0'); print('taken', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path / "locks")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    run = planned(tmp_path, **GPU_RUN)
    assert gpus_for(run) == ("1",)
    other.kill()
    other.communicate()
    assert gpus_for(run) == ("0",)


def test_runs_that_share_have_a_gpu_together_and_others_wait_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run = planned(tmp_path, **GPU_RUN)
    first, second = take(run, sharing=2), take(run, sharing=2)
    assert first is not None
    assert second is not None
    assert first.gpus == second.gpus == ("0",)
    assert take(run, sharing=2) is None
    first.release()
    assert take(run) is None  # the other share is still held
    second.release()
    alone = take(run)
    assert alone is not None
    assert take(run, sharing=2) is None
    alone.release()
