"""Which class is it? Cross-entropy against the truth, or partly against what the momentum model would answer."""

from __future__ import annotations

from torch import Tensor

from tclx.losses.precision import full_precision


def soft_label_cross_entropy(
    logits: Tensor, labels: Tensor, *, momentum_logits: Tensor | None, soft_label_weight: Tensor | float
) -> Tensor:
    """Cross-entropy of each row, the target a mixture of the truth and the momentum model's prediction.

    Args:
        logits: [M, C].
        labels: [M] int64, 0 to C - 1.
        momentum_logits: [M, C] of the momentum model; None trains on the truth alone, and the weight is not used.
        soft_label_weight: share of the momentum model's prediction in the target, 0 to 1.

    Returns:
        [M] in nats, >= 0.

    Source: Li et al. 2021, arXiv:2107.07651, section 3.3.
    """
    log_probabilities = full_precision(logits).log_softmax(dim=1)
    loss = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    if momentum_logits is not None:
        prediction = full_precision(momentum_logits.detach()).softmax(dim=1)
        loss = (1 - soft_label_weight) * loss - soft_label_weight * (prediction * log_probabilities).sum(dim=1)
    return loss
