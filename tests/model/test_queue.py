"""The feature queue against an obvious loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tclx.model.queue import NO_IMAGE, FeatureQueue

SIZE, WIDTH = 12, 4


def features(num: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, num, WIDTH, generator=generator)
    return image, text, torch.randint(0, 100, (num,), generator=generator)


@pytest.mark.parametrize("batches", [(4, 4, 4, 4), (5, 5, 5), (1,) * 15, (12, 3), (13, 1), (40, 7, 25), (3, 0, 3)])
def test_enqueue_is_a_ring_written_one_by_one(batches: tuple[int, ...]) -> None:
    queue = FeatureQueue(SIZE, WIDTH)
    image, text, index = queue.image.clone(), queue.text.clone(), queue.image_index.clone()
    written = 0
    for seed, num in enumerate(batches):
        batch = features(num, seed)
        queue.enqueue(*batch)
        for row in range(num):
            slot = written % SIZE
            image[slot], text[slot], index[slot] = batch[0][row], batch[1][row], batch[2][row]
            written += 1
        assert queue.pointer.item() == written % SIZE
        assert queue.valid.tolist() == [slot < written for slot in range(SIZE)]
    for ours, expected in ((queue.image, image), (queue.text, text), (queue.image_index, index)):
        assert torch.equal(ours, expected)


def test_it_starts_with_unit_vectors_of_no_image() -> None:
    queue = FeatureQueue(SIZE, WIDTH)
    torch.testing.assert_close(queue.image.norm(dim=1), torch.ones(SIZE))
    torch.testing.assert_close(queue.text.norm(dim=1), torch.ones(SIZE))
    assert not queue.valid.any()
    assert queue.image_index.tolist() == [NO_IMAGE] * SIZE


def test_features_of_half_precision_and_with_a_graph_are_stored_as_plain_fp32() -> None:
    queue = FeatureQueue(SIZE, WIDTH)
    image, text, index = features(4, 0)
    queue.enqueue(image.bfloat16(), text.requires_grad_(), index)
    assert queue.image.dtype == torch.float32
    assert not queue.text.requires_grad


@pytest.mark.parametrize("batches", [(1,), (5,), (4, 4, 4), (5, 5, 5), (12, 3), (13, 1), (7, 7, 7, 7), (40, 7, 25)])
@pytest.mark.parametrize("share", [1 / 8, 0.25, 0.5, 1.0])
def test_the_oldest_are_those_written_first(batches: tuple[int, ...], share: float) -> None:
    queue, slots_by_age = FeatureQueue(SIZE, WIDTH), list[int]()
    for seed, num in enumerate(batches):
        queue.enqueue(*features(num, seed))
        for row in range(num):
            slots_by_age.append((sum(batches[:seed]) + row) % SIZE)
    kept = slots_by_age[-SIZE:]
    wanted = sorted(kept[: math.ceil(share * len(kept))])
    assert queue.oldest(share).nonzero().flatten().tolist() == wanted


def test_an_empty_queue_has_no_oldest() -> None:
    assert not FeatureQueue(SIZE, WIDTH).oldest(1 / 8).any()
