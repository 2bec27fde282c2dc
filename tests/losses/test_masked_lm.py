"""MLM: cross-entropy on the masked positions, partly against the momentum model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tclx.losses.masked_lm import masked_language_modeling_loss


def slow_loss(logits: Tensor, labels: Tensor, momentum_logits: Tensor, weight: float) -> float:
    """One word at a time, in double precision."""
    total = 0.0
    for row, label, momentum_row in zip(logits.tolist(), labels.tolist(), momentum_logits.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        momentum_normaliser = sum(math.exp(x) for x in momentum_row)
        soft = sum(math.exp(m) / momentum_normaliser * (normaliser - x) for x, m in zip(row, momentum_row, strict=True))
        total += (1 - weight) * (normaliser - row[label]) + weight * soft
    return total / len(labels)


@settings(max_examples=30, deadline=None)
@given(num_masked=st.integers(1, 5), vocabulary=st.integers(1, 7), weight=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_loss_equals_the_slow_loop(num_masked: int, vocabulary: int, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, momentum_logits = torch.randn(2, num_masked, vocabulary, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(vocabulary, (num_masked,), generator=generator)
    loss = masked_language_modeling_loss(logits, labels, momentum_logits=momentum_logits, soft_label_weight=weight)
    assert loss.item() == pytest.approx(slow_loss(logits, labels, momentum_logits, weight), abs=1e-9)
    assert loss >= -1e-9


def test_without_a_momentum_model_it_is_torchs_cross_entropy_and_gradient() -> None:
    logits, labels = torch.randn(4, 9, requires_grad=True), torch.tensor([0, 8, 3, 3])
    loss = masked_language_modeling_loss(logits, labels, momentum_logits=None, soft_label_weight=0.0)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_an_uninformed_guess_costs_the_log_of_the_vocabulary_under_any_teacher() -> None:
    logits, momentum_logits = torch.zeros(3, 30522), torch.randn(3, 30522) * 5
    loss = masked_language_modeling_loss(
        logits, torch.tensor([7, 0, 9]), momentum_logits=momentum_logits, soft_label_weight=torch.tensor(0.4)
    )
    assert loss.item() == pytest.approx(math.log(30522), rel=1e-5)


def test_soft_labels_have_the_gradient_of_a_blended_target_and_none_to_the_teacher() -> None:
    logits, momentum_logits = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = torch.tensor([4, 0, 2])
    loss = masked_language_modeling_loss(logits, labels, momentum_logits=momentum_logits, soft_label_weight=0.4)
    loss.backward()
    target = 0.4 * momentum_logits.detach().softmax(1) + 0.6 * F.one_hot(labels, 5)
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - target) / 3)
    assert momentum_logits.grad is None


@pytest.mark.parametrize("weight", [None, 0.4])
def test_no_masked_word_costs_exactly_nothing_and_keeps_the_graph(weight: float | None) -> None:
    states = torch.ones(6, 3, requires_grad=True)
    logits = states[:0] @ torch.ones(3, 11)
    momentum_logits = None if weight is None else torch.zeros(0, 11)
    loss = masked_language_modeling_loss(
        logits, torch.zeros(0, dtype=torch.int64), momentum_logits=momentum_logits, soft_label_weight=weight or 0.0
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(states.grad, torch.zeros(6, 3))


def test_the_order_of_positions_does_not_matter() -> None:
    logits, momentum_logits, labels = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([0, 1, 5, 2])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        masked_language_modeling_loss(
            logits[order], labels[order], momentum_logits=momentum_logits[order], soft_label_weight=0.4
        ),
        masked_language_modeling_loss(logits, labels, momentum_logits=momentum_logits, soft_label_weight=0.4),
    )
