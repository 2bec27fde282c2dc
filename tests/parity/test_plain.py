"""The plain step, which speed is measured against, computes what the published code computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.plain import PlainStep
from tclx.tasks.pretrain.step import TrainingStep

from .official import recorded_batch, recorded_tensors, tiny_model, tiny_spec
from .test_step import PARTS, follow_online, recorded_negatives


@pytest.mark.parametrize(("scenario", "weight"), [("pretrain_eval", 0.4), ("pretrain_eval_alpha0", 0.0)])
def test_its_losses_and_gradients_are_the_recorded_ones_and_ours(shared: Path, scenario: str, weight: float) -> None:
    spec, tensors = tiny_spec(), recorded_tensors(shared)
    expected = json.loads((shared / "parity" / "expected.json").read_text())["scenarios"][scenario]
    plain, ours = (tiny_model(shared, spec, initial="pretrain_init") for _ in range(2))
    follow_online(plain)
    follow_online(ours)
    batch, negatives = recorded_batch(tensors, "pretrain/in0", scenario), recorded_negatives(tensors, scenario)
    output = PlainStep(plain, spec).forward(batch, soft_label_weight=weight, negatives=negatives)
    found = {theirs: output.parts[own].item() for theirs, own in PARTS.items() if theirs in expected}
    assert found == {theirs: pytest.approx(expected[theirs], abs=1e-5) for theirs in found}
    assert len(found) == 8
    output.loss.backward()  # before the batch's images are normalised again, in place
    other = TrainingStep(ours, spec)(batch, soft_label_weight=weight, draw=0, negatives=negatives)
    assert output.loss.item() == pytest.approx(other.loss.item(), abs=3e-5)
    other.loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_moves_everything_that_trains(shared: Path) -> None:
    spec, tensors = tiny_spec(), recorded_tensors(shared)
    model = tiny_model(shared, spec, initial="pretrain_init")
    assert model.momentum is not None
    assert model.queue is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = PlainStep(model, spec)
    batch = recorded_batch(tensors, "pretrain/in0", "pretrain_eval")
    first = step.train(batch, soft_label_weight=0.4)
    assert first > 0
    assert step.train(batch, soft_label_weight=0.4) != first
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"queue.image", "queue.pointer"} <= moved
    for name, parameter in model.named_parameters():
        assert name in moved or not parameter.requires_grad or "position" in name or "bias" in name, name
    assert any(name.startswith("momentum.") for name in moved)
