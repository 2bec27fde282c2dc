"""Layers divided among processes (launch.fsdp): the same training as with whole copies, in less memory.

This file is also the program that such processes run.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tclx import distributed
from tclx.model.sharding import is_sharded, layers_to_shard, own_part, shard_layers, unsharded
from tclx.model.tcl import TCL
from tclx.plan import DataFacts, make_plan
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.track.jsonl import read
from tclx.train.cost import GIB, estimate_cost
from tclx.train.optim import build_optimizer
from tests.processes import finish_processes, start_processes
from tests.tasks.downstream import downstream_spec
from tests.train.toy import STOPPED, kill, outcome, prepare, run, start, toy_spec, wait, wait_until

NUM_STEPS = 20
TWO_LAYERS: dict[str, Any] = {
    "model.image_encoder": {
        "name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2,
    },
    "model.text_encoder": {"sizes": {"width": 16, "num_heads": 2, "intermediate_size": 32}, "num_layers": 2},
    "model.fusion_encoder": {"num_layers": 2},
}  # fmt: skip
WHOLE = {"tracking.term_gradients_every_steps": None}
"""A run with a whole copy in each process takes the steps that are compared, and measures no gradients in between."""


def spec_of(num_processes: int, *, fsdp: bool, **changes: Any) -> ExperimentSpec:
    """The same global batch whatever the number of processes."""
    common = {
        **TWO_LAYERS,
        "training.steps": NUM_STEPS,
        "training.batch_size_per_gpu": 16 // num_processes,
        "tracking.log_every_steps": 1,
        "launch.num_processes": num_processes,
    }
    return toy_spec(**{**common, **({"launch.fsdp": True} if fsdp else WHOLE), **changes})


def losses(folder: RunFolder) -> dict[int, dict[str, float]]:
    """What each step lost, and how long its gradient was."""
    rows = [row for row in read(folder.metrics) if "loss/total" in row]
    return {row["step"]: {name: row[name] for name in row if name.startswith(("loss/", "gradient_norm"))} for row in rows}


def assert_same_training(one: RunFolder, other: RunFolder, *, tolerance: float = 1e-5) -> None:
    ours, theirs = losses(one), losses(other)
    assert ours.keys() == theirs.keys()
    for step, values in ours.items():
        assert values == pytest.approx(theirs[step], rel=tolerance, abs=tolerance), step


@pytest.mark.parametrize("num_processes", [2, 4])
def test_every_step_is_that_of_whole_copies(tmp_path: Path, num_processes: int) -> None:
    """Over 20 steps with all terms, momentum encoders and queue, and evaluations in which one process has less to do."""
    divided = run(prepare(tmp_path / "divided", spec_of(num_processes, fsdp=True)))
    copied = run(prepare(tmp_path / "copied", spec_of(num_processes, fsdp=False)))
    assert_same_training(divided, copied)
    found, expected = (folder.read_json(folder.evaluated("retrieval", "test"))["metrics"] for folder in (divided, copied))
    assert found == pytest.approx(expected, abs=1e-3)


OTHER_WAYS: dict[str, dict[str, Any]] = {
    "recomputed, accumulated, clipped, decayed by layer": {
        "training.activation_checkpointing": True,
        "training.accumulation_steps": 2,
        "training.batch_size_per_gpu": 4,
        "optim.clip_gradient_norm": 0.5,
        "optim.optimizer": "nadamw",
        "optim.layer_decay": 0.7,
    },
    "bf16, lion": {"training.precision": "bf16", "optim.optimizer": "lion"},
    "official": {"compat": "official", "optim.schedule": {"name": "constant"}, "model.queue_size": 32},
    "a CNN": {"model.image_encoder": {"name": "convnext_atto", "image_size": 32}},
    "balanced": {"objectives.balance": {"name": "uncertainty"}},
}


@pytest.mark.parametrize("changes", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_other_ways_to_train_are_the_same_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"training.steps": 5, **changes}
    divided, copied = (run(prepare(tmp_path / str(fsdp), spec_of(2, fsdp=fsdp, **changes))) for fsdp in (True, False))
    assert_same_training(divided, copied)


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_so_are_downstream_tasks(tmp_path: Path, task: str) -> None:
    """The decoder's layers, and pairs of layers of which the second has no keys and values of its own."""
    common = {**TWO_LAYERS, "training.steps": 6, "launch.num_processes": 2, "tracking.log_every_steps": 1}
    divided = run(prepare(tmp_path / "divided", downstream_spec(task, **common, **{"launch.fsdp": True})))
    copied = run(prepare(tmp_path / "copied", downstream_spec(task, **common, **WHOLE)))
    assert_same_training(divided, copied)


def test_so_is_what_follows_an_evaluation_with_backward_passes(tmp_path: Path) -> None:
    """Grad-CAM's, of which one process has more than another."""
    seven = {"source": "scenes", "num_expressions": 7}
    changes = {
        **TWO_LAYERS,
        "training.steps": 6,
        "tracking.log_every_steps": 1,
        "launch.num_processes": 3,
        "evaluation": {
            "grounding": {"val": seven, "test": seven},
            "during_training": "val",
            "every_steps": 3,
            "at_end": "test",
        },
    }
    divided = run(prepare(tmp_path / "divided", toy_spec(**changes, **{"launch.fsdp": True})))
    copied = run(prepare(tmp_path / "copied", toy_spec(**changes, **WHOLE)))
    assert_same_training(divided, copied)
    found, expected = (folder.read_json(folder.evaluated("grounding", "test"))["metrics"] for folder in (divided, copied))
    assert found == expected


# ------------------------------------------------------------------------------------------------------------------ resuming


def stopped_at(folder: RunFolder, step: int) -> RunFolder:
    """Stop it by a signal after this step or a later one."""
    processes = start(folder)
    wait_until(lambda: folder.metrics.exists() and f'{{"step": {step},' in folder.metrics.read_text(), processes)
    os.kill(processes[0].pid or 0, signal.SIGTERM)
    assert set(wait(processes)) == {STOPPED}
    return folder


def test_stopped_and_killed_it_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    changes = {"training.steps": 12}
    whole = outcome(run(prepare(tmp_path / "whole", spec_of(3, fsdp=True, **changes))))
    folder = stopped_at(prepare(tmp_path / "run", spec_of(3, fsdp=True, **changes)), 4)
    processes = start(folder)
    wait_until(lambda: '{"step": 8,' in folder.metrics.read_text(), processes)
    kill(processes)
    assert outcome(run(folder)) == whole


def test_its_checkpoint_goes_on_in_more_processes_and_with_whole_copies(tmp_path: Path) -> None:
    """And that of whole copies with divided layers: what is saved is the same whoever saves it."""
    common = {"optim.schedule": {"name": "constant", "warmup_steps": 2}}
    begun = {**common, "training.steps": 4}
    divided, copied = (run(prepare(tmp_path / f"begun-{fsdp}", spec_of(2, fsdp=fsdp, **begun))) for fsdp in (True, False))

    def continued(source: RunFolder, name: str, *, fsdp: bool) -> RunFolder:
        init = {"init": {"checkpoint": str(source.path), "resume": True}}
        return run(prepare(tmp_path / name, spec_of(4, fsdp=fsdp, **common, **init, **{"training.steps": 9})))

    expected = continued(copied, "expected", fsdp=False)
    assert list(losses(expected)) == [5, 6, 7, 8, 9]
    for name, source, fsdp in (("more", divided, True), ("whole", divided, False), ("back", copied, True)):
        assert_same_training(continued(source, name, fsdp=fsdp), expected)


def test_weights_to_start_from_are_divided_like_the_others(tmp_path: Path) -> None:
    source = run(prepare(tmp_path / "source", spec_of(2, fsdp=True, **{"training.steps": 3})))
    changes = {"training.steps": 3, "seed": 4, "init": {"checkpoint": str(source.path)}}
    divided, copied = (run(prepare(tmp_path / str(fsdp), spec_of(2, fsdp=fsdp, **changes))) for fsdp in (True, False))
    assert_same_training(divided, copied)


# -------------------------------------------------------------------------------------------------------------------- memory


def large_spec(num_processes: int) -> ExperimentSpec:
    """Of which the layers are most."""
    vit = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 16, "width": 96, "depth": 6, "num_heads": 2}
    bert = {"width": 96, "num_heads": 2, "intermediate_size": 384}
    return spec_of(
        num_processes,
        fsdp=True,
        **{
            "model.image_encoder": vit,
            "model.text_encoder": {"sizes": bert, "num_layers": 6},
            "model.fusion_encoder": {"num_layers": 6},
            "training.batch_size_per_gpu": 8,
            "model.queue_size": 32,
        },
    )


def held(model: nn.Module) -> int:
    """Bytes of what this process has of a model."""
    return sum(own_part(each).numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))


def main() -> None:
    """One of the processes: what it holds before, while and after layers are put together, and of the optimizer."""
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        spec = large_spec(distributed.world_size())
        model = TCL(spec, vocab_size=64, pad_token_id=0)
        whole = held(model)
        shard_layers(model, device=torch.device("cpu"), num_processes=distributed.world_size())
        assert sum(map(is_sharded, model.momentum.parameters())) == sum(
            is_sharded(dict(model.online.named_parameters())[name]) for name, _ in model.momentum.named_parameters()
        )
        divided = held(model)
        with unsharded(model.online):
            assert not any(map(is_sharded, model.online.parameters()))
            together = held(model)
        assert held(model) == divided
        optimizer = build_optimizer(model, spec.optim, official=False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        moments = sum(
            own_part(value).numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if value.ndim
        )
        print(json.dumps({"whole": whole, "divided": divided, "together": together, "moments": moments}))


def test_each_process_holds_its_share_and_the_plan_says_so() -> None:
    found = [json.loads(each) for each in finish_processes(start_processes(["-m", "tests.train.test_fsdp"], world_size=4))]
    for each in found:
        assert each["divided"] < 0.4 * each["whole"]
        assert each["divided"] < each["together"] < each["whole"]  # the momentum encoders stay divided
    spec = large_spec(4)
    plan = make_plan(spec, DataFacts(64, 64, 6, 30, 6, 30))
    divided = estimate_cost(spec, plan, vocab_size=64)
    launch = spec.launch.model_copy(update={"fsdp": False})
    copied = estimate_cost(spec.model_copy(update={"launch": launch}), plan, vocab_size=64)
    assert divided.checkpoint_gib == copied.checkpoint_gib
    weights, moments = (
        sum(of) / len(found)
        for of in ([each["whole"] - each["divided"] for each in found], [each["moments"] for each in found])
    )
    saved_moments = 8 * copied.parameters_trainable - moments
    with torch.device("meta"):
        fetched = 3 * max(
            sum(each.numel() * 4 for each in layer) for layer in layers_to_shard(TCL(spec, vocab_size=64, pad_token_id=0))
        )
    saved = GIB * (copied.peak_memory_gib - divided.peak_memory_gib)
    assert saved == pytest.approx(weights + 1.5 * saved_moments - fetched, rel=0.01)  # gradients are half of the moments


if __name__ == "__main__":
    main()
