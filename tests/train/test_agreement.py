"""A step whose answer is read during the next, as on a GPU: the run, its end and its failures are those of one that waits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.train import agreement, checkpoint
from tclx.train.agreement import Agreement, Pass, reads_late, update
from tests.tasks.downstream import TASKS, downstream_spec
from tests.train.silent import NUM_STEPS, steps_are_silent
from tests.train.toy import REFUSED, STOPPED, outcome, prepare, run, start, start_with, toy_spec, wait, wait_until


def late(_device: str) -> None:
    """In the process that trains: as if its device were a GPU."""
    from tclx.train import loop

    loop.reads_late = lambda *_: True


def started(folder: RunFolder) -> list[Any]:
    return start(folder, prepare_process=late)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_same_bits(tmp_path: Path, num_processes: int, clip: float | None) -> None:
    spec = toy_spec(**{"launch.num_processes": num_processes, "optim.clip_gradient_norm": clip, "tracking.log_every_steps": 5})
    folder = prepare(tmp_path / "late", spec)
    assert wait(started(folder)) == [0] * num_processes
    assert outcome(folder) == outcome(run(prepare(tmp_path / "waits", spec)))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_asked_to_stop_it_does_so_and_goes_on_later(tmp_path: Path, num_processes: int) -> None:
    spec = toy_spec(**{"launch.num_processes": num_processes, "training.steps": 60, "tracking.log_every_steps": 5})
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"every_steps": 30})})
    folder = prepare(tmp_path / "late", spec)
    processes = started(folder)
    wait_until(lambda: folder.metrics.exists() and '"step": 5,' in folder.metrics.read_text(), processes)
    os.kill(processes[-1].pid or 0, signal.SIGTERM)
    assert wait(processes) == [STOPPED] * num_processes
    state = folder.read_state()
    assert state is not None
    assert state.status == "interrupted"
    assert 5 < state.step < 60
    assert checkpoint.newest(folder.checkpoints) == checkpoint.place(folder.checkpoints, state.step)
    assert wait(started(folder)) == [0] * num_processes
    assert outcome(folder) == outcome(run(prepare(tmp_path / "waits", spec)))


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("every_steps", [1, 3])
def test_a_step_that_may_not_be_taken_is_named_and_nothing_after_it_is_kept(
    tmp_path: Path, num_processes: int, every_steps: int
) -> None:
    """With a checkpoint after every step the answer is read at once; with fewer, after one step more."""
    changes: dict[str, Any] = {
        "optim.learning_rate": 1e30,
        "optim.weight_decay": 0.0,
        "optim.schedule": {"name": "constant"},
        "training.checkpoints": {"every_steps": every_steps},
        "tracking.log_every_steps": 100,
        "launch.num_processes": num_processes,
    }
    reasons = []
    for name, prepare_process in (("late", late), ("waits", None)):
        folder = prepare(tmp_path / name, toy_spec(**changes))
        assert wait(start(folder, prepare_process=prepare_process)) == [REFUSED] * num_processes
        state = folder.read_state()
        assert state is not None
        assert state.status == "failed"
        reasons.append(state.reason)
        newest = checkpoint.newest(folder.checkpoints)
        assert (checkpoint.step_of(newest) if newest is not None else 0) == (1 if every_steps == 1 else 0)
    assert reasons[0] == reasons[1]
    assert "step 2 is not finite; it was not taken, and the weights of step 1 are intact" in (reasons[0] or "")


NO_ROWS: dict[str, Any] = {
    "training.steps": NUM_STEPS,
    "training.checkpoints": {"every_steps": 100},
    "tracking.log_every_steps": 100,
    "evaluation": {"during_training": None, "at_end": None},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim.clip_gradient_norm": 0.5, "training.accumulation_steps": 2},
        {"training.precision": "bf16"},
        {"objectives.centred_queue": True, "objectives.balance": {"name": "uncertainty"}},
        {"objectives.balance": {"name": "gradnorm", "every_steps": 2}},
        {"compat": "official", "optim.schedule": {"name": "cosine", "warmup_steps": 0}},
        {"objectives": {"sigmoid": {}, "itm": {}, "mlm": {}, "soft_labels": None}},
    ],
    ids=lambda changes: ",".join(changes) or "as it is",
)
def test_no_step_between_two_rows_reads_anything_back(tmp_path: Path, device: torch.device, changes: dict[str, Any]) -> None:
    assert_silent(tmp_path, toy_spec(**{**NO_ROWS, "training.device": device.type, **changes}))


@pytest.mark.parametrize("task", [*TASKS, "text_assignment"])
def test_no_step_of_another_task_does(tmp_path: Path, device: torch.device, task: str) -> None:
    assert_silent(tmp_path, downstream_spec(task, **{**NO_ROWS, "training.device": device.type}))


def assert_silent(place: Path, spec: ExperimentSpec) -> None:
    folder = prepare(place / "run", spec)
    assert wait([start_with(steps_are_silent, folder)]) == [0], (folder.path / "stderr0.txt").read_text()[-3000:]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_step_that_reads_is_found(tmp_path: Path, optimizer: str) -> None:
    """The same run that does not read late."""
    folder = prepare(tmp_path / "run", toy_spec(**{**NO_ROWS, "optim.optimizer": optimizer}))
    wait([start_with(steps_are_silent_and_wait, folder)])
    assert "WaitError: tolist" in (folder.path / "stderr0.txt").read_text()


def steps_are_silent_and_wait(device: str) -> None:
    from tclx.train import loop

    steps_are_silent(device)
    loop.reads_late = reads_late


# ----------------------------------------------------------------------------------------------------------------- its parts


def trained(*, unless: list[float | None]) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Parameters and moments after a step for each entry."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    for number, each in enumerate(unless):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan if each == 1 else 1.0 + number)
        update(optimizer, torch.amp.GradScaler(enabled=False), unless=None if each is None else torch.tensor(each))
    return [parameter.detach().clone() for parameter in model.parameters()], optimizer.state_dict()["state"]


def assert_same(one: tuple[list[torch.Tensor], dict[str, Any]], other: tuple[list[torch.Tensor], dict[str, Any]]) -> None:
    assert all(torch.equal(first, second) for first, second in zip(one[0], other[0], strict=True))
    for number, moments in one[1].items():
        assert all(torch.equal(value, other[1][number][name]) for name, value in moments.items())


def test_an_update_that_is_left_out_leaves_weights_moments_and_count() -> None:
    assert_same(trained(unless=[0.0, 1.0]), trained(unless=[0.0]))
    assert trained(unless=[0.0, 1.0])[1][0]["step"] == 1


def test_an_update_that_is_taken_has_the_bits_of_one_that_nobody_watches() -> None:
    assert_same(trained(unless=[0.0, 0.0]), trained(unless=[None, None]))


def test_what_was_left_out_does_not_stay_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    scaler, before = torch.amp.GradScaler(enabled=False), model.weight.detach().clone()
    for unless in (torch.tensor(1.0), None):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        update(optimizer, scaler, unless=unless)
        assert torch.equal(model.weight, before) is (unless is not None)


@pytest.mark.parametrize(
    ("loss", "norm", "fp16", "is_bad"),
    [
        (1.0, 1.0, False, 0.0),
        (torch.nan, 1.0, False, 1.0),
        (1.0, torch.inf, False, 1.0),
        (1.0, torch.inf, True, 0.0),
        (torch.inf, 1.0, True, 1.0),
    ],
)
def test_which_updates_may_not_be_taken(loss: float, norm: float, fp16: bool, is_bad: float) -> None:
    passes = [Pass(torch.tensor(each), {"loss/total": torch.tensor(each)}, None, torch.tensor([7])) for each in (1.0, loss)]
    scaler = torch.amp.GradScaler("cpu", enabled=fp16)
    found = Agreement(4, passes, norm=torch.tensor(norm), scaler=scaler, stop=True)
    assert found.is_bad.item() == is_bad
    if is_bad:
        with pytest.raises(agreement.RunFailed, match="step 5 is not finite"):
            found.read()
    else:
        assert found.read() is True


def test_only_a_gpu_is_read_late_and_only_where_the_optimizer_can_leave_an_update_out() -> None:
    def late_on(device: str, spec: ExperimentSpec) -> bool:
        return reads_late(spec, torch.device(device))

    assert late_on("cuda", toy_spec())
    assert not late_on("cpu", toy_spec())
    assert not late_on("cuda", toy_spec(**{"optim.optimizer": "lion"}))
    assert not late_on("cuda", toy_spec(**{"launch.fsdp": True}))
