"""How good is a ranking? Recall at K, median rank and r_mean from scores and the image that each caption belongs to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tclx.tasks.retrieval import CUTOFFS

DEFAULT_CHUNK = 1024
"""Queries ranked at a time: with 25,000 keys, 1,024 fp32 rows are 100 MB."""


def rank_of_best_relevant(scores: Tensor, relevant: Tensor) -> Tensor:
    """Where the best-scored relevant key of each query stands when its keys are sorted by falling score.

    Equal scores are sorted by falling index, as a stable ascending sort read backwards does. This is what the official
    evaluation gets from `argsort()[::-1]`; it depends on nothing but the input, and it gives no credit for scoring everything
    the same: an index does not say what is relevant, so constant scores end at chance level.

    Args:
        scores: [Q, N] one row a query; larger is better.
        relevant: [Q, N] bool, at least one True in each row.

    Returns:
        [Q] int64, 0 for a query that is answered right away.

    Raises:
        ValueError: a score is NaN (which compares false everywhere and would pass for a perfect rank), or a row has nothing
            relevant.
    """
    if scores.isnan().any():
        raise ValueError("scores hold NaN: there is no ranking")
    if not relevant.any(dim=1).all():
        raise ValueError("a query without a relevant key has no rank")
    index = torch.arange(scores.shape[1], device=scores.device)
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    tied = scores == best
    best_index = torch.where(tied & relevant, index, -1).amax(dim=1, keepdim=True)
    return (scores > best).sum(dim=1) + (tied & (index > best_index)).sum(dim=1)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Percentage of queries whose best relevant key is among the first k; `ranks` count from 0."""
    return 100.0 * int((ranks < k).sum()) / len(ranks)


def median_rank(ranks: Tensor) -> float:
    """Median position of the best relevant key, counted from 1 (1 is perfect); `ranks` count from 0."""
    ordered, middle = ranks.sort().values, len(ranks) // 2
    lower = ordered[middle if len(ranks) % 2 else middle - 1]  # torch.median would give this one alone
    return float(lower + ordered[middle]) / 2 + 1


def summarise_ranks(image_to_text: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """The retrieval metrics from the ranks of both directions.

    Args:
        image_to_text: [I] ranks from 0, one an image.
        text_to_image: [T] ranks from 0, one a caption.

    Returns:
        `<direction>/r1`, `/r5`, `/r10` in percent, `<direction>/median_rank` from 1, and `r_mean`, the mean of the six recalls.
    """
    metrics: dict[str, float] = {}
    for direction, ranks in (("text_to_image", text_to_image), ("image_to_text", image_to_text)):
        metrics |= {f"{direction}/r{k}": recall_at_k(ranks, k) for k in CUTOFFS}
        metrics[f"{direction}/median_rank"] = median_rank(ranks)
    recalls = [value for name, value in metrics.items() if not name.endswith("median_rank")]
    return {**metrics, "r_mean": sum(recalls) / len(recalls)}


def retrieval_metrics(
    image_to_text: Tensor, text_to_image: Tensor, *, image_of_caption: Tensor, chunk_size: int = DEFAULT_CHUNK
) -> dict[str, float]:
    """Retrieval metrics of two whole score matrices.

    Args:
        image_to_text: [I, T] how well each caption answers each image; larger is better.
        text_to_image: [T, I] how well each image answers each caption. Only its own re-ranked candidates hold real scores, so
            it need not be the transpose.
        image_of_caption: [T] int64, the image that each caption describes. An image without a caption asks nothing.
        chunk_size: queries ranked at a time; changes the memory, never the result.

    Returns:
        As `summarise_ranks`.

    Raises:
        ValueError: a score is NaN.
    """
    images = torch.arange(image_to_text.shape[0], device=image_of_caption.device)
    asking = torch.isin(images, image_of_caption)
    return summarise_ranks(
        _ranks(image_to_text[asking], images[asking], image_of_caption, chunk_size),
        _ranks(text_to_image, image_of_caption, images, chunk_size),
    )


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `length` in order."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _ranks(scores: Tensor, image_of_query: Tensor, image_of_key: Tensor, chunk_size: int) -> Tensor:
    parts = [
        rank_of_best_relevant(scores[rows].float(), image_of_query[rows, None] == image_of_key)
        for rows in chunks(scores.shape[0], chunk_size)
    ]
    return torch.cat(parts)
