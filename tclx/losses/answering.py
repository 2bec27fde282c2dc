"""Which words does an answer consist of? The negative log-likelihood of whole answers."""

from __future__ import annotations

from torch import Tensor

from tclx.losses.cross_entropy import soft_label_cross_entropy


def answer_losses(
    logits: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    *,
    momentum_logits: Tensor | None = None,
    soft_label_weight: Tensor | float = 0.0,
) -> Tensor:
    """The sum over each answer's words of the cross-entropy of the next word.

    Args:
        logits: [R, L, V] of the next word at every place.
        answer_ids: [R, L] int64, [CLS] first; the last word is the end, and what stands there predicts nothing.
        answer_mask: [R, L] bool, False at padding.
        momentum_logits: [R, L, V] of the momentum model; None trains on the truth alone.
        soft_label_weight: share of the momentum model's prediction in the target, 0 to 1.

    Returns:
        [R] in nats.

    Source: Li et al. 2021, arXiv:2107.07651, section 4. The published code never lets the momentum model's prediction reach the
    loss; here it does.
    """
    places = answer_mask[:, 1:]
    losses = soft_label_cross_entropy(
        logits[:, :-1].flatten(0, 1),
        answer_ids[:, 1:].flatten(),
        momentum_logits=None if momentum_logits is None else momentum_logits[:, :-1].flatten(0, 1),
        soft_label_weight=soft_label_weight,
    )
    return (losses.view(places.shape) * places).sum(dim=1)
