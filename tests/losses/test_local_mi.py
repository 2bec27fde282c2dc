"""LMI: the closed form against a loop that writes out every softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tclx.losses.local_mi import local_mutual_information_loss, pool_patches

from .samples import unit_rows


def slow_loss(
    anchor: Tensor,
    local: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    own: list[int] | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """For every positive its own softmax over itself and every negative; a graph of scalars."""
    num_rows, num_locals = local.shape[:2]
    own = list(range(len(anchor))) if own is None else own
    real = [[k for k in range(num_locals) if valid is None or valid[j, k]] for j in range(num_rows)]
    samples = []
    for i, row in enumerate(own):
        others = [j for j in range(num_rows) if j != row and (excluded is None or not excluded[i, j])]
        negatives = [anchor[i] @ local[j, k] / temperature for j in others for k in real[j]]
        losses = []
        for k in real[row]:
            positive = anchor[i] @ local[row, k] / temperature
            losses.append(torch.stack([positive, *negatives]).logsumexp(0) - positive)
        samples.append(torch.stack(losses).mean() if losses else anchor.new_zeros(()))
    return torch.stack(samples).mean()


def prefix_mask(lengths: list[int], num_locals: int) -> Tensor:
    return torch.arange(num_locals) < torch.tensor(lengths)[:, None]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), batch=st.integers(1, 4), num_locals=st.integers(1, 5), temperature=st.floats(0.01, 0.5))
def test_the_closed_form_equals_the_slow_loop(data: st.DataObject, batch: int, num_locals: int, temperature: float) -> None:
    num_rows = batch + data.draw(st.integers(0, 3))
    own = data.draw(st.permutations(range(num_rows)))[:batch]
    lengths = data.draw(st.lists(st.integers(0, num_locals), min_size=num_rows, max_size=num_rows))
    flags = data.draw(st.lists(st.booleans(), min_size=batch * num_rows, max_size=batch * num_rows))
    anchor, local = unit_rows(batch, 6, dtype=torch.float64), unit_rows(num_rows, num_locals, 6, seed=1, dtype=torch.float64)
    valid, excluded = prefix_mask(lengths, num_locals), torch.tensor(flags).view(batch, num_rows)

    loss = local_mutual_information_loss(
        anchor, local, temperature=temperature, valid=valid, own_row=torch.tensor(own), excluded=excluded
    )
    torch.testing.assert_close(loss, slow_loss(anchor, local, temperature, valid, own, excluded))
    assert loss >= 0


def test_defaults_are_one_process_without_padding_or_exclusions() -> None:
    anchor, local = unit_rows(4, 8), unit_rows(4, 3, 8, seed=1)
    torch.testing.assert_close(local_mutual_information_loss(anchor, local, temperature=0.07), slow_loss(anchor, local, 0.07))


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1, 3, 2], [2, 0, 3]])
def test_gradients_equal_those_of_the_slow_loop(lengths: list[int]) -> None:
    valid = prefix_mask(lengths, 3)

    def gradients(fast: bool) -> list[Tensor]:
        anchor = unit_rows(3, 5, dtype=torch.float64).requires_grad_()
        local = unit_rows(3, 3, 5, seed=1, dtype=torch.float64).requires_grad_()
        temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
        if fast:
            loss = local_mutual_information_loss(anchor, local, temperature=temperature, valid=valid)
        else:
            loss = slow_loss(anchor, local, temperature, valid)
        return list(torch.autograd.grad(loss, [anchor, local, temperature]))

    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.mark.parametrize(("batch", "num_locals"), [(2, 1), (4, 16), (8, 3)])
def test_uninformative_locals_cost_the_log_of_one_plus_the_negatives(batch: int, num_locals: int) -> None:
    anchor = F.normalize(torch.ones(batch, 4), dim=1)
    loss = local_mutual_information_loss(anchor, anchor[:, None].repeat(1, num_locals, 1), temperature=0.07)
    assert loss.item() == pytest.approx(math.log(1 + (batch - 1) * num_locals), rel=1e-5)


def test_locals_that_point_with_their_own_anchor_cost_nothing() -> None:
    corners = torch.eye(4)
    assert local_mutual_information_loss(corners, corners[:, None].repeat(1, 3, 1), temperature=0.01).item() == pytest.approx(0)


def test_a_single_pair_has_nothing_to_compare_and_no_gradient() -> None:
    anchor = unit_rows(1, 4).requires_grad_()
    loss = local_mutual_information_loss(anchor, unit_rows(1, 3, 4, seed=1), temperature=0.001)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(anchor.grad, torch.zeros(1, 4))


def test_samples_of_one_image_are_no_negatives_of_each_other() -> None:
    anchor, local = unit_rows(3, 4).requires_grad_(), unit_rows(3, 2, 4, seed=1)
    all_same = torch.ones(3, 3, dtype=torch.bool)
    loss = local_mutual_information_loss(anchor, local, temperature=0.07, excluded=all_same)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(anchor.grad, torch.zeros(3, 4))


def test_an_empty_caption_counts_as_zero_and_is_no_negative() -> None:
    anchor, local = unit_rows(3, 4), unit_rows(3, 2, 4, seed=1)
    empty_first = prefix_mask([0, 2, 2], 2)
    two_of_three = local_mutual_information_loss(anchor[1:], local[1:], temperature=0.07) * 2 / 3
    torch.testing.assert_close(local_mutual_information_loss(anchor, local, temperature=0.07, valid=empty_first), two_of_three)


@pytest.mark.parametrize("num_locals", [0, 2])
def test_nothing_but_empty_captions_costs_zero_with_zero_gradients(num_locals: int) -> None:
    anchor = unit_rows(3, 4).requires_grad_()
    valid = torch.zeros(3, num_locals, dtype=torch.bool)
    loss = local_mutual_information_loss(anchor, torch.ones(3, num_locals, 4), temperature=0.001, valid=valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(anchor.grad, torch.zeros(3, 4))


def test_what_stands_at_padding_does_not_matter() -> None:
    anchor, local, valid = unit_rows(3, 4), unit_rows(3, 4, 4, seed=1), prefix_mask([4, 1, 2], 4)
    scribbled = local.masked_fill(~valid[:, :, None], 1e4)
    torch.testing.assert_close(
        local_mutual_information_loss(anchor, scribbled, temperature=0.07, valid=valid),
        local_mutual_information_loss(anchor, local, temperature=0.07, valid=valid),
    )


def test_gathered_locals_from_other_processes_are_negatives() -> None:
    anchor, local = unit_rows(4, 8), unit_rows(4, 3, 8, seed=1)
    halves = [
        local_mutual_information_loss(anchor[rows], local, temperature=0.07, own_row=rows)
        for rows in (torch.tensor([0, 1]), torch.tensor([2, 3]))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), local_mutual_information_loss(anchor, local, temperature=0.07))


def test_the_order_of_samples_does_not_matter() -> None:
    anchor, local, valid = unit_rows(5, 4), unit_rows(5, 3, 4, seed=1), prefix_mask([3, 0, 2, 1, 3], 3)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        local_mutual_information_loss(anchor[order], local[order], temperature=0.07, valid=valid[order]),
        local_mutual_information_loss(anchor, local, temperature=0.07, valid=valid),
    )


@pytest.mark.parametrize(("grid", "pooled"), [((16, 16), 4), ((24, 24), 4), ((4, 8), 2), ((14, 14), 7)])
def test_pooling_a_multiple_is_plain_average_pooling(grid: tuple[int, int], pooled: int) -> None:
    patches = unit_rows(2, grid[0] * grid[1], 3)
    squares = patches.view(2, pooled, grid[0] // pooled, pooled, grid[1] // pooled, 3).mean(dim=(2, 4))
    torch.testing.assert_close(pool_patches(patches, grid=grid, pooled_grid=pooled), squares.view(2, pooled**2, 3))


def test_pooling_any_grid_keeps_an_equal_image_equal_and_the_rows_in_order() -> None:
    height = torch.arange(7.0)[:, None].expand(7, 5).reshape(1, 35, 1)
    pooled = pool_patches(height, grid=(7, 5), pooled_grid=4).view(4, 4)
    torch.testing.assert_close(pooled, pooled[:, :1].expand(4, 4))
    assert (pooled[1:, 0] > pooled[:-1, 0]).all()
    torch.testing.assert_close(pool_patches(torch.ones(1, 35, 2), grid=(7, 5), pooled_grid=4), torch.ones(1, 16, 2))


def test_a_grid_already_small_keeps_its_patches() -> None:
    patches = unit_rows(2, 6, 3)
    torch.testing.assert_close(pool_patches(patches, grid=(2, 3), pooled_grid=4), patches)


def test_pooled_patches_that_disagree_are_short() -> None:
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(pool_patches(opposite, grid=(2, 2), pooled_grid=1), torch.tensor([[[0.0, 0.5]]]))


def test_a_wrong_grid_is_refused() -> None:
    with pytest.raises(RuntimeError):
        pool_patches(torch.ones(1, 6, 3), grid=(2, 2), pooled_grid=2)
