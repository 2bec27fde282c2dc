"""Which past features still serve as negatives: a ring of the newest momentum embeddings of both modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NO_IMAGE = -100
"""Image index of an entry that no image has filled yet."""


class FeatureQueue(nn.Module):
    """The last K momentum embeddings of images and of texts, with the index of the image each belongs to.

    Entries start as random unit vectors, as in the official code; `valid` tells them from real ones.

    Attributes:
        image, text: [K, D] fp32, L2-normalised.
        image_index: [K] int64, `NO_IMAGE` where unknown.
        pointer: 0-D int64, the entry that is overwritten next.
        filled: 0-D int64, how many entries were ever written, at most K.
    """

    image: Tensor
    text: Tensor
    image_index: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("image", functional.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("text", functional.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("image_index", torch.full((size,), NO_IMAGE))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """K."""
        return len(self.image)

    @property
    def valid(self) -> Tensor:
        """[K] bool, True at entries that hold real features."""
        return torch.arange(self.size, device=self.filled.device) < self.filled

    def oldest(self, share: float) -> Tensor:
        """[K] bool, True at the real features that were written first: this share of them, at least one where there is any."""
        slots = torch.arange(self.size, device=self.filled.device)
        # Until the ring is full the pointer stands behind the newest, and slot 0 is the oldest.
        age_rank = torch.where(self.filled < self.size, slots, (slots - self.pointer) % self.size)
        return (age_rank < (self.filled * share).ceil()) & self.valid

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, image_index: Tensor) -> None:
        """Write a batch over the oldest entries, wrapping around; of a batch larger than the queue its last K stay.

        Everything is computed on the device, so the host never waits.

        Args:
            image, text: [B, D] L2-normalised momentum embeddings; any B.
            image_index: [B] int64.
        """
        num_new = len(image)
        kept = min(num_new, self.size)
        first = self.pointer + (num_new - kept)
        slots = (first + torch.arange(kept, device=self.pointer.device)) % self.size
        for entries, new in ((self.image, image), (self.text, text), (self.image_index, image_index)):
            entries.index_copy_(0, slots, new[num_new - kept :].to(entries.dtype))
        self.pointer.add_(num_new).remainder_(self.size)
        self.filled.add_(num_new).clamp_(max=self.size)
