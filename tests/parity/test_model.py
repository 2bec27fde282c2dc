"""The model computes what the official code computed: same weights, same inputs, same draws."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tclx.losses.local_mi import pool_patches
from tclx.model.momentum import Pairs
from tclx.model.tcl import TCL, Encoded
from tclx.model.weights import load_initial_weights, read_weights, resize_position_embedding
from tests.model.tiny import ALL_TERMS, VOCAB_SIZE, tiny_spec

from .official import recorded_tensors

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


class Recorded(NamedTuple):
    """One official batch and everything recorded from it."""

    model: TCL
    tensors: dict[str, Tensor]
    mask: Tensor
    first: Encoded
    """View 1 of the images through the online encoders."""
    text: Encoded

    def official(self, name: str) -> Tensor:
        return self.tensors[f"pretrain_eval/{name}"]


def replayed(shared: Path, device: torch.device, form: str, *, inputs: int = 0) -> Recorded:
    objectives = ALL_TERMS if form == "pretrain" else {**ALL_TERMS, "mlm": None}
    model = TCL(tiny_spec(objectives), vocab_size=VOCAB_SIZE, pad_token_id=0).eval()
    path = shared / "parity" / f"{form}_init.safetensors"
    load_initial_weights(model, read_weights(path), source=path)
    model.to(device)
    Pairs.of(model.online, model.momentum).update(0.995)  # as the official forward pass begins
    tensors = recorded_tensors(shared, device)
    mask = tensors[f"pretrain/in{inputs}/attention_mask"].bool()
    with torch.no_grad():
        image = model.online.encode_image(tensors[f"pretrain/in{inputs}/image"])
        text = model.online.encode_text(tensors[f"pretrain/in{inputs}/input_ids"], mask)
    return Recorded(model, tensors, mask, image, text)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def pretrain(shared: Path, device: torch.device) -> Recorded:
    return replayed(shared, device, "pretrain")


@torch.no_grad()
def test_online_embeddings(pretrain: Recorded) -> None:
    torch.testing.assert_close(pretrain.first.embedding, pretrain.official("image_feat"), **TOLERANCE)
    torch.testing.assert_close(pretrain.text.embedding, pretrain.official("text_feat"), **TOLERANCE)


@torch.no_grad()
def test_momentum_embeddings_and_locals(pretrain: Recorded) -> None:
    momentum, tensors = pretrain.model.momentum, pretrain.tensors
    second = momentum.encode_image(tensors["pretrain/in0/image_aug"])
    text = momentum.encode_text(tensors["pretrain/in0/input_ids"], pretrain.mask)
    torch.testing.assert_close(second.embedding, pretrain.official("image_feat_m"), **TOLERANCE)
    torch.testing.assert_close(text.embedding, pretrain.official("text_feat_m"), **TOLERANCE)
    patches = pool_patches(momentum.project_image_locals(second.tokens), grid=momentum.image_encoder.grid, pooled_grid=2)
    torch.testing.assert_close(patches, pretrain.official("image_feat_m_l"), **TOLERANCE)
    torch.testing.assert_close(momentum.project_text_locals(text.tokens), pretrain.official("text_feat_m_l"), **TOLERANCE)


def matching_logits(recorded: Recorded, scenario: str) -> Tensor:
    """Of true pairs, wrong images, wrong captions, from one fusion pass."""
    fusion, tensors = recorded.model.online.fusion_encoder, recorded.tensors
    own = torch.arange(4, device=recorded.mask.device)
    texts = torch.cat([own, own, tensors[f"{scenario}/neg_text_idx"]])
    images = torch.cat([own, tensors[f"{scenario}/neg_image_idx"], own])
    keys_values = fusion.keys_values(recorded.first.tokens)
    fused = fusion(recorded.text.tokens[texts], recorded.mask[texts], keys_values, images)
    return recorded.model.head("itm")(fused[:, 0])


@torch.no_grad()
def test_matching_logits(pretrain: Recorded) -> None:
    torch.testing.assert_close(matching_logits(pretrain, "pretrain_eval"), pretrain.official("vl_output"), **TOLERANCE)


@torch.no_grad()
def test_masked_word_logits(pretrain: Recorded) -> None:
    online, masked = pretrain.model.online, pretrain.official("mlm_labels") != -100
    text = online.encode_text(pretrain.official("mlm_input_ids"), pretrain.mask)
    fused = online.fusion_encoder(text.tokens, pretrain.mask, online.fusion_encoder.keys_values(pretrain.first.tokens))
    torch.testing.assert_close(online.mlm_head(fused[masked]), pretrain.official("mlm_logits")[masked], **TOLERANCE)


@torch.no_grad()
def test_matching_in_the_retrieval_form(shared: Path, device: torch.device) -> None:
    recorded = replayed(shared, device, "retrieval", inputs=1)
    logits = matching_logits(recorded, "retrieval_eval")
    labels = torch.tensor([1] * 4 + [0] * 8, device=device)
    expected = json.loads((shared / "parity" / "expected.json").read_text(encoding="utf-8"))["scenarios"]["retrieval_eval"]
    torch.testing.assert_close(
        functional.cross_entropy(logits, labels), torch.tensor(expected["itm"], device=device), **TOLERANCE
    )


def test_position_embedding_interpolation(shared: Path, device: torch.device) -> None:
    tensors = recorded_tensors(shared, device, name="extras")
    resized = resize_position_embedding(tensors["pos_embed/in_4x4"], num_tokens=37)
    torch.testing.assert_close(resized, tensors["pos_embed/out_6x6"], **TOLERANCE)
