"""Promises of the local queue: no more at once than there are slots, each run its own GPUs, and nobody has to stay to watch.

The worker is the real one; its training loop is replaced by one that waits for a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tclx.launch.watch import watch_runs
from tclx.runs import RunFolder
from tests import disk
from tests.launch.toy import SPEC, write_spec

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60

STUB = """
import os, sys, time, types

def train(folder, spec, plan):
    from dataclasses import replace
    from tclx.errors import Interrupted
    from tclx.train.heartbeat import heartbeat
    from tclx.train.stopping import stop_request
    runs = folder.path.parent

    def note(word):
        line = f"{time.monotonic()} {word} {folder.run_id} {os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}\\n"
        with (runs.parent / "notes").open("a") as file:
            file.write(line)

    state = folder.read_state()
    with stop_request() as stop, heartbeat(folder, every_seconds=0.1):
        folder.write_state(replace(state, status="running", step=1))
        note("start")
        ends = time.monotonic() + 0.3
        while time.monotonic() < ends or (runs.parent / "wait").exists():
            if stop:
                note("end")
                folder.write_state(replace(state, status="interrupted", step=1, reason="saved at step 1"))
                raise Interrupted("saved at step 1")
            time.sleep(0.02)
        note("end")
        folder.write_state(replace(state, status="finished", step=2))

loop = types.ModuleType("tclx.train.loop")
loop.train = train
sys.modules["tclx.train.loop"] = loop
"""


class Place:
    """A folder with specs, runs and what the stand-in loop noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs_dir = folder, folder / "runs"
        self.processes: list[subprocess.Popen[str]] = []
        (folder / "stub").mkdir()
        (folder / "stub" / "sitecustomize.py").write_text(STUB)
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{folder / 'stub'}",
            "TMPDIR": str(folder),  # locks of GPUs
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def spec(self, name: str = "toy", *, device: str = "cpu", parallel: int | None = None, **changes: Any) -> Path:
        launch = {"max_parallel_runs": parallel} if parallel else {}
        return write_spec(self.folder, name, launch=launch, training={**SPEC["training"], "device": device}, **changes)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """A tclx command, in a session of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tclx.cli", *map(str, arguments), "--runs-dir", str(self.runs_dir)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def tclx(self, *arguments: str | Path, **environment: str) -> str:
        """A command that succeeds; returns its stdout."""
        output, error = self.start(*arguments, **environment).communicate(timeout=PATIENCE_SECONDS)
        assert self.processes[-1].returncode == 0, error
        return output

    def wait(self) -> None:
        """Let runs train until `go`."""
        (self.folder / "wait").touch()

    def go(self) -> None:
        (self.folder / "wait").unlink()

    def run_until_together(self, count: int, *arguments: str | Path, **environment: str) -> None:
        """A command whose first runs go on until so many train at once."""
        self.wait()
        process = self.start(*arguments, **environment)
        self.until(lambda: self.most_at_once() >= count)
        self.go()
        _, error = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, error

    def notes(self) -> list[list[str]]:
        path = self.folder / "notes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in sorted(lines, key=lambda line: float(line[0]))]

    def most_at_once(self) -> int:
        running = most = 0
        for word, *_ in self.notes():
            running += 1 if word == "start" else -1
            most = max(most, running)
        return most

    def standings(self) -> dict[str, str]:
        found = watch_runs([path.parent for path in sorted(self.runs_dir.glob("*/spec.json"))])
        return {status.folder.run_id.rsplit("-", 1)[0]: status.standing for status in found}

    def folder_of(self, name: str) -> RunFolder:
        (path,) = self.runs_dir.glob(f"{name}-*")
        return RunFolder(path)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < deadline, (self.standings(), self.notes())
            time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    (tmp_path / "wait").unlink(missing_ok=True)
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def check_gpus(place: Place, num_runs: int) -> None:
    """Each run had one GPU to itself."""
    held: Counter[str] = Counter()
    for word, _, gpu in place.notes():
        assert gpu in ("0", "1")
        held[gpu] += 1 if word == "start" else -1
        assert held[gpu] <= 1
    assert len(place.notes()) == 2 * num_runs


def test_six_runs_on_two_gpus_are_two_at_once_each_with_its_own(place: Place) -> None:
    place.run_until_together(2, "run", place.spec(device="auto", seeds=[0, 1, 2, 3, 4, 5]), CUDA_VISIBLE_DEVICES="0,1")
    assert place.most_at_once() == 2
    check_gpus(place, 6)
    assert set(place.standings().values()) == {"finished"}


def test_two_queues_at_once_share_the_gpus(place: Place) -> None:
    one, two = place.spec("one", device="auto", seeds=[0, 1]), place.spec("two", device="auto", seeds=[0, 1])
    queues = [place.start("run", spec, CUDA_VISIBLE_DEVICES="0,1") for spec in (one, two)]
    for queue in queues:
        _, error = queue.communicate(timeout=PATIENCE_SECONDS)
        assert queue.returncode == 0, error
    check_gpus(place, 4)


def test_slots_of_a_cpu_are_as_many_as_the_spec_says(place: Place) -> None:
    place.run_until_together(2, "run", place.spec(parallel=2, seeds=[0, 1, 2]))
    assert place.most_at_once() == 2
    assert {gpus for _, _, *gpus in place.notes() for gpus in gpus} <= {"unset"}


def test_a_chain_waits_though_there_are_slots(place: Place) -> None:
    place.spec("pre", parallel=2)
    place.tclx("run", place.spec("fine", parallel=2, init={"experiment": "pre.yaml"}), place.spec("other", parallel=2))
    order = [(word, run_id.split("-")[0]) for word, run_id, *_ in place.notes()]
    assert order.index(("end", "pre")) < order.index(("start", "fine"))
    assert order.index(("start", "other")) < order.index(("end", "pre"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_reaches_all_that_run_and_starts_no_more(place: Place, number: signal.Signals) -> None:
    place.wait()
    queue = place.start("run", place.spec(parallel=2, seeds=[0, 1, 2]))
    place.until(lambda: len(place.notes()) == 2)
    queue.send_signal(number)
    queue.communicate(timeout=PATIENCE_SECONDS)
    assert queue.returncode == 130
    assert sorted(place.standings().values()) == ["interrupted", "interrupted"]
    assert len(place.notes()) == 4


# ------------------------------------------------------------------------------------------------------------------ detached


def test_a_detached_queue_outlives_its_terminal(place: Place) -> None:
    place.wait()
    command = [sys.executable, "-m", "tclx.cli", "run", place.spec(seeds=[0, 1]), "--detach", "--runs-dir", place.runs_dir]
    words = " ".join(f"'{word}'" for word in command)
    shell = subprocess.Popen(["bash", "-c", f"{words}; sleep 60"], env=place.environment, start_new_session=True)
    try:
        place.until(lambda: place.standings() == {"toy-s0": "running", "toy-s1": "queued"})
    finally:
        os.killpg(shell.pid, signal.SIGHUP)
        shell.wait(timeout=PATIENCE_SECONDS)
    place.go()
    place.until(lambda: place.standings() == {"toy-s0": "finished", "toy-s1": "finished"})
    (listed, _) = json.loads(place.tclx("status", "--json"))
    assert (listed["state"], listed["step"]) == ("finished", 2)


def test_detached_runs_are_cancelled_whether_they_run_or_wait_and_resumed(place: Place) -> None:
    place.wait()
    place.tclx("run", place.spec(seeds=[0, 1, 2]), "--detach")
    place.until(lambda: place.standings().get("toy-s0") == "running")
    assert place.standings() == {"toy-s0": "running", "toy-s1": "queued", "toy-s2": "queued"}

    place.tclx("cancel", place.folder_of("toy-s1").path)
    assert place.standings()["toy-s1"] == "cancelled"
    place.tclx("cancel", place.folder_of("toy-s0").path)
    place.until(lambda: place.standings() == {"toy-s0": "cancelled", "toy-s1": "cancelled", "toy-s2": "running"})

    place.go()
    place.until(lambda: place.standings()["toy-s2"] == "finished")
    assert not [run_id for _, run_id, *_ in place.notes() if run_id.startswith("toy-s1")]

    place.tclx("resume", "toy", "--detach")
    place.until(lambda: set(place.standings().values()) == {"finished"})
    assert Counter(run_id.rsplit("-", 1)[0] for word, run_id, *_ in place.notes() if word == "start") == {
        "toy-s0": 2, "toy-s1": 1, "toy-s2": 1,
    }  # fmt: skip


def test_a_run_that_is_on_its_way_is_not_handed_over_again(place: Place) -> None:
    place.wait()
    spec = place.spec(seeds=[0, 1])
    place.tclx("run", spec, "--detach")
    place.until(lambda: place.standings().get("toy-s0") == "running")
    before = {name: place.folder_of(name).read_job() for name in ("toy-s0", "toy-s1")}
    place.tclx("run", spec, "--detach")
    assert {name: place.folder_of(name).read_job() for name in ("toy-s0", "toy-s1")} == before
    place.go()
    place.until(lambda: set(place.standings().values()) == {"finished"})
    assert len(place.notes()) == 4


def test_a_killed_queue_leaves_runs_that_can_be_resumed(place: Place) -> None:
    place.wait()
    place.tclx("run", place.spec(seeds=[0, 1]), "--detach")
    place.until(lambda: place.standings().get("toy-s0") == "running")
    job = place.folder_of("toy-s1").read_job()
    assert job is not None
    os.kill(int(job.job_id or ""), signal.SIGKILL)
    place.go()  # its worker is a process of its own
    place.until(lambda: place.standings()["toy-s0"] == "finished")
    os.utime(Path(job.folder) / "heartbeat", (0, 0))  # a minute and a half later
    assert place.standings()["toy-s1"] == "created"
    place.tclx("resume", "toy")
    assert set(place.standings().values()) == {"finished"}


# ----------------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    """The runs folder on a file system of its own, where this user may mount one."""
    with disk.small_disk(place.runs_dir, size="1m") as folder:
        yield folder


FILLS = """
    if (runs.parent / "fill").exists():
        from tclx.errors import RunFailed
        import contextlib
        with stop_request(), heartbeat(folder, every_seconds=0.1):
            folder.write_state(replace(state, status="running", step=1, total_steps=9))
            with contextlib.suppress(OSError), open(runs / "filler", "ab", buffering=0) as file:
                while True:
                    file.write(bytes(512))
            while True:
                print("a row", file=sys.stderr, flush=True)
                folder.write_state(replace(state, status="running", step=2, total_steps=9))
"""


def test_a_full_disk_is_told_and_the_queue_outlives_the_run(place: Place, small_disk: Path) -> None:
    """The log is on that disk, too."""
    stub = place.folder / "stub" / "sitecustomize.py"
    stub.write_text(stub.read_text().replace("    with stop_request() as stop", FILLS + "    with stop_request() as stop"))
    (place.folder / "fill").touch()
    place.tclx("run", place.spec(seeds=[0, 1]), "--detach")
    place.until(lambda: place.standings().get("toy-s0") == "failed")
    state = place.folder_of("toy-s0").read_state()
    assert state is not None
    assert "the disk is full" in (state.reason or "")
    (place.folder / "fill").unlink()
    (small_disk / "filler").unlink()
    place.until(lambda: "running" not in place.standings().values() and "queued" not in place.standings().values())
    place.tclx("run", place.spec(seeds=[0, 1]))
    assert set(place.standings().values()) == {"finished"}
