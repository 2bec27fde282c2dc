"""Official checkpoints in and out: nothing lost, and exactly the official names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tclx.model.tcl import TCL
from tclx.model.weights import OfficialForm, import_official, official_state_dict, to_official
from tests.model.tiny import ALL_TERMS, tiny_spec

FORMS: tuple[OfficialForm, ...] = ("pretrain", "retrieval")
SIZES = {"pretrain": 256, "retrieval": 384}


def real_size(form: OfficialForm) -> TCL:
    """TCL as published, without memory."""
    spec = tiny_spec(
        ALL_TERMS if form == "pretrain" else {**ALL_TERMS, "mlm": None},
        image_encoder={"name": "vit_base_patch16_224", "image_size": SIZES[form]},
        text_encoder={"name": "bert-base-uncased", "num_layers": 6},
        fusion_encoder={"num_layers": 6},
        embed_dim=256,
        queue_size=65536,
    )
    with torch.device("meta"):
        return TCL(spec, vocab_size=30522, pad_token_id=0)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "parity" / "extras.json").read_text(encoding="utf-8"))
    return content["state_dict_keys"]


@pytest.mark.parametrize("form", FORMS)
def test_import_and_export_lose_nothing(shared: Path, form: OfficialForm) -> None:
    path = shared / "parity" / f"{form}_init.safetensors"
    theirs, ours = load_file(path), to_official(import_official(path), form=form)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("form", FORMS)
def test_the_real_size_model_has_the_official_names_and_shapes(recorded: dict[str, Any], form: OfficialForm) -> None:
    exported = official_state_dict(real_size(form), form=form)
    assert {name: list(tensor.shape) for name, tensor in exported.items()} == recorded[f"model_{form}"]["keys"]


@pytest.mark.parametrize("form", FORMS)
def test_the_real_size_model_has_as_many_trainable_parameters(recorded: dict[str, Any], form: OfficialForm) -> None:
    trainable = sum(parameter.numel() for parameter in real_size(form).parameters() if parameter.requires_grad)
    assert trainable == recorded[f"model_{form}"]["params_trainable"]
