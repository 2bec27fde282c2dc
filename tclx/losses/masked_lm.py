"""Which word is hidden here? MLM, on the masked positions alone."""

from __future__ import annotations

from torch import Tensor

from tclx.losses.cross_entropy import soft_label_cross_entropy


def masked_language_modeling_loss(
    logits: Tensor, labels: Tensor, *, momentum_logits: Tensor | None, soft_label_weight: Tensor | float
) -> Tensor:
    """MLM: cross-entropy against the hidden word, or partly against what the momentum model would answer.

    Args:
        logits: [M, V] at the M masked positions of the batch.
        labels: [M] int64 hidden words, 0 to V - 1.
        momentum_logits: [M, V] of the momentum model at the same positions; None trains on the ground truth alone, and the
            weight is not used.
        soft_label_weight: share of the momentum model's prediction in the target, 0 to 1.

    Returns:
        Scalar in nats, >= 0: mean over positions; 0, with zero gradients, when no word was masked.

    Source: Devlin et al. 2018, arXiv:1810.04805; soft labels: Li et al. 2021, arXiv:2107.07651, section 3.3.
    """
    loss = soft_label_cross_entropy(logits, labels, momentum_logits=momentum_logits, soft_label_weight=soft_label_weight)
    return loss.sum() / max(len(labels), 1)
