"""Which tokens does MLM hide, and behind what?"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MaskedTokens(NamedTuple):
    """One caption with M tokens hidden."""

    input_ids: NDArray[np.int64]
    """[L] what the model reads."""
    positions: NDArray[np.int64]
    """[M] where tokens were hidden, ascending."""
    labels: NDArray[np.int64]
    """[M] the true tokens there."""


def mask_tokens(
    input_ids: NDArray[np.int64],
    *,
    probability: float,
    mask_id: int,
    never_hidden_ids: Collection[int],
    random_ids: NDArray[np.int64],
    rng: np.random.Generator,
) -> MaskedTokens:
    """Hide each token with a probability: 80 % become [MASK], 10 % a random token, 10 % stay.

    Every position takes three draws, hidden or not, so that padding a caption further changes nothing.

    Args:
        input_ids: [L] token ids.
        probability: of a token to be hidden, 0 to 1.
        never_hidden_ids: tokens that are never hidden: [CLS] and padding.
        random_ids: [V'] the vocabulary that random tokens come from.

    Returns:
        New arrays; M may be 0.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    hide, kind, word = rng.random((len(input_ids), 3)).T
    replacements = random_ids[(word * len(random_ids)).astype(np.int64)]
    never_hidden = np.logical_or.reduce([input_ids == token for token in never_hidden_ids])
    hidden = (hide < probability) & ~never_hidden
    masked = np.where(hidden & (kind < 0.8), mask_id, input_ids)
    masked = np.where(hidden & (kind >= 0.8) & (kind < 0.9), replacements, masked)
    positions = np.flatnonzero(hidden)
    return MaskedTokens(masked, positions, input_ids[positions])
