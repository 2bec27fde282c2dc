"""Whatever precision the network runs in and wherever its tensors live, a loss is fp32 and nobody waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tclx.losses.contrastive import (
    alignment,
    modality_gap,
    mutual_information_bound,
    similarity_logits,
    soft_cross_entropy,
    soft_targets,
    target_distribution,
    uniformity,
)
from tclx.losses.local_mi import local_mutual_information_loss, pool_patches
from tclx.losses.masked_lm import masked_language_modeling_loss
from tclx.losses.matching import draw_hard_negatives, image_text_matching_loss

from .samples import unit_rows

Loss = Callable[[Tensor], Tensor]


def contrastive(x: Tensor) -> Tensor:
    device = x.device
    keys, valid = torch.cat([x.detach(), x.detach().flip(0)]), torch.arange(8, device=device) < 6
    index = torch.arange(4, device=device)
    targets = target_distribution(index, torch.cat([index, index]))
    logits = similarity_logits(x, keys, temperature=0.07, valid=valid)
    return soft_cross_entropy(logits, soft_targets(targets, logits, weight=0.4))


def soft_labels(x: Tensor) -> Tensor:
    targets = target_distribution(torch.arange(4, device=x.device), torch.arange(8, device=x.device))
    return soft_cross_entropy(x, soft_targets(targets, 2 * x, weight=0.4))


def local_mi(x: Tensor) -> Tensor:
    patches = pool_patches(x.detach()[:, None].expand(4, 6, 8), grid=(2, 3), pooled_grid=2)
    valid = torch.arange(4, device=x.device) < torch.arange(4, device=x.device)[:, None]
    own_row = torch.arange(4, device=x.device)
    return local_mutual_information_loss(x, patches, temperature=0.07, valid=valid, own_row=own_row, excluded=valid)


def matching(x: Tensor) -> Tensor:
    logits = similarity_logits(x, x, temperature=0.07)
    same_image = torch.zeros(4, 4, dtype=torch.bool, device=x.device)
    rows = draw_hard_negatives(logits, same_image=same_image, noise=torch.rand(4, 4, device=x.device))
    return image_text_matching_loss(torch.cat([x, x[rows]])[:, :2], torch.arange(8, device=x.device) // 4)


def masked_lm(x: Tensor) -> Tensor:
    labels = torch.arange(4, device=x.device)
    return masked_language_modeling_loss(x, labels, momentum_logits=x, soft_label_weight=0.4)


def health(x: Tensor) -> Tensor:
    bound = mutual_information_bound(alignment(x, x.flip(0)), torch.ones((), device=x.device))
    return bound + modality_gap(x, x.flip(0)) + uniformity(x)


every_loss = pytest.mark.parametrize("loss", [contrastive, soft_labels, local_mi, matching, masked_lm, health])


@every_loss
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_give_the_fp32_loss_of_the_same_numbers(loss: Loss, dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    x = unit_rows(4, 8).to(dtype)
    expected = loss(x.float())
    torch.manual_seed(0)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        value = loss(leaf)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    assert leaf.grad.isfinite().all()


@every_loss
def test_autocast_does_not_touch_fp32_features(loss: Loss) -> None:
    x = unit_rows(4, 8)
    torch.manual_seed(0)
    expected = loss(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(x), expected)


@contextmanager
def device_that_cannot_answer(name: str) -> Iterator[torch.device]:
    """A device on which reading a value back is an error: meta has none, CUDA is told to refuse."""
    if name == "meta":
        yield torch.device("meta")
        return
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the meta device answers the same question for everything but kernels that synchronise inside")
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield torch.device("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_loss
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_loss_waits_for_the_device(loss: Loss, device: str) -> None:
    with device_that_cannot_answer(device) as silent:
        leaf = torch.randn(4, 8, device=silent, requires_grad=True)
        value = loss(leaf)
        value.backward()
        assert value.shape == ()
        assert leaf.grad.shape == leaf.shape
