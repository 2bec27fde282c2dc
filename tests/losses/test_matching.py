"""ITM: hard negatives are drawn as promised, and the loss is a plain cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tclx.losses.matching import draw_hard_negatives, image_text_matching_loss


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def draw_often(logits: list[float], same_image: list[bool], own_column: int, num_draws: int = 20_000) -> list[int]:
    """How often each column is drawn for one row."""
    repeated = torch.tensor(logits).repeat(num_draws, 1)
    columns = draw_hard_negatives(
        repeated,
        same_image=torch.tensor(same_image).repeat(num_draws, 1),
        noise=uniform(*repeated.shape),
        own_column=torch.full((num_draws,), own_column),
    )
    return torch.bincount(columns, minlength=len(logits)).tolist()


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    total = sum(counts)
    return sum((n - total * p) ** 2 / (total * p) for n, p in zip(counts, probabilities, strict=True) if p > 0)


# 99.9 % quantiles of the chi-square distribution.
CRITICAL = {2: 13.82, 3: 16.27, 4: 18.47}


@pytest.mark.parametrize("shift", [0.0, 900.0, -900.0])
def test_frequencies_are_the_softmax_over_the_candidates(shift: float) -> None:
    logits = [5.0, 0.0, 1.0, 2.0, -1.0, 7.0]
    counts = draw_often([x + shift for x in logits], [False, False, False, False, False, True], own_column=0)
    weights = [0.0, *(math.exp(x) for x in logits[1:5]), 0.0]
    assert counts[0] == counts[5] == 0
    assert chi_square(counts, [w / sum(weights) for w in weights]) < CRITICAL[3]


def test_a_row_of_one_image_only_draws_uniformly_among_the_others() -> None:
    counts = draw_often([3.0, -2.0, 8.0, 0.0], [True] * 4, own_column=2)
    assert counts[2] == 0
    assert chi_square(counts, [1 / 3, 1 / 3, 0, 1 / 3]) < CRITICAL[2]


def test_rows_draw_independently() -> None:
    columns = draw_hard_negatives(torch.zeros(400, 400), same_image=torch.eye(400, dtype=torch.bool), noise=uniform(400, 400))
    # Birthday statistics: 400 draws from 399 hit about 1 - 1/e of the columns.
    assert 220 < columns.unique().numel() < 285


def test_without_own_column_row_i_is_column_i() -> None:
    for seed in range(20):
        columns = draw_hard_negatives(
            torch.eye(5) * 50, same_image=torch.zeros(5, 5, dtype=torch.bool), noise=uniform(5, 5, seed=seed)
        )
        assert (columns != torch.arange(5)).all()


def test_own_column_is_never_drawn_in_a_gathered_batch() -> None:
    own = torch.tensor([4, 5])
    for seed in range(20):
        columns = draw_hard_negatives(
            torch.zeros(2, 6), same_image=torch.zeros(2, 6, dtype=torch.bool), noise=uniform(2, 6, seed=seed), own_column=own
        )
        assert (columns != own).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_noise_at_its_limits_still_draws_a_candidate(value: float) -> None:
    logits, same_image = torch.tensor([[9.0, 3.0, 1.0]] * 3), torch.tensor([[True, False, False]] * 3)
    noise = torch.full((3, 3), value)
    columns = draw_hard_negatives(logits, same_image=same_image, noise=noise)
    assert columns.tolist() == [1, 2, 1]  # equal noise: the most similar candidate that is not the row itself
    mixed = torch.tensor([[1.0, 0.5, 0.5]] * 3)  # an infinite noise must not lift a masked column either
    assert draw_hard_negatives(logits, same_image=same_image, noise=mixed).tolist() == [1, 2, 1]


def test_extreme_noise_cannot_outweigh_a_large_logit() -> None:
    logits, nothing = torch.tensor([[0.0, 100.0, 0.0]]), torch.zeros(1, 3, dtype=torch.bool)
    assert draw_hard_negatives(logits, same_image=nothing, noise=torch.tensor([[0.5, 0.0, 1.0]])).tolist() == [1]


def test_a_negative_as_unlikely_as_can_be_is_drawn_when_it_is_the_only_one() -> None:
    # The softmax of the masked row underflows to all zeros here.
    logits, same_image = torch.tensor([[1000.0, 1000.0, -1000.0]]), torch.tensor([[True, True, False]])
    assert draw_hard_negatives(logits, same_image=same_image, noise=uniform(1, 3)).tolist() == [2]


def test_a_single_pair_gets_itself_back() -> None:
    columns = draw_hard_negatives(torch.zeros(1, 1), same_image=torch.ones(1, 1, dtype=torch.bool), noise=uniform(1, 1))
    assert columns.tolist() == [0]
    assert columns.dtype == torch.int64


def test_the_draw_has_no_gradient_and_takes_bf16_logits() -> None:
    logits = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    columns = draw_hard_negatives(logits, same_image=torch.zeros(3, 4, dtype=torch.bool), noise=uniform(3, 4))
    assert not columns.requires_grad
    assert columns.shape == (3,)


def test_the_order_of_candidates_does_not_matter() -> None:
    logits, noise, order = torch.randn(4, 6), uniform(4, 6), torch.tensor([3, 5, 0, 2, 1, 4])
    same_image = uniform(4, 6, seed=1) < 0.3
    columns = draw_hard_negatives(logits, same_image=same_image, noise=noise)
    position = order.argsort()  # where each old column went
    moved = draw_hard_negatives(
        logits[:, order], same_image=same_image[:, order], noise=noise[:, order], own_column=position[:4]
    )
    assert torch.equal(moved, position[columns])


def test_matching_loss_of_an_undecided_head_is_log_two() -> None:
    assert image_text_matching_loss(torch.zeros(6, 2), torch.tensor([1, 1, 0, 0, 0, 0])).item() == pytest.approx(math.log(2))


def test_matching_loss_of_the_prior_is_its_entropy() -> None:
    prior = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]]).repeat(6, 1)
    loss = image_text_matching_loss(prior, torch.tensor([1, 1, 0, 0, 0, 0]))
    assert loss.item() == pytest.approx(0.6365, abs=1e-4)


def test_matching_column_one_means_a_match() -> None:
    sure = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert image_text_matching_loss(sure, torch.tensor([1, 0])).item() == pytest.approx(0, abs=1e-6)
    assert image_text_matching_loss(sure, torch.tensor([0, 1])).item() == pytest.approx(18)
