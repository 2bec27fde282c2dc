"""Does a [CLS] embedding know the parts of its own sample? LMI, against the patches of an image or the tokens of a caption."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tclx.losses.contrastive import mask_out, similarity_logits
from tclx.losses.precision import full_precision


def local_mutual_information_loss(
    anchor: Tensor,
    local: Tensor,
    *,
    temperature: Tensor | float,
    valid: Tensor | None = None,
    own_row: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE that asks each [CLS] to prefer every local feature of its own sample.

    All N positives of a sample share one set of negatives, the valid local features of every other sample, so -log softmax
    reduces to softplus(logsumexp(negatives) - positive): O(B M N) where a row of logits for each positive is O(B M N N).

    Args:
        anchor: [B, D] L2-normalised online [CLS] embeddings.
        local: [M, N, D] momentum patches or tokens, M >= B when they come from several processes. L2-normalised, or shorter
            where patches were pooled.
        temperature: softmax temperature, > 0.
        valid: [M, N] bool, False at padding; None when every position is real (patches).
        own_row: [B] int64, which row of `local` an anchor belongs to; None when anchor i belongs to row i.
        excluded: [B, M] bool, True at a row whose features are no negatives of an anchor: another caption of its image, or
            the same image again. None excludes only the anchor's own row, as the released code does.

    Returns:
        Scalar in nats, >= 0: mean over the valid positions of a sample, then over samples. A sample without a valid position
        (an empty caption) or without a negative (a single pair) counts as 0.

    Source: Yang et al. 2022, arXiv:2202.10401, LMI.
    """
    num_anchors, (num_rows, num_locals) = len(anchor), local.shape[:2]
    if valid is None:
        valid = torch.ones(num_rows, num_locals, dtype=torch.bool, device=local.device)
    if own_row is None:
        own_row = torch.arange(num_anchors, device=local.device)

    logits_BMN = similarity_logits(anchor, local.flatten(0, 1), temperature=temperature).view(num_anchors, num_rows, num_locals)
    positive_BN = logits_BMN[torch.arange(num_anchors, device=local.device), own_row]
    not_negative_BM = own_row[:, None] == torch.arange(num_rows, device=local.device)
    if excluded is not None:
        not_negative_BM = not_negative_BM | excluded
    negatives_BMN = mask_out(logits_BMN, not_negative_BM[:, :, None] | ~valid)

    loss_BN = F.softplus(negatives_BMN.flatten(1).logsumexp(dim=1, keepdim=True) - positive_BN)
    counts_BN = valid[own_row]
    return ((loss_BN * counts_BN).sum(dim=1) / counts_BN.sum(dim=1).clamp(min=1)).mean()


def pool_patches(patches: Tensor, *, grid: tuple[int, int], pooled_grid: int) -> Tensor:
    """Average neighbouring patches, so that LMI compares regions at a fixed cost whatever the resolution.

    The patches come in normalised and the averages are not normalised again: a region whose patches disagree is short, and
    its similarities near 0.

    Args:
        patches: [B, rows * columns, D], row by row.
        grid: rows and columns of the image encoder's patches; any two numbers, they need not be multiples.
        pooled_grid: rows and columns to keep at most; a grid with fewer keeps its own, since a repeated patch says nothing new.

    Returns:
        [B, min(pooled_grid, rows) * min(pooled_grid, columns), D] fp32, row by row.

    Raises:
        RuntimeError: the number of patches is not rows * columns.

    Source: Yang et al. 2022, arXiv:2202.10401, patch pooling; equals their average pooling where the grid is a multiple.
    """
    pooled = (min(pooled_grid, grid[0]), min(pooled_grid, grid[1]))
    patches_BDHW = full_precision(patches).transpose(1, 2).reshape(len(patches), patches.shape[2], *grid)
    return F.adaptive_avg_pool2d(patches_BDHW, pooled).flatten(2).transpose(1, 2)
