"""What does one training step receive?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    from tclx.spec.data import NormalizationSpec
    from tclx.spec.experiment import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """What one process learns from in one forward pass: B rows of the training data. Tensors move between devices together."""

    row: Tensor
    """[B] int64: the training rows it comes from."""
    num_bad_images: int
    """Images that could not be read and were replaced by the next good row's."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; torch's loader calls this by name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_bad_images"}
        changed: dict[str, Any] = {name: None if tensor is None else change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Batch(RowBatch):
    """B image-text pairs of one process: images as bytes, captions as token ids padded to the longest, L tokens."""

    images: Tensor
    """[B, 3, S, S] uint8: the first augmented view."""
    images_second: Tensor | None
    """[B, 3, S, S] uint8: the second view; None when no term asks for one."""
    input_ids: Tensor
    """[B, L] int64: `[CLS]`, then the caption's tokens, then padding."""
    attention_mask: Tensor
    """[B, L] bool: False at padding."""
    masked_input_ids: Tensor | None
    """[B, L] int64: the ids that MLM reads; None when MLM is off."""
    mlm_positions: Tensor | None
    """[M] int64: the M hidden tokens as positions into the flattened B * L; M may be 0."""
    mlm_labels: Tensor | None
    """[M] int64: the true ids there."""
    image_index: Tensor
    """[B] int64: equal for equal images, dense from 0."""


def longest_batch(spec: ExperimentSpec) -> Batch:
    """One process's batch of nothing, every caption as long as the spec allows, with what its terms ask for."""
    objectives, size, num_tokens = spec.objectives, spec.training.batch_size_per_gpu, spec.data.max_caption_tokens
    pixels = (size, 3, spec.model.image_encoder.image_size, spec.model.image_encoder.image_size)
    rows, ids = torch.zeros(size, dtype=torch.int64), torch.zeros(size, num_tokens, dtype=torch.int64)
    masked = objectives.need(Needs.MASKED_WORDS)
    share = objectives.mlm.mask_probability if objectives.mlm is not None else 0.0
    words = torch.zeros(max(1, round(share * size * (num_tokens - 1))), dtype=torch.int64)
    return Batch(
        images=torch.empty(pixels, dtype=torch.uint8),
        images_second=torch.empty(pixels, dtype=torch.uint8) if objectives.need(Needs.SECOND_VIEW) else None,
        input_ids=ids,
        attention_mask=torch.ones(size, num_tokens, dtype=torch.bool),
        masked_input_ids=ids if masked else None,
        mlm_positions=words if masked else None,
        mlm_labels=words if masked else None,
        image_index=rows,
        row=rows,
        num_bad_images=0,
    )


def normalise(images: Tensor, spec: NormalizationSpec) -> Tensor:
    """Images as the image encoder reads them, on the device they are on.

    Args:
        images: [..., 3, H, W] uint8, RGB.

    Returns:
        [..., 3, H, W] fp32: (images / 255 - mean) / std per channel.
    """
    normalised = images.float()
    # Python scalars per channel: a tensor of means made here would be a host-to-device copy, hence a sync, in every step.
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        normalised[..., channel, :, :].sub_(255 * mean).div_(255 * std)
    return normalised
