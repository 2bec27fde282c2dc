"""Promises of `tclx.data.loading`: what loader processes do is waited for, named when it fails, and ended with the stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from tclx.data import loading as module
from tclx.data.dataset import train_batches
from tclx.data.loading import IGNORED_BY_WORKERS, worker_death
from tclx.data.tokenizer import CaptionTokenizer, train_wordpiece
from tclx.errors import MachineError, StandStill
from tests.data.small import experiment


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return train_wordpiece(["a"], vocab_size=64)


def test_workers_ignore_the_signals_that_stop_a_run(tokenizer: CaptionTokenizer) -> None:
    before = _children()
    batches = train_batches(experiment(data={"num_workers": 2}), tokenizer=tokenizer)
    list(islice(batches, 2))  # they take turns: one batch of each, so both have begun to ignore signals
    for worker in _children() - before:
        for number in IGNORED_BY_WORKERS:
            os.kill(worker, number)
    assert len(list(islice(batches, 20))) == 20
    batches.close()  # type: ignore[attr-defined]


def test_a_dead_worker_is_a_machine_error(tokenizer: CaptionTokenizer) -> None:
    before = _children()  # of other tests
    batches = train_batches(experiment(data={"num_workers": 1}), tokenizer=tokenizer)
    next(batches)
    (worker,) = _children() - before
    os.kill(worker, signal.SIGKILL)
    # torch raises from its SIGCHLD handler, hence wherever this process is just then.
    with pytest.raises((MachineError, RuntimeError)) as caught:
        list(islice(batches, 100))
    error = caught.value
    assert isinstance(error if isinstance(error, MachineError) else worker_death(error), MachineError)


def test_other_runtime_errors_are_not_taken_for_dead_workers() -> None:
    assert worker_death(RuntimeError("CUDA error: out of memory")) is None


def test_a_stream_that_nobody_closed_does_not_keep_its_process_from_ending() -> None:
    code = (
        "from tests.data.small import experiment; from tclx.data.dataset import *\n"
        "spec = experiment(data={'num_workers': 2})\n"
        "tokenizer = __import__('tclx.data.tokenizer', fromlist=['x']).train_wordpiece(['a'], vocab_size=64)\n"
        "streams = [train_batches(spec, tokenizer=tokenizer) for _ in range(2)]; next(streams[0]); kept = streams"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=60)


def _children() -> set[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not list child processes in /proc")
    return {
        int(pid) for pid in children.read_text().split() if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()
    }


class Script(Dataset[Any]):
    """Items that a loader process makes by calling them there."""

    def __init__(self, *items: Callable[[], Any]) -> None:
        self._items = items

    def __getitem__(self, number: int) -> Any:
        return self._items[number]()


def streamed(*items: Callable[[], Any]) -> Iterator[Any]:
    """What one loader process sends of them."""
    return module.stream(Script(*items), range(len(items)), num_workers=1)


@dataclass
class Unsendable:
    """An item that cannot be handed over."""

    error: Exception

    def __reduce__(self) -> Any:
        raise self.error


SHM_FULL = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"


@pytest.mark.parametrize("error", [RuntimeError(SHM_FULL), OSError(24, "Too many open files"), OSError(28, "No space left")])
def test_a_batch_that_finds_no_place_on_its_way_ends_the_wait_at_once(error: Exception) -> None:
    stream = streamed(lambda: 1, lambda: Unsendable(error), lambda: 3)
    assert next(stream) == 1
    with pytest.raises(MachineError, match=r"/dev/shm.*--shm-size.*data\.num_workers: 0"):
        next(stream)


def test_a_bug_in_handing_over_is_raised_as_it_is() -> None:
    with pytest.raises(TypeError, match="no such thing"):
        next(streamed(lambda: Unsendable(TypeError("no such thing"))))


@pytest.mark.parametrize("size", ["4k", "128k"])
def test_shared_memory_that_is_full_is_named(size: str) -> None:
    """A real small one, in a mount namespace of its own, too small for the loaders' locks or for a batch."""
    code = (
        "from tests.data.small import experiment; from tclx.data import dataset; from tclx.errors import MachineError\n"
        "spec = experiment(data={'num_workers': 2}, training={'batch_size_per_gpu': 24})\n"
        "tokenizer = __import__('tclx.data.tokenizer', fromlist=['x']).train_wordpiece(['a'], vocab_size=64)\n"
        "dataset.check_shared_memory = lambda spec: None\n"
        "try:\n"
        "    next(dataset.train_batches(spec, tokenizer=tokenizer))\n"
        "except MachineError as error:\n"
        "    print(error)\n"
    )
    own = ["unshare", "--mount", "bash", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "-"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace of its own can be had here")
    done = subprocess.run(
        [*own, sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "data loader processes and training do not reach each other: " in done.stdout, done.stderr
    assert "--shm-size" in done.stdout


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("POLL_SECONDS", 0.25), ("STOPPED_SECONDS", 0.75), ("IDLE_SECONDS", 2.0)):
        monkeypatch.setattr(module, name, seconds)


def stop_yourself() -> int:
    time.sleep(0.5)  # a thread hands over what was made before
    os.kill(os.getpid(), signal.SIGSTOP)
    return 2


def test_a_stopped_loader_ends_the_wait_and_is_named(short_patience: None) -> None:
    before = _children()
    stream = streamed(lambda: 1, stop_yourself)
    assert next(stream) == 1
    (worker,) = _children() - before
    with pytest.raises(StandStill, match=rf"no data loader process does anything: process {worker} is stopped"):
        next(stream)
    assert worker not in _children()


def test_a_loader_that_waits_for_ever_ends_the_wait(short_patience: None) -> None:
    """As for an image on a file system that does not answer."""
    with pytest.raises(StandStill, match="file system with the images does not answer"):
        next(streamed(lambda: time.sleep(60)))


def burn_two_seconds() -> int:
    began = time.process_time()
    while time.process_time() - began < 2:
        pass
    return 1


def test_a_slow_loader_that_works_is_waited_for(short_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 1.0)
    assert next(streamed(burn_two_seconds)) == 1


def test_a_stopped_loader_does_not_keep_a_stream_from_being_closed() -> None:
    before = _children()
    stream = streamed(lambda: 1, stop_yourself)
    assert next(stream) == 1
    (worker,) = _children() - before
    began = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30
    assert worker not in _children()
