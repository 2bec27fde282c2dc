"""The training step against the official code: losses, every gradient, four AdamW steps, and two processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tclx.losses.contrastive import soft_cross_entropy
from tclx.model.momentum import Pairs
from tclx.model.tcl import TCL
from tclx.model.weights import official_state_dict
from tclx.tasks.pretrain.features import HardNegatives
from tclx.tasks.pretrain.step import StepOutput, TrainingStep
from tclx.train.optim import build_optimizer

from .official import recorded_batch, recorded_tensors, tiny_model, tiny_spec

PARTS = {
    "cma_i2t": "cma_image_to_text",
    "cma_t2i": "cma_text_to_image",
    "imc_image": "imc_image",
    "imc_text": "imc_text",
    "lmi_image": "lmi_image",
    "lmi_text": "lmi_text",
    "itm": "itm",
    "mlm": "mlm",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tensors(shared: Path, device: torch.device) -> dict[str, Tensor]:
    return recorded_tensors(shared, device)


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "parity" / "expected.json").read_text())
    return content


def follow_online(model: TCL) -> None:
    """The published forward pass starts with a momentum update, in evaluation mode too."""
    assert model.momentum is not None
    Pairs.of(model.online, model.momentum).update(0.995)


def recorded_negatives(tensors: dict[str, Tensor], scenario: str) -> HardNegatives:
    return HardNegatives(image=tensors[f"{scenario}/neg_image_idx"], text=tensors[f"{scenario}/neg_text_idx"])


def check_losses(output: StepOutput, recorded: dict[str, Any]) -> None:
    for theirs, ours in PARTS.items():
        if theirs in recorded:
            assert output.measures[f"loss/{ours}"].item() == pytest.approx(recorded[theirs], abs=1e-5), ours
    contrastive = (output.terms["cma"] + output.terms["imc"] + output.terms["lmi"]) / 3
    assert contrastive.item() == pytest.approx(recorded["ita(mean of six)"], abs=1e-5)
    total = recorded["ita(mean of six)"] + recorded["itm"] + recorded.get("mlm", 0)
    assert output.loss.item() == pytest.approx(total, abs=3e-5)


def gradients(model: TCL, *, form: str) -> dict[str, Tensor]:
    """Every gradient under its official name."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return official_state_dict(model, form=form)


def check_gradients(ours: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    assert recorded
    for name, gradient in recorded.items():
        # A GPU adds up in another order: entries that are nearly 0 are the rounding of larger ones.
        atol = 1e-6 if gradient.device.type == "cpu" else 1e-5
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("scenario", "weight"), [("pretrain_eval", 0.4), ("pretrain_eval_alpha0", 0.0)])
def test_pretraining_losses_and_gradients(
    shared: Path, device: torch.device, tensors: dict[str, Tensor], expected: dict[str, Any], scenario: str, weight: float
) -> None:
    spec = tiny_spec()
    model = tiny_model(shared, spec, initial="pretrain_init", device=device)
    follow_online(model)
    output = TrainingStep(model, spec)(
        recorded_batch(tensors, "pretrain/in0", scenario),
        soft_label_weight=weight,
        draw=0,
        negatives=recorded_negatives(tensors, scenario),
    )
    check_losses(output, expected["scenarios"][scenario])
    assert output.keys is not None
    assert model.queue is not None
    model.queue.enqueue(*output.keys)
    torch.testing.assert_close(model.queue.image.T, tensors[f"{scenario}/image_queue_after"], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.queue.text.T, tensors[f"{scenario}/text_queue_after"], rtol=0, atol=1e-6)
    if weight > 0:
        output.loss.backward()
        prefix = f"{scenario}/grad/"
        recorded = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        check_gradients(gradients(model, form="pretrain"), recorded)


def test_retrieval_losses_and_gradients_with_repeated_images(
    shared: Path, device: torch.device, tensors: dict[str, Tensor], expected: dict[str, Any]
) -> None:
    spec = tiny_spec(form="retrieval")
    model = tiny_model(shared, spec, initial="retrieval_init", device=device)
    follow_online(model)
    batch = recorded_batch(tensors, "pretrain/in1", None)
    batch = type(batch)(**{**batch.__dict__, "image_index": tensors["retrieval_eval/idx"]})
    output = TrainingStep(model, spec)(
        batch, soft_label_weight=0.4, draw=0, negatives=recorded_negatives(tensors, "retrieval_eval")
    )
    check_losses(output, expected["scenarios"]["retrieval_eval"])
    output.loss.backward()
    prefix = "retrieval_eval/grad/"
    recorded = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    check_gradients(gradients(model, form="retrieval"), recorded)
    assert output.keys is not None
    assert model.queue is not None
    model.queue.enqueue(*output.keys)
    assert model.queue.image_index.tolist() == tensors["retrieval_eval/idx_queue_after"].flatten().tolist()


def test_four_adamw_steps(shared: Path, device: torch.device, tensors: dict[str, Tensor], expected: dict[str, Any]) -> None:
    spec = tiny_spec()
    model = tiny_model(shared, spec, initial="pretrain_init", device=device)
    step = TrainingStep(model, spec)
    optimizer = build_optimizer(model, spec.optim, official=True)
    for number, recorded in enumerate(expected["scenarios"]["pretrain_4_adamw_steps"]):
        model.clamp_temperatures()
        follow_online(model)
        output = step(
            recorded_batch(tensors, f"pretrain/in{number}", f"traj/{number}"),
            soft_label_weight=recorded["alpha"],
            draw=number,
            negatives=recorded_negatives(tensors, f"traj/{number}"),
        )
        check_losses(output, recorded)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        assert output.keys is not None
        assert model.queue is not None
        model.queue.enqueue(*output.keys)
        assert model.queue.pointer.item() == recorded["queue_ptr"]
        assert model.temperature("cma").item() == pytest.approx(recorded["temp_after"], abs=1e-6)

    ours = official_state_dict(model, form="pretrain")
    theirs = recorded_tensors(shared, device, name="pretrain_after_4_steps")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        mine = ours[name]
        if name.endswith("self.key.bias"):  # the true gradient is 0, and AdamW makes steps of rounding errors
            continue
        if name.endswith("attn.qkv.bias"):
            third = len(value) // 3
            value = torch.cat([value[:third], value[2 * third :]])
            mine = torch.cat([mine[:third], mine[2 * third :]])
        # AdamW divides a gradient by its own size, so the rounding of one that is nearly 0 shows: other processors add up in
        # another order, and one entry in a thousand then differs by more than 1e-5.
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        far = (mine - value).abs() > 1e-5
        assert device.type != "cpu" or far.float().mean() < 0.01, f"{name}: {far.sum()} of {far.numel()} differ by over 1e-5"


def test_a_loss_without_soft_labels_is_plain_infonce() -> None:
    """An uninformative row costs log(K): the yardstick of every figure above."""
    assert soft_cross_entropy(torch.zeros(2, 16), torch.eye(2, 16)).item() == pytest.approx(2.7725887)
