"""Promises of the ranking figures: a slow loop agrees, ties are settled, nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tclx.tasks.retrieval.ranks import median_rank, rank_of_best_relevant, recall_at_k, retrieval_metrics, summarise_ranks


def slow_ranks(scores: Tensor, image_of_query: list[int], image_of_key: list[int]) -> list[int]:
    """The official evaluation in words: sort every row, find the first relevant key."""
    ranks = []
    for row, image in zip(scores.numpy(), image_of_query, strict=True):
        order = list(np.argsort(row, kind="stable")[::-1])
        ranks.append(min(position for position, key in enumerate(order) if image_of_key[key] == image))
    return ranks


@st.composite
def tied_retrieval(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """Few distinct scores, so that ties abound; every image has a caption."""
    num_images = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, num_images - 1), max_size=8))
    image_of_caption = draw(st.permutations([*range(num_images), *extra]))
    cells = st.lists(st.sampled_from([-100.0, -0.5, 0.0, 0.25]), min_size=len(image_of_caption), max_size=len(image_of_caption))
    first = draw(st.lists(cells, min_size=num_images, max_size=num_images))
    second = draw(st.lists(cells, min_size=num_images, max_size=num_images))
    return torch.tensor(first), torch.tensor(second).T.contiguous(), list(image_of_caption)


@settings(deadline=None, max_examples=60)
@given(tied_retrieval(), st.integers(1, 7))
def test_figures_equal_a_slow_loop_with_ties_in_any_chunks(case: tuple[Tensor, Tensor, list[int]], chunk_size: int) -> None:
    image_to_text, text_to_image, owner = case
    numbers = list(range(image_to_text.shape[0]))
    expected = summarise_ranks(
        torch.tensor(slow_ranks(image_to_text, numbers, owner)), torch.tensor(slow_ranks(text_to_image, owner, numbers))
    )
    found = retrieval_metrics(image_to_text, text_to_image, image_of_caption=torch.tensor(owner), chunk_size=chunk_size)
    assert found == expected


def test_constant_scores_end_at_chance_level() -> None:
    found = retrieval_metrics(torch.zeros(100, 100), torch.zeros(100, 100), image_of_caption=torch.arange(100))
    assert found["text_to_image/r1"] == pytest.approx(1.0)
    assert found["image_to_text/r10"] == pytest.approx(10.0)
    assert found["text_to_image/median_rank"] == pytest.approx(50.5)


def test_identity_scores_are_perfect() -> None:
    found = retrieval_metrics(torch.eye(20), torch.eye(20), image_of_caption=torch.arange(20))
    assert found["r_mean"] == 100.0
    assert found["image_to_text/median_rank"] == 1.0


def test_r_mean_is_the_mean_of_six_recalls() -> None:
    figures = summarise_ranks(torch.tensor([0, 3, 7, 20]), torch.tensor([0, 0, 30]))
    expected = (25 + 50 + 75 + 200 / 3 + 200 / 3 + 200 / 3) / 6
    assert figures["r_mean"] == pytest.approx(expected)


def test_median_of_an_even_number_of_queries_lies_between() -> None:
    assert median_rank(torch.tensor([0, 1, 2, 9])) == 2.5
    assert recall_at_k(torch.tensor([0, 1, 2, 9]), 2) == 50.0


def test_a_image_without_caption_asks_nothing() -> None:
    found = retrieval_metrics(torch.eye(3)[:, :2], torch.eye(3)[:2], image_of_caption=torch.tensor([0, 1]))
    assert found["r_mean"] == 100.0


def test_nan_is_not_a_perfect_rank() -> None:
    with pytest.raises(ValueError, match="NaN"):
        rank_of_best_relevant(torch.full((1, 2), torch.nan), torch.tensor([[True, False]]))


def test_a_query_without_relevant_key_is_refused() -> None:
    with pytest.raises(ValueError, match="relevant"):
        rank_of_best_relevant(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
