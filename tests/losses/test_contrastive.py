"""CMA and IMC: InfoNCE over keys with soft and shared targets, and the health metrics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tclx.losses.contrastive import (
    alignment,
    centring_shift,
    mask_out,
    modality_gap,
    mutual_information_bound,
    queue_age_gap,
    similarity_logits,
    soft_cross_entropy,
    soft_targets,
    target_distribution,
    uniformity,
)

from .samples import unit_rows


def slow_cross_entropy(logits: list[list[float]], targets: list[list[float]]) -> float:
    """One number at a time, in double precision."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        largest = max(row)
        normaliser = largest + math.log(math.fsum(math.exp(x - largest) for x in row))
        total += math.fsum(p * (normaliser - x) for x, p in zip(row, target, strict=True))
    return total / len(logits)


def identity_targets(num_rows: int, num_keys: int) -> Tensor:
    return target_distribution(torch.arange(num_rows), torch.arange(num_keys))


@pytest.mark.parametrize(("batch", "queue"), [(1, 0), (4, 0), (4, 12), (3, 65536)])
def test_uninformative_embeddings_cost_the_log_of_the_number_of_keys(batch: int, queue: int) -> None:
    same_point = F.normalize(torch.ones(batch + queue, 8), dim=1)
    logits = similarity_logits(same_point[:batch], same_point, temperature=0.07)
    loss = soft_cross_entropy(logits, identity_targets(batch, batch + queue))
    assert loss.item() == pytest.approx(math.log(batch + queue), abs=2e-5)
    assert mutual_information_bound(loss, batch + queue).item() == pytest.approx(0, abs=2e-5)


def test_perfect_alignment_costs_nothing() -> None:
    corners = torch.eye(8)
    loss = soft_cross_entropy(similarity_logits(corners, corners, temperature=0.01), identity_targets(8, 8))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert mutual_information_bound(loss, 8).item() == pytest.approx(math.log(8), abs=1e-6)


def test_opposite_pairs_cost_twice_the_inverse_temperature_and_more() -> None:
    # Two keys at +-x: log(1 + exp(2 / t)).
    x = unit_rows(1, 5)
    loss = soft_cross_entropy(similarity_logits(x, torch.cat([-x, x]), temperature=0.5), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(4.0)), rel=1e-6)


def test_logits_are_inner_products_over_the_temperature() -> None:
    query, keys = unit_rows(3, 4, seed=1), unit_rows(5, 4, seed=2)
    expected = [[sum(a * b for a, b in zip(q, k, strict=True)) / 0.05 for k in keys.tolist()] for q in query.tolist()]
    torch.testing.assert_close(similarity_logits(query, keys, temperature=0.05), torch.tensor(expected))


def test_cross_entropy_equals_the_slow_loop() -> None:
    logits = similarity_logits(unit_rows(6, 4, seed=1), unit_rows(9, 4, seed=2), temperature=0.07)
    targets = soft_targets(identity_targets(6, 9), torch.randn(6, 9), weight=0.4)
    expected = slow_cross_entropy(logits.double().tolist(), targets.double().tolist())
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_gradients_to_query_keys_and_temperature_equal_torchs_own_cross_entropy() -> None:
    targets = target_distribution(torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0, 4, 5])).double()

    def gradients(fast: bool) -> list[Tensor]:
        query, keys = (unit_rows(n, 4, seed=n, dtype=torch.float64).requires_grad_() for n in (3, 5))
        temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
        if fast:
            loss = soft_cross_entropy(similarity_logits(query, keys, temperature=temperature), targets)
        else:
            loss = F.cross_entropy(query @ keys.T / temperature, targets)
        return list(torch.autograd.grad(loss, [query, keys, temperature]))

    torch.testing.assert_close(gradients(True), gradients(False))


def test_captions_of_one_image_share_the_mass() -> None:
    targets = target_distribution(torch.tensor([5, 9, 5]), torch.tensor([5, 9, 5, 2, -100, 5]))
    third = 1 / 3
    torch.testing.assert_close(
        targets, torch.tensor([[third, 0, third, 0, 0, third], [0, 1.0, 0, 0, 0, 0], [third, 0, third, 0, 0, third]])
    )
    assert targets.dtype == torch.float32


def test_a_row_in_the_middle_of_the_gathered_batch_finds_its_own_column() -> None:
    expected = torch.zeros(2, 6)
    expected[0, 2] = expected[1, 3] = 1
    assert torch.equal(target_distribution(torch.tensor([2, 3]), torch.arange(6)), expected)


def test_a_row_without_its_image_among_the_keys_costs_nothing_and_has_no_gradient() -> None:
    logits = torch.randn(1, 3, requires_grad=True)
    loss = soft_cross_entropy(logits, target_distribution(torch.tensor([7]), torch.tensor([1, 2, 3])))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_soft_targets_blend_between_ground_truth_and_momentum_prediction() -> None:
    targets, momentum_logits = identity_targets(2, 3), torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    prediction = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.25, 0.25]])
    assert torch.equal(soft_targets(targets, momentum_logits, weight=0.0), targets)
    torch.testing.assert_close(soft_targets(targets, momentum_logits, weight=1.0), prediction)
    quarter = torch.tensor([[0.75 + 0.25 / 3, 0.25 / 3, 0.25 / 3], [0.125, 0.8125, 0.0625]])
    torch.testing.assert_close(soft_targets(targets, momentum_logits, weight=0.25), quarter)
    torch.testing.assert_close(soft_targets(targets, momentum_logits, weight=torch.tensor(0.25)), quarter)


def test_soft_targets_carry_no_gradient() -> None:
    momentum_logits = torch.randn(2, 3, requires_grad=True)
    assert not soft_targets(identity_targets(2, 3), momentum_logits, weight=0.4).requires_grad


def test_soft_labels_of_the_model_itself_cost_its_entropy() -> None:
    logits = similarity_logits(unit_rows(4, 8), unit_rows(7, 8, seed=1), temperature=0.1)
    targets = soft_targets(identity_targets(4, 7), logits, weight=1.0)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(soft_cross_entropy(logits, targets), entropy)


def test_an_empty_queue_is_as_if_there_were_none() -> None:
    query, keys, temperature = unit_rows(4, 8), unit_rows(4, 8, seed=1), 0.07
    with_queue = torch.cat([keys, unit_rows(6, 8, seed=2)])
    valid = torch.arange(10) < 4
    index = torch.cat([torch.arange(4), torch.full((6,), -100)])

    def loss_and_gradient(keys: Tensor, index: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        leaf = query.clone().requires_grad_()
        logits = similarity_logits(leaf, keys, temperature=temperature, valid=valid)
        momentum_logits = similarity_logits(keys[:4], keys, temperature=temperature, valid=valid)
        targets = soft_targets(target_distribution(torch.arange(4), index), momentum_logits, weight=0.4)
        loss = soft_cross_entropy(logits, targets)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    torch.testing.assert_close(loss_and_gradient(with_queue, index, valid), loss_and_gradient(keys, torch.arange(4), None))


def test_a_row_with_no_valid_key_stays_finite() -> None:
    query = unit_rows(2, 4).requires_grad_()
    logits = similarity_logits(query, unit_rows(3, 4, seed=1), temperature=0.001, valid=torch.zeros(3, dtype=torch.bool))
    loss = soft_cross_entropy(logits, torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros(2, 4))


def test_minus_infinity_where_the_target_is_zero_is_harmless() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_masked_out_logits_have_no_probability_and_the_others_keep_theirs() -> None:
    masked = mask_out(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([False, False, True]))
    torch.testing.assert_close(masked.softmax(1), torch.tensor([[1.0, 2.0, -math.inf]]).softmax(1))
    assert masked.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 6),
    queue=st.integers(0, 5),
    temperature=st.floats(0.001, 0.5),
    weight=st.floats(0, 1),
    images=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_the_loss_is_finite_not_negative_and_blind_to_the_order_of_keys_and_rows(
    batch: int, queue: int, temperature: float, weight: float, images: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(images, (batch,), generator=generator)
    keys, key_index = unit_rows(batch + queue, 4, seed=seed), torch.cat([index, torch.full((queue,), -100)])
    query = unit_rows(batch, 4, seed=seed + 1)

    def loss(rows: Tensor, columns: Tensor) -> Tensor:
        targets = target_distribution(index[rows], key_index[columns])
        momentum_logits = similarity_logits(keys[rows], keys[columns], temperature=temperature)
        logits = similarity_logits(query[rows], keys[columns], temperature=temperature)
        return soft_cross_entropy(logits, soft_targets(targets, momentum_logits, weight=weight))

    rows, columns = torch.randperm(batch, generator=generator), torch.randperm(batch + queue, generator=generator)
    value = loss(torch.arange(batch), torch.arange(batch + queue))
    assert value.isfinite()
    assert value >= -1e-6
    torch.testing.assert_close(loss(rows, columns), value, rtol=1e-4, atol=1e-5)


def test_the_bound_on_mutual_information_takes_a_number_or_a_filling_queue() -> None:
    loss = torch.tensor(1.5)
    assert mutual_information_bound(loss, 100).item() == pytest.approx(math.log(100) - 1.5)
    assert mutual_information_bound(loss, torch.tensor(100)).item() == pytest.approx(math.log(100) - 1.5)


def test_alignment_of_equal_opposite_and_right_angled_pairs() -> None:
    x = torch.eye(4)
    assert alignment(x, x).item() == 0
    assert alignment(x, -x).item() == pytest.approx(4)
    assert alignment(x, x.roll(1, 0)).item() == pytest.approx(2)


def test_uniformity_of_known_arrangements() -> None:
    assert uniformity(torch.eye(4)[:1].repeat(5, 1)).item() == pytest.approx(0)  # collapsed
    assert uniformity(torch.eye(6)).item() == pytest.approx(-4)  # all at right angles: |a - b|^2 = 2
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-8)  # antipodes


def test_uniformity_equals_the_slow_loop() -> None:
    rows = unit_rows(7, 3).double().tolist()
    potentials = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for i, x in enumerate(rows) for y in rows[:i]
    ]
    assert uniformity(torch.tensor(rows)).item() == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-6)


def test_modality_gap_is_the_distance_of_the_centres() -> None:
    x = torch.eye(4)[:1].repeat(3, 1)
    assert modality_gap(x, x).item() == 0
    assert modality_gap(x, -x).item() == pytest.approx(2)
    assert modality_gap(torch.eye(2), -torch.eye(2)).item() == pytest.approx(math.sqrt(2))


def test_health_of_a_single_pair_is_finite() -> None:
    x, y = unit_rows(1, 4), unit_rows(1, 4, seed=1)
    assert uniformity(x).item() == 0
    assert alignment(x, y).isfinite()
    assert modality_gap(x, y).item() == pytest.approx(math.sqrt(alignment(x, y).item()), rel=1e-6)


def test_the_age_gap_equals_the_slow_loop() -> None:
    query, keys = unit_rows(5, 4).double(), unit_rows(11, 4).double()
    random = torch.Generator().manual_seed(3)
    fresh, oldest = (torch.rand(5, 11, generator=random) < 0.4 for _ in range(2))
    fresh[3] = False  # this query has no negative in the batch, and so no gap
    total = 0.0
    for row in range(5):
        means = []
        for which in (fresh, oldest):
            cosines = [float(query[row] @ keys[k]) for k in range(11) if which[row, k]]
            means.append(sum(cosines) / len(cosines) if cosines else None)
        total += 0.0 if None in means else (means[0] - means[1]) / 0.07  # type: ignore[operator]
    found = queue_age_gap(query, keys, fresh=fresh, oldest=oldest, temperature=0.07)
    assert found.item() == pytest.approx(total / 5, rel=1e-5)


def test_keys_that_drift_away_are_a_gap_and_keys_that_do_not_are_none() -> None:
    """Old keys turned by a known angle away from every query."""
    query = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1)
    now, before = torch.tensor([[0.8, 0.6, 0.0]]).repeat(3, 1), torch.tensor([[0.3, 0.0, math.sqrt(1 - 0.09)]]).repeat(3, 1)
    fresh = torch.tensor([True] * 3 + [False] * 3).repeat(4, 1)
    drifted = queue_age_gap(query, torch.cat([now, before]), fresh=fresh, oldest=~fresh, temperature=0.1)
    assert drifted.item() == pytest.approx((0.8 - 0.3) / 0.1, rel=1e-5)
    still = queue_age_gap(query, torch.cat([now, now]), fresh=fresh, oldest=~fresh, temperature=0.1)
    assert still.item() == pytest.approx(0, abs=1e-6)
    assert (
        queue_age_gap(query, now, fresh=fresh[:, :3], oldest=torch.zeros(4, 3, dtype=torch.bool), temperature=0.1).item() == 0
    )


def test_centred_queued_keys_are_as_similar_on_average_as_fresh_ones_and_a_shift_of_one_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, generator=generator)  # 5 queries, their own keys first, 4 in the queue
    others = ~torch.eye(5, 9, dtype=torch.bool)

    def centred(logits: Tensor, valid: Tensor | None = None) -> Tensor:
        counted = others if valid is None else others & valid
        sums, counts = (logits * counted).sum(dim=0), counted.sum(dim=0)
        return logits + centring_shift(sums, counts, num_fresh=5, valid=valid)

    shifted = centred(logits)
    assert torch.equal(shifted[:, :5], logits[:, :5])
    fresh = torch.stack([logits[others[:, key], key].mean() for key in range(5)]).mean()
    torch.testing.assert_close(shifted[:, 5:].mean(dim=0), fresh.expand(4))
    further_away = logits - torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 3, 4])
    torch.testing.assert_close(centred(further_away), shifted)
    valid = torch.tensor([True] * 7 + [False] * 2)
    assert torch.equal(centred(logits, valid)[:, 7:], logits[:, 7:])


def test_the_gradient_of_centred_logits_knows_no_common_direction_of_the_queue() -> None:
    queue_logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = torch.cat([torch.eye(5) * 3, queue_logits], dim=1)
    others = ~torch.eye(5, 9, dtype=torch.bool)
    shift = centring_shift((logits * others).sum(dim=0), others.sum(dim=0), num_fresh=5)
    soft_cross_entropy(logits + shift, identity_targets(5, 9)).backward()
    assert queue_logits.grad is not None
    assert queue_logits.grad.abs().max() > 1e-3
    torch.testing.assert_close(queue_logits.grad.sum(dim=0), torch.zeros(4), rtol=0, atol=1e-6)
