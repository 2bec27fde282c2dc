from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tclx.spec.objectives import SoftLabelSpec
from tclx.spec.optim import ConstantSchedule, CosineSchedule, OptimSpec
from tclx.tasks.task import soft_label_weight
from tclx.train.optim import build_optimizer, learning_rate, num_moments, parameter_groups


class Tiny(nn.Module):
    """One parameter of every kind that a rule speaks of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.shared = nn.Parameter(torch.tensor(0.07))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.reg_token = nn.Parameter(torch.zeros(1, 4, 3))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 3))
        self.position_embeddings = nn.Embedding(7, 3)
        self.word_embeddings = nn.Embedding(7, 3)
        self.momentum = nn.Linear(3, 3).requires_grad_(False)


def decayed(*, official: bool) -> set[str]:
    groups = parameter_groups(Tiny(), weight_decay=0.1, official=official)
    assert sum(len(group["params"]) for group in groups) == 10  # every trainable parameter once, the momentum copy never
    return {name for group in groups if group["weight_decay"] for name in group["param_names"]}


def test_only_matrices_decay() -> None:
    assert decayed(official=False) == {"linear.weight", "word_embeddings.weight"}


def test_officially_temperature_tokens_and_positions_decay_too() -> None:
    assert decayed(official=True) == {
        "linear.weight",
        "word_embeddings.weight",
        "shared",
        "cls_token",
        "reg_token",
        "pos_embed",
        "position_embeddings.weight",
    }


def test_a_model_without_decayed_parameters_has_one_group() -> None:
    assert len(parameter_groups(nn.LayerNorm(3), weight_decay=0.1, official=False)) == 1


def test_optimizer_is_adamw_by_the_formula() -> None:
    """One step from zero moments moves every weight by lr * (sign of its gradient + decay * weight), epsilon aside."""
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    optimizer = build_optimizer(net, OptimSpec(learning_rate=0.5, weight_decay=0.2, epsilon=1e-12), official=False)
    net(torch.tensor([[1.0, -2.0]])).sum().backward()
    optimizer.step()
    expected = before - 0.5 * (torch.tensor([[1.0, -1.0]]) + 0.2 * before)
    assert torch.allclose(net.weight, expected, atol=1e-6)


def one_step(net: nn.Module, **optim: Any) -> nn.Module:
    """An update with a learning rate of 0.5 and a decay of 0.2, from the gradient of a sum."""
    optimizer = build_optimizer(net, OptimSpec(learning_rate=0.5, weight_decay=0.2, **optim), official=False)
    net(torch.tensor([[1.0, -2.0]])).sum().backward()
    optimizer.step()
    return net


def test_lion_moves_by_the_sign_and_sgd_by_the_gradient_and_both_decay_apart() -> None:
    for optimizer, moved in (("lion", [1.0, -1.0]), ("sgd", [1.9, -3.8])):  # Nesterov: the gradient and 0.9 of its momentum
        net = nn.Linear(2, 1)
        before = net.weight.detach().clone()
        one_step(net, optimizer=optimizer)
        torch.testing.assert_close(net.weight.detach(), before - 0.5 * torch.tensor([moved]) - 0.5 * 0.2 * before)


def test_muon_turns_matrices_and_leaves_the_rest_to_nadamw() -> None:
    torch.manual_seed(0)
    net = Tiny()
    optimizer = build_optimizer(net, OptimSpec(learning_rate=0.5, weight_decay=0.2, optimizer="muon"), official=False)
    left = {name for group in optimizer.param_groups if group["use_fallback"] for name in group["param_names"]}
    own = {name for group in optimizer.param_groups if not group["use_fallback"] for name in group["param_names"]}
    assert own == {"linear.weight"}
    assert len(left) == 9
    before = net.linear.weight.detach().clone()
    turned = torch.linalg.qr(torch.randn(3, 3)).Q
    net.linear.weight.grad = turned @ torch.diag(torch.tensor([9.0, 3.0, 1.0]))
    net.linear.bias.grad = torch.tensor([1.0, -2.0, 3.0])
    bias = net.linear.bias.detach().clone()
    optimizer.step()
    moved = before * (1 - 0.5 * 0.2) - net.linear.weight.detach()
    lengths = torch.linalg.svdvals(moved)
    assert lengths.max() / lengths.min() < 2  # about orthogonal; of the gradient it is 9
    steps = (bias - net.linear.bias.detach()) * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(steps, steps[:1].expand(3))  # by the gradient's sign alone, as Adam's first step is
    assert steps.min() > 0.1


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 2), ("nadamw", 2), ("lion", 1), ("sgd", 1)])
def test_as_many_moments_are_counted_as_are_kept(optimizer: Literal["adamw", "nadamw", "lion", "sgd"], each: int) -> None:
    net, optim = nn.Linear(2, 1), OptimSpec(learning_rate=0.5, optimizer=optimizer)
    assert num_moments(net.named_parameters(), optim) == 3 * each
    made = build_optimizer(net, optim, official=False)
    net(torch.ones(1, 2)).sum().backward()
    made.step()
    kept = [value for state in made.state.values() for name, value in state.items() if name != "step"]
    assert sum(value.numel() for value in kept) == 3 * each


def rate(step: int, schedule: CosineSchedule | ConstantSchedule, *, total_steps: int = 100) -> float:
    optim = OptimSpec(learning_rate=1.0, schedule=schedule)
    return learning_rate(step, optim=optim, total_steps=total_steps, steps_per_epoch=10, official=False)


def test_cosine_rises_linearly_then_falls_to_exactly_the_minimum_at_the_last_step() -> None:
    schedule = CosineSchedule(warmup_steps=10, warmup_learning_rate=0.2, minimum_learning_rate=0.1)
    assert rate(0, schedule) == 0.2
    assert rate(5, schedule) == pytest.approx(0.6)
    assert rate(10, schedule) == 1.0
    assert rate(99, schedule) == 0.1
    assert rate(10 + 89 // 2, schedule) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 44 / 89)))
    falling = [rate(step, schedule) for step in range(10, 100)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_cosine_of_very_short_runs_stays_within_its_bounds(total_steps: int) -> None:
    schedule = CosineSchedule(warmup_steps=2)
    assert all(0 <= rate(step, schedule, total_steps=total_steps) <= 1 for step in range(total_steps))


def test_constant_stays_at_the_peak_after_its_warm_up() -> None:
    schedule = ConstantSchedule(name="constant", warmup_steps=4)
    assert [rate(step, schedule) for step in (0, 1, 2, 3, 4, 99)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_soft_labels_ramp_linearly_and_then_stay() -> None:
    weights = [soft_label_weight(step, soft_labels=SoftLabelSpec(weight=0.4), ramp_steps=8) for step in (0, 2, 8, 100)]
    assert weights == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert soft_label_weight(0, soft_labels=SoftLabelSpec(weight=0.4, ramp_epochs=0), ramp_steps=0) == 0.4
    assert soft_label_weight(5, soft_labels=None, ramp_steps=0) == 0.0


def test_the_official_warm_up_climbs_stairs_of_a_hundred_iterations_and_is_cut_where_the_first_epoch_ends() -> None:
    """timm 0.4's scheduler is stepped after every hundredth iteration, so that iteration 100 still has the start's rate."""
    schedule = CosineSchedule(warmup_steps=300, warmup_learning_rate=1e-5, minimum_learning_rate=1e-6)
    optim = OptimSpec(learning_rate=1e-4, schedule=schedule)

    def at(step: int, steps_per_epoch: int = 1000) -> float:
        return learning_rate(step, optim=optim, total_steps=2000, steps_per_epoch=steps_per_epoch, official=True)

    assert at(0) == at(1) == at(100) == 1e-5
    assert at(101) == at(200) == pytest.approx(4e-5)
    assert at(201) == at(300) == pytest.approx(7e-5)
    assert at(301) == at(999) == 1e-4
    assert at(1000) == at(1999) == pytest.approx((1e-4 + 1e-6) / 2)
    assert at(149, 150) == pytest.approx(4e-5)
    assert at(150, 150) == pytest.approx(1e-6 + 0.5 * 9.9e-5 * (1 + math.cos(math.pi / 14)))
