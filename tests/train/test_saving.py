"""Promises of saving in the background: training goes on meanwhile, and what is saved is what it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tclx.errors import MachineError
from tclx.runs import RunFolder
from tclx.track.jsonl import read
from tclx.train import checkpoint
from tclx.train.saving import Background, Snapshot
from tests.train.test_checkpoint import trained
from tests.train.toy import PATIENCE, REFUSED, Outcome, outcome, prepare, run, start_with, toy_spec, wait

IN_FOREGROUND = {"training.checkpoints": {"every_steps": 3, "in_background": False}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that waits for its disk."""
    return outcome(run(prepare(tmp_path_factory.mktemp("whole") / "run", toy_spec(**IN_FOREGROUND))))


def a_disk_that_waits_for_training(device: str) -> None:
    """Checkpoints of steps 3 and 9 are written only when the rows of steps 4 and 10 are."""
    save = checkpoint.save

    def slow(checkpoints: Path, progress: checkpoint.Progress, **content: Any) -> Path:
        metrics, deadline = RunFolder(checkpoints.parent).metrics, time.monotonic() + PATIENCE
        while progress.step in (3, 9) and read(metrics)[-1]["step"] <= progress.step:
            if time.monotonic() > deadline:
                raise TimeoutError("training waits for the disk, and the disk for training")
            time.sleep(0.01)
        return save(checkpoints, progress, **content)

    checkpoint.save = slow


def test_training_goes_on_while_a_checkpoint_is_written_and_nothing_differs(tmp_path: Path, whole: Outcome) -> None:
    folder = prepare(tmp_path / "run", toy_spec())
    assert wait([start_with(a_disk_that_waits_for_training, folder)]) == [0]
    assert outcome(folder) == whole


def a_disk_that_refuses_step_3(device: str) -> None:
    save = checkpoint.save

    def refusing(checkpoints: Path, progress: checkpoint.Progress, **content: Any) -> Path:
        if progress.step == 3:
            raise MachineError("the disk has had enough")
        return save(checkpoints, progress, **content)

    checkpoint.save = refusing


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_its_next_row(tmp_path: Path, whole: Outcome) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**{"tracking.log_every_steps": 1}))
    assert wait([start_with(a_disk_that_refuses_step_3, folder)]) == [REFUSED]
    state = folder.read_state()
    assert state is not None
    assert (state.status, state.reason) == ("failed", "the disk has had enough")
    assert read(folder.metrics)[-1]["step"] <= 5
    assert not [event for event in folder.read_events() if event["event"] == "saved"]
    (folder.path / "stderr0.txt").unlink()
    assert outcome(run(folder)).checksums == whole.checksums  # with another disk the same run goes on


def test_a_copy_stays_what_it_was_and_the_next_one_takes_its_memory(tmp_path: Path) -> None:
    model, optimizer = trained()
    content = checkpoint.content_of(model, optimizer)
    before = checkpoint.save(tmp_path / "a", checkpoint.Progress(2), content=content, run_id="x")
    snapshot = Snapshot()
    copied, until_copied = snapshot.take(content)
    with torch.no_grad():
        for tensor in (*content.weights.values(), *content.moments.values()):
            tensor.add_(1)
    until_copied()
    after = checkpoint.save(tmp_path / "b", checkpoint.Progress(2), content=copied, run_id="x")
    for file in before.iterdir():
        assert file.read_bytes() == (after / file.name).read_bytes()
    again, _ = snapshot.take(content)
    assert [tensor.data_ptr() for tensor in again.weights.values()] == [each.data_ptr() for each in copied.weights.values()]
    assert all(torch.equal(again.moments[name], tensor) for name, tensor in content.moments.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies from a GPU need one")
def test_a_gpus_tensors_are_copied_as_they_stood_when_they_were_asked_for() -> None:
    tensor = torch.full((1 << 24,), 1.0, device="cuda")
    copied, until_copied = Snapshot().take(checkpoint.Content({"weight": tensor}, {}, {}))
    tensor.add_(1)
    until_copied()
    assert copied.weights["weight"].is_pinned()
    assert (copied.weights["weight"] == 1).all()


def test_what_goes_wrong_beside_is_raised_once_by_whoever_asks_next() -> None:
    go_on = threading.Event()

    def fails() -> None:
        go_on.wait(PATIENCE)
        raise MachineError("full")

    with Background() as background:
        background.check()
        background.begin(fails)
        background.check()  # it is still at work
        go_on.set()
        with pytest.raises(MachineError, match="full"):
            background.wait()
        background.wait()
        background.begin(lambda: None)


def begin_and_fail(background: Background, work: Callable[[], None]) -> None:
    background.begin(work)
    raise ValueError("own")


def test_leaving_waits_and_an_error_on_the_way_counts_for_more() -> None:
    done: list[str] = []

    def late(word: str, error: Exception | None = None) -> None:
        time.sleep(0.05)
        done.append(word)
        if error is not None:
            raise error

    with Background() as background:
        background.begin(lambda: late("first"))
    assert done == ["first"]
    with pytest.raises(MachineError, match="full"), Background() as background:
        background.begin(lambda: late("second", MachineError("full")))
    with pytest.raises(ValueError, match="own"), Background() as background:
        begin_and_fail(background, lambda: late("third", MachineError("full")))
    assert done == ["first", "second", "third"]
