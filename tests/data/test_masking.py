from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclx.data.masking import MaskedTokens, mask_tokens

PAD, CLS, MASK = 0, 1, 2
WORDS = np.arange(10, 110)


def mask(input_ids: np.ndarray, *, seed: int = 0, probability: float = 0.15) -> MaskedTokens:
    rng = np.random.default_rng(seed)
    return mask_tokens(input_ids, probability=probability, mask_id=MASK, never_hidden_ids=(CLS, PAD), random_ids=WORDS, rng=rng)


@given(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 10))
def test_only_words_are_hidden_and_everything_else_stays(seed: int, num_words: int, num_padding: int) -> None:
    input_ids = np.array([CLS, *range(200, 200 + num_words), *[PAD] * num_padding])
    masked = mask(input_ids, seed=seed, probability=0.5)
    assert (input_ids[masked.positions] >= 200).all()
    assert np.array_equal(masked.labels, input_ids[masked.positions])
    untouched = np.setdiff1d(np.arange(len(input_ids)), masked.positions)
    assert np.array_equal(masked.input_ids[untouched], input_ids[untouched])


def test_fifteen_percent_are_hidden_of_them_80_masked_10_replaced_10_kept() -> None:
    input_ids = np.full(100_000, 500)
    masked = mask(input_ids)
    now = masked.input_ids[masked.positions]
    assert len(masked.positions) / len(input_ids) == pytest.approx(0.15, abs=0.005)
    assert np.mean(now == MASK) == pytest.approx(0.8, abs=0.01)
    assert np.mean(now == 500) == pytest.approx(0.1, abs=0.01)
    replaced = now[(now != MASK) & (now != 500)]
    assert set(replaced.tolist()) == set(WORDS.tolist())


def test_an_empty_caption_hides_nothing() -> None:
    masked = mask(np.array([CLS, PAD]), probability=0.99)
    assert len(masked.positions) == len(masked.labels) == 0


def test_padding_a_caption_further_changes_nothing() -> None:
    short = np.array([CLS, *range(200, 208)])
    long = np.concatenate([short, np.full(7, PAD)])
    one, other = mask(short, seed=4, probability=0.4), mask(long, seed=4, probability=0.4)
    assert np.array_equal(one.input_ids, other.input_ids[: len(short)])
    assert np.array_equal(one.positions, other.positions)


def test_the_input_is_not_changed() -> None:
    input_ids = np.full(50, 500)
    mask(input_ids, probability=0.9)
    assert (input_ids == 500).all()
