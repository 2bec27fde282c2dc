"""Promises of Grad-CAM through the image encoder; that through the fusion encoder is in retrieval/test_attention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tclx.errors import InputError
from tclx.model.tcl import TCL
from tclx.tasks.evaluating import evaluating
from tclx.tasks.grad_cam import matching_maps, similarity_maps
from tests.model.tiny import VIT, VOCAB_SIZE, tiny_spec

NUM_HEADS, GRID = 3, 4


def built(**changes: Any) -> TCL:
    model = TCL(tiny_spec(**changes), vocab_size=VOCAB_SIZE, pad_token_id=0).double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def pairs(num: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(num, 3, 64, 64, generator=generator, dtype=torch.float64)
    texts = torch.randn(num, 16, generator=generator, dtype=torch.float64)
    return images, nn.functional.normalize(texts, dim=-1)


def similarity(model: TCL, image: Tensor, text: Tensor, *, block: int, head: int, place: int, by: float) -> tuple[float, float]:
    """Of one pair, where [CLS] looks at a patch so much more than it would; and the weight that it would give it."""
    attention = model.online.image_encoder.body.blocks[block].attn
    seen: list[float] = []

    def nudge(module: nn.Module, inputs: object, weights: Tensor) -> Tensor:
        seen.append(float(weights[0, head, 0, place]))
        nudged = weights.clone()
        nudged[0, head, 0, place] += by
        return nudged

    hook, attention.fused_attn = attention.attn_drop.register_forward_hook(nudge), False
    with torch.no_grad():
        found = model.online.encode_image(image[None]).embedding
    hook.remove()
    assert found is not None
    return float(found[0] @ text.to(found.dtype)), seen[0]


@pytest.mark.parametrize("block", [0, 1])
def test_a_map_says_how_much_the_similarity_rises_with_a_weight(block: int) -> None:
    model, (images, texts) = built(), pairs(1)
    maps, scores = similarity_maps(model, images, texts, block=block)
    assert maps.shape == (1, GRID**2)
    for patch in (0, 7, 15):
        raised = 0.0
        for head in range(NUM_HEADS):
            up, weight = similarity(model, images[0], texts[0], block=block, head=head, place=patch + 1, by=1e-2)
            down, _ = similarity(model, images[0], texts[0], block=block, head=head, place=patch + 1, by=-1e-2)
            raised += max((up - down) / 2e-2, 0.0) * weight / NUM_HEADS
        assert float(maps[0, patch]) == pytest.approx(raised, rel=0.02, abs=1e-5)
    plain, _ = similarity(model, images[0], texts[0], block=block, head=0, place=0, by=0.0)
    assert float(scores[0]) == pytest.approx(plain, abs=1e-5)


def test_the_block_two_thirds_up_is_the_default() -> None:
    model, (images, texts) = built(image_encoder={**VIT, "depth": 3}), pairs()
    first, last, default = (similarity_maps(model, images, texts, block=block)[0] for block in (0, 2, None))
    assert torch.equal(default, last)
    assert not torch.allclose(first, last, rtol=0.01)


def test_pairs_have_the_maps_that_they_have_alone() -> None:
    model, (images, texts) = built(), pairs()
    together, _ = similarity_maps(model, images, texts)
    alone = torch.cat([similarity_maps(model, images[row : row + 1], texts[row : row + 1])[0] for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-8)


def test_recomputing_activations_changes_no_map() -> None:
    images, texts = pairs()
    plain, recomputing = built(), built(training={"activation_checkpointing": True})
    assert recomputing.online.image_encoder.body.grad_checkpointing
    maps = [similarity_maps(model, images, texts, block=0)[0] for model in (plain, recomputing)]
    assert float(maps[0].max()) > 0
    torch.testing.assert_close(maps[0], maps[1])


def test_a_frozen_image_encoder_has_maps_too() -> None:
    images, texts = pairs()
    maps = [similarity_maps(built(image_encoder={**VIT, "frozen": frozen}), images, texts)[0] for frozen in (False, True)]
    torch.testing.assert_close(maps[0], maps[1])


def test_the_image_encoder_is_left_as_it_was() -> None:
    model, (images, texts) = built().train(), pairs()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    attention = model.online.image_encoder.body.blocks[1].attn
    attention.fused_attn = True
    with evaluating(model):
        similarity_maps(model, images, texts)
    assert attention.fused_attn is True
    assert not attention.attn_drop._forward_hooks
    assert model.training
    assert all((parameter.grad == 1).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "resnet18", "image_size": 64},
        {"name": "vit_base_patch16_siglip_gap_224", "image_size": 64, "width": 24, "depth": 2, "num_heads": 3},
    ],
    ids=["a CNN", "a ViT without [CLS]"],
)
def test_where_no_class_token_looks_there_is_no_map(encoder: dict[str, Any]) -> None:
    model, (images, texts) = built(image_encoder=encoder), pairs()
    with pytest.raises(
        InputError, match=r"model\.image_encoder: block \d of this image encoder has no attention of a class token"
    ):
        similarity_maps(model, images, texts)


def test_a_block_that_is_not_there_is_refused() -> None:
    model, (images, texts) = built(), pairs()
    with pytest.raises(InputError, match=r"block 2 .*it has 2 blocks, from 0"):
        similarity_maps(model, images, texts, block=2)


def test_layers_of_the_fusion_encoder_count_from_0() -> None:
    model, (images, _) = built(), pairs()
    fusion = model.online.fusion_encoder
    ids, mask = torch.randint(5, 60, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
    with torch.no_grad():
        seen, said = model.online.encode_image(images).tokens, model.online.encode_text(ids, mask).tokens
    middle, first, last = (matching_maps(model, fusion, said, mask, seen, layer=layer)[0] for layer in (None, 0, 1))
    assert torch.equal(middle, first)
    assert not torch.allclose(first, last, rtol=0.01)
    assert first.shape == (3, 6, GRID**2)
    with pytest.raises(ValueError, match="none of them number 2"):
        matching_maps(model, fusion, said, mask, seen, layer=2)
