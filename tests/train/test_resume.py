"""A run that is killed, stopped, or loses its disk ends as one that never was: the same bits, the same rows."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError
from tclx.runs import RunFolder
from tclx.track.jsonl import read
from tclx.train import checkpoint
from tests import disk
from tests.train.toy import (
    REFUSED,
    STOPPED,
    Outcome,
    kill,
    outcome,
    prepare,
    run,
    start,
    toy_spec,
    wait,
    wait_until,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process that nothing disturbed."""
    return run(prepare(tmp_path_factory.mktemp("whole") / "run", toy_spec()))


@pytest.fixture(scope="module")
def whole(finished: RunFolder) -> Outcome:
    return outcome(finished)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return prepare(tmp_path / "run", toy_spec())


def is_finished(folder: RunFolder) -> bool:
    state = folder.read_state()
    return state is not None and state.status == "finished"


def has_row(folder: RunFolder, step: int) -> bool:
    return folder.metrics.exists() and f'{{"step": {step},' in folder.metrics.read_text()


def is_saving(folder: RunFolder) -> bool:
    return folder.checkpoints.exists() and any(folder.checkpoints.glob(".step-*.tmp"))


def test_it_is_not_vacuous(whole: Outcome) -> None:
    """The rows cover losses and evaluations, and the same spec with another seed ends elsewhere."""
    steps = [row["step"] for row in whole.rows]
    assert steps == [1, 2, 4, 6, 6, 8, 10, 12, 12]
    assert len({row["loss/total"] for row in whole.rows if "loss/total" in row}) == 7
    assert whole.best["metric"] == "retrieval/val/r_mean"
    assert len(whole.evaluation["metrics"]) > 10


def test_killed_again_and_again_at_any_moment(folder: RunFolder, whole: Outcome) -> None:
    """SIGKILL a little later every time, until the run gets through."""
    draw = random.Random(int(os.environ.get("TCLX_SEED", "0")))
    num_kills = 0
    while not is_finished(folder):
        processes = start(folder)
        time.sleep(draw.uniform(0.0, 0.1 + 0.1 * num_kills))
        num_kills += processes[0].is_alive()
        kill(processes)
    assert num_kills >= 2
    assert outcome(folder) == whole


@pytest.mark.parametrize("num_saves", [1, 2, 3])
def test_killed_in_the_middle_of_saving(folder: RunFolder, whole: Outcome, num_saves: int) -> None:
    processes = start(folder)
    wait_until(lambda: len(checkpoint.complete(folder.checkpoints)) >= num_saves - 1 and is_saving(folder), processes)
    kill(processes)
    assert outcome(run(folder)) == whole
    assert not is_saving(folder)  # what the killed save left is swept away


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_asked_to_stop_it_saves_at_the_next_step_and_goes_on_later(
    folder: RunFolder, whole: Outcome, number: signal.Signals
) -> None:
    processes = start(folder)
    wait_until(lambda: has_row(folder, 4), processes)
    os.kill(processes[0].pid or 0, number)
    assert wait(processes) == [STOPPED]
    state = folder.read_state()
    assert state is not None
    assert state.status == "interrupted"
    assert state.reason == f"stopped by {number.name} and saved at step {state.step}"
    assert 4 < state.step < 12
    assert checkpoint.newest(folder.checkpoints) == checkpoint.place(folder.checkpoints, state.step)
    assert outcome(run(folder)) == whole


def test_killed_between_saving_and_evaluating_it_evaluates_later(
    finished: RunFolder, folder: RunFolder, whole: Outcome
) -> None:
    """The state such a kill leaves: a checkpoint of step 6, no evaluation of it, half a row."""
    shutil.copytree(finished.checkpoints / "step-00000006", folder.checkpoints / "step-00000006")
    shutil.copytree(finished.tokenizer, folder.tokenizer)
    rows = [row for row in read(finished.metrics) if row["step"] <= 6 and "loss/total" in row]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "retr')
    assert outcome(run(folder)) == whole


def test_with_its_newest_checkpoints_damaged_it_goes_on_from_an_older_one(
    finished: RunFolder, tmp_path: Path, whole: Outcome
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    for newest in checkpoint.complete(folder.checkpoints)[:2]:
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
    assert outcome(run(folder)) == whole
    events = [json.loads(line)["event"] for line in folder.events.read_text().splitlines()]
    assert events.count("checkpoint_damaged") == 2
    assert "resumed" in events


def test_finished_is_finished(finished: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if not path.name.startswith("stderr")}
    run(finished)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_number_of_loader_processes_changes_nothing(tmp_path: Path, whole: Outcome) -> None:
    assert outcome(run(prepare(tmp_path / "run", toy_spec(**{"data.num_workers": 2})))) == whole


def test_evaluating_and_measuring_do_not_change_what_is_learned(tmp_path: Path, finished: RunFolder) -> None:
    changes = {
        "evaluation.during_training": None,
        "evaluation.every_steps": None,
        "tracking.term_gradient_norms_every_steps": 1,
    }
    folder = run(prepare(tmp_path / "run", toy_spec(**changes)))
    names = ("model.safetensors", "optimizer.safetensors")
    last = [checkpoint.place(each.checkpoints, 12) for each in (folder, finished)]
    assert all((last[0] / name).read_bytes() == (last[1] / name).read_bytes() for name in names)


OTHER_WAYS = {
    "bf16, accumulated, clipped": {
        "training.precision": "bf16",
        "training.accumulation_steps": 2,
        "optim.clip_gradient_norm": 1.0,
    },
    **{name: {"optim.optimizer": name} for name in ("nadamw", "lion", "muon", "sgd")},
    "centred_queue": {"objectives.centred_queue": True},
    "layer_decay": {"optim.layer_decay": 0.7, "optim.optimizer": "muon"},
    "official": {"compat": "official", "optim.schedule": {"name": "constant"}, "objectives.in_batch_negatives": "local"},
}


@pytest.mark.parametrize("changes", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_other_ways_to_train_resume_exactly_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = toy_spec(**{"training.steps": 6, **changes})
    undisturbed, stopped = (prepare(tmp_path / name, spec) for name in ("whole", "stopped"))
    processes = start(stopped)
    wait_until(lambda: has_row(stopped, 2), processes)
    os.kill(processes[0].pid or 0, signal.SIGTERM)
    assert wait(processes) == [STOPPED]
    assert outcome(run(stopped)) == outcome(run(undisturbed))


# ------------------------------------------------------------------------------------------------------- going on from another

ENDLESS = {"optim.schedule": {"name": "constant", "warmup_steps": 2}}
"""A learning rate that does not depend on the run's length."""


def going_on(source: RunFolder, **changes: Any) -> dict[str, Any]:
    return {**ENDLESS, "training.steps": 9, "init": {"checkpoint": str(source.path), "resume": True}, **changes}


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path: Path) -> None:
    """With its moments, its queue and its place in the data: bit for bit the run that was as long from the beginning."""
    shorter = run(prepare(tmp_path / "shorter", toy_spec(**ENDLESS, **{"training.steps": 6})))
    longer = prepare(tmp_path / "longer", toy_spec(**going_on(shorter)))
    processes = start(longer)
    wait_until(lambda: has_row(longer, 8), processes)
    kill(processes)
    shutil.rmtree(shorter.path)  # what it needs of it, it has
    found, whole = outcome(run(longer)), outcome(run(prepare(tmp_path / "whole", toy_spec(**ENDLESS, **{"training.steps": 9}))))
    assert found.checksums == whole.checksums
    assert found.rows == [row for row in whole.rows if row["step"] >= 6 and ("loss/total" not in row or row["step"] > 6)]
    events = [json.loads(line) for line in longer.events.read_text().splitlines()]
    assert events[0]["event"] == "started"
    assert events[0]["step"] == 6


def test_what_cannot_go_on_from_another_run_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    def refusal(name: str, **changes: Any) -> str:
        folder = prepare(tmp_path / name, toy_spec(**going_on(finished, **{"training.steps": 20, **changes})))
        assert wait(start(folder)) == [REFUSED]
        return (folder.path / "stderr0.txt").read_text()

    assert "queue.image is [24, 8], here [32, 8]" in refusal("model", **{"model.queue_size": 32})
    weights = shutil.copy(finished.checkpoints / "step-00000012" / "model.safetensors", tmp_path / "alone.safetensors")
    at_planning: dict[str, dict[str, Any]] = {
        "has no checkpoint of a run, with its optimizer": {"init": {"checkpoint": str(weights), "resume": True}},
        "stands at step 12, and this run ends with step 12": {"training.steps": 12},
        "was trained with adamw, whose moments lion does not know": {"training.steps": 20, "optim.optimizer": "lion"},
    }
    for message, changes in at_planning.items():
        with pytest.raises(InputError, match=message):
            prepare(tmp_path / "planned", toy_spec(**going_on(finished, **changes)))


# ----------------------------------------------------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three processes that nothing disturbed: with two, gradients add up the same in any order."""
    return run(prepare(tmp_path_factory.mktemp("together") / "run", toy_spec(**{"launch.num_processes": 3})))


def test_several_processes_killed_while_they_train(tmp_path: Path, together: RunFolder) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**{"launch.num_processes": 3}))
    processes = start(folder)
    wait_until(lambda: has_row(folder, 4), processes)
    kill(processes)
    assert outcome(run(folder)) == outcome(together)


def test_a_request_to_one_process_stops_them_all(tmp_path: Path, together: RunFolder) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**{"launch.num_processes": 3}))
    processes = start(folder)
    wait_until(lambda: has_row(folder, 4), processes)
    os.kill(processes[2].pid or 0, signal.SIGTERM)
    assert wait(processes) == [STOPPED] * 3
    assert outcome(run(folder)) == outcome(together)


# ----------------------------------------------------------------------------------------------------------------- bad endings


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, num_processes: int) -> None:
    changes = {
        "optim.learning_rate": 1e30,
        "optim.weight_decay": 0.0,
        "training.checkpoints": {"every_steps": 1},
        "launch.num_processes": num_processes,
    }
    folder = prepare(tmp_path / "run", toy_spec(**{**changes, "optim.schedule": {"name": "constant"}}))
    assert wait(start(folder)) == [REFUSED] * num_processes
    state = folder.read_state()
    assert state is not None
    assert state.status == "failed"
    assert state.reason is not None
    for part in ("is not finite", "cma", "itm", "training rows", "optim.learning_rate"):
        assert part in state.reason
    assert f"process {num_processes - 1}:" in state.reason
    newest = checkpoint.newest(folder.checkpoints)
    assert newest is not None
    assert checkpoint.step_of(newest) == state.step
    assert read(folder.metrics)[-1]["step"] <= state.step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where this user may mount one."""
    with disk.small_disk(tmp_path / "disk", size="700k") as place:
        yield place


def test_a_disk_that_fills_while_saving_ends_the_run_and_with_space_it_goes_on(small_disk: Path, whole: Outcome) -> None:
    folder = prepare(small_disk / "run", toy_spec())
    assert wait(start(folder)) == [REFUSED]
    printed = (folder.path / "stderr0.txt").read_text()
    assert "the disk is full: free some space and run the same command again" in printed
    assert not is_saving(folder)
    disk.resize(small_disk, "64m")
    assert outcome(run(folder)) == whole


def test_a_checkpoint_of_another_spec_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", toy_spec(seed=4))
    shutil.copytree(finished.checkpoints, folder.checkpoints)
    assert wait(start(folder)) == [REFUSED]
    assert "it was saved by run toy-s3-" in (folder.path / "stderr0.txt").read_text()
