"""Do this image and this caption belong together? ITM, and the hard negatives that make the question worth asking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tclx.losses.contrastive import mask_out
from tclx.losses.precision import full_precision


@torch.no_grad()
def draw_hard_negatives(logits: Tensor, *, same_image: Tensor, noise: Tensor, own_column: Tensor | None = None) -> Tensor:
    """Draw one wrong partner a row, the more similar the likelier: softmax(logits) over the columns of other images.

    The maximum of logits plus Gumbel noise is such a draw, for all rows at once and without normalising; masking the logits
    cannot underflow to a row of zero probabilities, as masking the softmax does.

    Args:
        logits: [B, M] similarity logits of the rows to the batch's candidates (not the queue: it keeps no tokens).
        same_image: [B, M] bool, True at a candidate of the row's own image. A row with no other candidate draws uniformly
            among all columns but its own.
        noise: [B, M] fp32 uniform in [0, 1], the draw's only randomness.
        own_column: [B] int64, which column a row is itself; None when row i is column i.

    Returns:
        [B] int64 columns. With M = 1 there is no wrong partner and the row itself comes back: leave the negatives out then.

    Source: Yang et al. 2022, arXiv:2202.10401, ITM (the sampling of Li et al. 2021, arXiv:2107.07651); Gumbel-max: Maddison
        et al. 2014, arXiv:1411.0030.
    """
    columns = torch.arange(logits.shape[1], device=logits.device)
    own = columns[: len(logits), None] == columns if own_column is None else own_column[:, None] == columns
    candidate = ~(same_image | own)
    has_candidate = candidate.any(dim=1, keepdim=True)
    preference = full_precision(logits).masked_fill(~has_candidate, 0)
    preference = mask_out(preference, ~torch.where(has_candidate, candidate, ~own))

    limits = torch.finfo(noise.dtype)  # 0 and 1 would be noise of -inf and inf, which no logit can outweigh
    gumbel = -(-noise.clamp(limits.tiny, 1 - limits.eps).log()).log()
    return (preference + gumbel).argmax(dim=1)


def image_text_matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """ITM: cross-entropy of "these two belong together" over positives and hard negatives.

    Args:
        logits: [R, 2] of the matching head, R >= 1; column 1 means a match.
        labels: [R] int64, 1 for a true pair and 0 for a negative.

    Returns:
        Scalar in nats: mean over pairs. A head that has learned nothing costs the entropy of the labels, 0.6365 at 1 : 2.

    Source: Yang et al. 2022, arXiv:2202.10401, ITM.
    """
    return F.cross_entropy(full_precision(logits), labels)
