"""What should a [CLS] embedding be close to? CMA and IMC as InfoNCE over keys, and what tells whether they go well.

The keys are the momentum features of a batch, those of other processes included, followed by the queue; a row's target says
which of them are its own. With q an online and k a momentum embedding, Y the ground truth and w the soft-label weight,

    CMA  image to text   soft_cross_entropy(q_image . k_text / t, w softmax(k_image . k_text / t) + (1 - w) Y)
         text to image   the same with the modalities exchanged
    IMC  image           soft_cross_entropy(q_image . k_image / t, Y)      k of the other view
         text            soft_cross_entropy(q_text . k_text / t, Y)        k of another dropout draw

Source: Yang et al. 2022, arXiv:2202.10401.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tclx.losses.precision import full_precision, inner_products


def similarity_logits(query: Tensor, keys: Tensor, *, temperature: Tensor | float, valid: Tensor | None = None) -> Tensor:
    """Inner products over the temperature: what every softmax of this room is taken of.

    Args:
        query: [B, D] L2-normalised embeddings.
        keys: [M, D] L2-normalised embeddings.
        temperature: > 0; a 0-D tensor when it is learned.
        valid: [M] bool, False at a key that must not count, such as a queue slot never filled; None when all count.

    Returns:
        [B, M] fp32. The column of an invalid key holds the lowest finite number: probability 0, gradient 0.
    """
    # Scaling the [B, D] query, not the [B, M] product, saves a pass over the queue and a copy of it for the backward pass.
    logits = inner_products(full_precision(query) / temperature, keys)
    return logits if valid is None else mask_out(logits, ~valid)


def mask_out(logits: Tensor, mask: Tensor) -> Tensor:
    """Give the masked logits probability 0.

    Args:
        logits: any shape, floating point.
        mask: bool, broadcastable to logits; True where nothing must count.

    Returns:
        Like logits, the lowest finite number where masked: a row without any other entry would turn -inf into NaN gradients.
    """
    return logits.masked_fill(mask, torch.finfo(logits.dtype).min)


def target_distribution(query_index: Tensor, key_index: Tensor) -> Tensor:
    """The ground truth: a row's mass, shared equally by all keys of its own image.

    Args:
        query_index: [B] int64, which image a row belongs to; each occurs among the keys.
        key_index: [M] int64, the same for the keys; a negative number that no row has at a slot that belongs to none.

    Returns:
        [B, M] fp32, rows sum to 1. A row whose image is not among the keys is 0 and costs nothing.

    Source: for one caption an image the one-hot target of Yang et al. 2022, arXiv:2202.10401; for several, their released
        retrieval fine-tuning.
    """
    same = (query_index[:, None] == key_index).float()
    return same / same.sum(dim=1, keepdim=True).clamp(min=1)


@torch.no_grad()
def soft_targets(targets: Tensor, momentum_logits: Tensor, *, weight: Tensor | float) -> Tensor:
    """Momentum distillation: part of the target is what the momentum model itself predicts.

    Args:
        targets: [B, M], rows sum to 1.
        momentum_logits: [B, M] of the momentum model, against the same keys with the same ones invalid.
        weight: share of the momentum model's prediction, 0 to 1; a number or a 0-D tensor.

    Returns:
        [B, M] without gradient, fp32, rows sum to 1.

    Source: Li et al. 2021, arXiv:2107.07651, section 3.3.
    """
    return weight * full_precision(momentum_logits).softmax(dim=1) + (1 - weight) * targets


def centring_shift(sums: Tensor, counts: Tensor, *, num_fresh: int, valid: Tensor | None = None) -> Tensor:
    """What to add to the logits against each key so that old keys are, on average, as similar to the queries as fresh ones.

    Keys of the queue come from a model that has moved on. Moving all queries away from them lowers InfoNCE without any query
    having found its own key; with the shift, in which the gradient of the mean counts, it changes nothing: adding a number to
    all logits against a queued key leaves them, shifted, as they were.

    Args:
        sums: [K] over the queries of the logits against each key, its own queries left out.
        counts: [K] how many queries those were.
        num_fresh: keys of the batch, which stand first; they are not shifted.
        valid: [K] bool, False at a slot never filled; None where all count.

    Returns:
        [K] fp32, 0 at fresh and at invalid keys.
    """
    means = sums / counts.clamp(min=1)
    shift = means[:num_fresh].mean() - means[num_fresh:]
    if valid is not None:
        shift = shift * valid[num_fresh:]
    return torch.cat([shift.new_zeros(num_fresh), shift])


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution; with a one-hot target, InfoNCE.

    Args:
        logits: [B, M], B >= 1; -inf is allowed where the target is 0.
        targets: [B, M] probabilities.

    Returns:
        Scalar in nats, >= 0: mean over rows.

    Source: van den Oord et al. 2018, arXiv:1807.03748.
    """
    log_probabilities = full_precision(logits).log_softmax(dim=1).masked_fill(targets == 0, 0)  # 0 log 0 = 0
    return -(targets * log_probabilities).sum(dim=1).mean()


def mutual_information_bound(loss: Tensor, num_candidates: int | Tensor) -> Tensor:
    """How much two views tell about each other, at least: log(number of candidates) minus the InfoNCE loss.

    Args:
        loss: InfoNCE with one-hot targets, in nats.
        num_candidates: keys each query is compared with, its positive included; a 0-D tensor where the queue is filling.

    Returns:
        Like loss, in nats: 0 when nothing is learned (below 0 when worse), at most log(num_candidates).

    Source: van den Oord et al. 2018, arXiv:1807.03748, section 2.3.
    """
    return (math.log(num_candidates) if isinstance(num_candidates, int) else num_candidates.log()) - loss


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of matched pairs; lower is better aligned.

    Args:
        x: [B, D] L2-normalised.
        y: [B, D] L2-normalised, row i matching row i of x.

    Returns:
        Scalar, 0 (equal) to 4 (opposite); 2 for pairs at right angles.

    Source: Wang and Isola 2020, arXiv:2005.10242.
    """
    return (full_precision(x) - full_precision(y)).square().sum(dim=1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 |a - b|^2) over all pairs of different rows; lower is more evenly spread.

    Args:
        x: [B, D] L2-normalised.

    Returns:
        Scalar, 0 (collapsed to one point; also for a single row) down to -8 and, for many points in many dimensions, about -4.

    Source: Wang and Isola 2020, arXiv:2005.10242, t = 2.
    """
    squared_distances = torch.pdist(full_precision(x)).square()
    if squared_distances.numel() == 0:
        return squared_distances.new_zeros(())
    return (-2 * squared_distances).logsumexp(dim=0) - math.log(squared_distances.numel())


def modality_gap(image: Tensor, text: Tensor) -> Tensor:
    """Distance between the centres of the two modalities: 0 when they share a region, up to 2 when they live apart.

    Args:
        image: [B, D] L2-normalised.
        text: [B, D] L2-normalised.

    Returns:
        Scalar, 0 to 2.

    Source: Liang et al. 2022, arXiv:2203.02053.
    """
    return torch.dist(full_precision(image).mean(dim=0), full_precision(text).mean(dim=0))


def queue_age_gap(query: Tensor, keys: Tensor, *, fresh: Tensor, oldest: Tensor, temperature: Tensor | float) -> Tensor:
    """How far the oldest negatives lie behind the batch's own, in temperatures: what is gained by telling keys by their age.

    Keys come from a model that moves on. Where the gap is larger than what separates a positive from the negatives of its
    batch, the loss falls without any query having found its own key.

    Args:
        query: [B, D] L2-normalised.
        keys: [K, D] L2-normalised.
        fresh: [B, K] bool, True at negatives from the batch.
        oldest: [B, K] bool, True at the negatives that have waited for longest.
        temperature: of the softmax, > 0.

    Returns:
        Scalar: mean cosine to the fresh ones minus mean cosine to the oldest, over the temperature, mean over queries; 0 where
        there are none of a kind.
    """
    cosine = full_precision(query) @ full_precision(keys).T

    def mean(which: Tensor) -> Tensor:
        return (cosine * which).sum(dim=1) / which.sum(dim=1).clamp(min=1)

    both = fresh.any(dim=1) & oldest.any(dim=1)
    return ((mean(fresh) - mean(oldest)) * both).mean() / temperature
