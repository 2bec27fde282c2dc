"""Grounding as the official code does it: its two Grad-CAM maps and its IoU, recorded from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tclx.model.tcl import TCL
from tclx.model.weights import load_official
from tclx.tasks.evaluating import evaluating
from tclx.tasks.grad_cam import matching_maps, similarity_maps
from tclx.tasks.grounding.boxes import iou
from tests.parity.official import tiny_spec

RELATIVE = 1e-5
"""Of a map's largest value, 4e-4 and 6e-6; measured: 4e-7."""


class Recorded(NamedTuple):
    """The model, its inputs and the maps of the official code."""

    model: TCL
    image: Tensor
    ids: Tensor
    mask: Tensor
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Recorded:
    facts = json.loads((shared / "parity" / "extras.json").read_text(encoding="utf-8"))["grounding"]
    text = {
        "width": facts["bert"]["hidden_size"],
        "num_heads": facts["bert"]["num_attention_heads"],
        "intermediate_size": facts["bert"]["intermediate_size"],
        "max_positions": facts["bert"]["max_position_embeddings"],
    }
    spec = tiny_spec(
        form="retrieval",
        model={
            "image_encoder": {"name": "vit_base_patch16_224", "image_size": 384, "width": 24, "depth": 2, "num_heads": 12},
            "text_encoder": {"sizes": text, "num_layers": facts["bert"]["fusion_layer"], "dropout": 0.0},
            "fusion_encoder": {"num_layers": facts["bert"]["num_hidden_layers"] - facts["bert"]["fusion_layer"]},
            "embed_dim": 16,
            "queue_size": 12,
        },
    )
    model = TCL(spec, vocab_size=facts["bert"]["vocab_size"], pad_token_id=facts["bert"]["pad_token_id"])
    load_official(model, load_file(shared / "parity" / "grounding_init.safetensors"))
    tensors = load_file(shared / "parity" / "extras.safetensors")
    image = torch.sin(torch.arange(3 * 384 * 384, dtype=torch.float64) * 0.37).float().view(1, 3, 384, 384)
    return Recorded(model, image, tensors["grounding/ids"], tensors["grounding/att"].bool(), facts, tensors)


def assert_equal(found: Tensor, official: Tensor) -> None:
    torch.testing.assert_close(found, official, rtol=0, atol=RELATIVE * float(official.max()))


def test_the_map_of_the_matching_head(recorded: Recorded) -> None:
    """The published map is a mean over all places of a text, padding, which is 0, included."""
    model, mask = recorded.model, recorded.mask
    with evaluating(model), torch.no_grad():
        images = model.online.encode_image(recorded.image).tokens
        states = model.online.encode_text(recorded.ids, mask).tokens
        layer = recorded.facts["itm_block"] - recorded.facts["bert"]["fusion_layer"]
        maps, scores = matching_maps(model, model.online.fusion_encoder, states, mask, images, layer=layer)
    assert scores is not None
    official = recorded.tensors["grounding/itm_cam"]
    assert_equal((maps * mask[..., None]).mean(dim=1)[0].view(24, 24), official)


def test_the_map_of_the_similarity(recorded: Recorded) -> None:
    """The published map is that of the similarity divided by the temperature."""
    model = recorded.model
    with evaluating(model), torch.no_grad():
        text = model.online.encode_text(recorded.ids, recorded.mask).embedding
        maps, scores = similarity_maps(model, recorded.image, text, block=recorded.facts["itc_block"])
    assert -1 <= float(scores[0]) <= 1
    temperature = float(model.temperature("cma").detach())
    assert_equal(maps[0].view(24, 24) / temperature, recorded.tensors["grounding/itc_cam"])


def test_iou(shared: Path) -> None:
    golden = json.loads((shared / "parity" / "extras.json").read_text(encoding="utf-8"))["computeIoU"]
    assert len(golden) == 4
    for box, other, expected in golden:
        assert iou(tuple(box), tuple(other), official=True) == pytest.approx(expected, abs=1e-12)
    touching, beside = golden[2][:2]
    assert golden[2][2] == 0, "the official code takes an overlap of one pixel for none"
    assert iou(tuple(touching), tuple(beside)) == pytest.approx(1 / (100 + 25 - 1))
