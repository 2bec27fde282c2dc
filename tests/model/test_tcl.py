"""The whole model: what the objectives need, and nothing else."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from tclx.errors import InputError
from tclx.model.tcl import TCL
from tests.model.tiny import ALL_TERMS, VOCAB_SIZE, tiny_spec

TERMS = tuple(ALL_TERMS)
OWN = {"temperature": {"initial": 0.1}}


def model(objectives: dict[str, Any] = ALL_TERMS, **changes: Any) -> TCL:
    return TCL(tiny_spec(objectives, **changes), vocab_size=VOCAB_SIZE, pad_token_id=0)


def some_terms() -> list[tuple[str, ...]]:
    return [terms for number in range(1, 6) for terms in combinations(TERMS, number)]


@pytest.mark.parametrize("terms", some_terms(), ids="+".join)
def test_a_term_that_is_off_builds_nothing(terms: tuple[str, ...]) -> None:
    tcl = model({term: {} for term in terms})
    contrastive, fused = {"cma", "imc", "lmi"} & set(terms), {"itm", "mlm"} & set(terms)
    assert (tcl.online.image_projection is not None) == (tcl.online.text_projection is not None) == bool(contrastive)
    assert (tcl.online.fusion_encoder is not None) == bool(fused)
    assert (tcl.online.mlm_head is not None) == ("mlm" in terms)
    assert (tcl.head("itm") is not None) == ("itm" in terms)
    assert (tcl.queue is not None) == bool({"cma", "imc"} & set(terms))
    assert (tcl.momentum is not None) == bool(contrastive or "mlm" in terms)
    if tcl.momentum is not None:
        assert (tcl.momentum.fusion_encoder is not None) == (tcl.momentum.mlm_head is not None) == ("mlm" in terms)
    names = " ".join(name for name in tcl.state_dict())
    assert ("temperatures" in names) == bool(contrastive)
    assert ("fusion" in names) == bool(fused)


def test_without_soft_labels_mlm_needs_no_momentum() -> None:
    assert model({"mlm": {}, "soft_labels": None}).momentum is None
    assert model({**ALL_TERMS, "soft_labels": None}).momentum.fusion_encoder is None


def test_a_queue_of_size_0_is_none() -> None:
    assert model(queue_size=0).queue is None


def test_a_missing_fusion_encoder_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.fusion_encoder"):
        model(fusion_encoder=None)


def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = model(seed=1), model(seed=1), model(seed=2)
    assert torch.equal(torch.rand(3), expected)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.online.image_projection.weight, other.online.image_projection.weight)
    assert not torch.equal(first.queue.image, other.queue.image)


def test_momentum_encoders_start_equal_apart_and_frozen() -> None:
    tcl = model()
    online = dict(tcl.online.named_parameters())
    for name, parameter in tcl.momentum.named_parameters():
        assert torch.equal(parameter, online[name])
        assert parameter.data_ptr() != online[name].data_ptr()
        assert not parameter.requires_grad


def test_the_momentum_mlm_head_is_tied_to_the_momentum_words() -> None:
    tcl = model()
    states = torch.randn(2, 24)
    before, online_before = tcl.momentum.mlm_head(states), tcl.online.mlm_head(states)
    tcl.momentum.text_encoder.word_embeddings.weight.add_(1)
    assert not torch.equal(tcl.momentum.mlm_head(states), before)
    assert torch.equal(tcl.online.mlm_head(states), online_before)


def test_no_two_tensors_of_the_state_share_memory() -> None:
    addresses = [tensor.data_ptr() for tensor in model().state_dict().values()]
    assert len(set(addresses)) == len(addresses)


def test_embeddings_and_locals_are_unit_vectors_in_fp32() -> None:
    tcl = model()
    mask = torch.arange(9) < torch.tensor([[9], [1]])
    with torch.autocast("cpu", torch.bfloat16):
        image = tcl.online.encode_image(torch.randn(2, 3, 64, 64))
        text = tcl.online.encode_text(torch.randint(5, VOCAB_SIZE, (2, 9)) * mask, mask)
        patches, tokens = tcl.online.project_image_locals(image.tokens), tcl.online.project_text_locals(text.tokens)
    assert patches.shape == (2, 16, 16)
    assert tokens.shape == (2, 8, 16)
    for each in (image.embedding, text.embedding, patches, tokens):
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.norm(dim=-1), torch.ones(each.shape[:-1]))


def test_a_model_without_contrastive_terms_has_no_embeddings() -> None:
    tcl = model({"itm": {}, "mlm": {}})
    image = tcl.online.encode_image(torch.randn(1, 3, 64, 64))
    assert image.embedding is None
    with pytest.raises(TypeError, match="no term of this model needs projections"):
        tcl.online.project_image_locals(image.tokens)


@pytest.mark.parametrize(
    ("objectives", "learned", "fixed"),
    [
        ({"cma": {}, "imc": {}}, {"shared"}, set()),
        ({"cma": OWN, "imc": {}}, {"cma", "shared"}, set()),
        ({"cma": OWN, "imc": OWN, "lmi": OWN, "itm": {}}, {"cma", "imc", "lmi"}, set()),
        ({"imc": OWN}, {"imc"}, set()),
        ({"imc": OWN, "itm": {}}, {"imc"}, {"shared"}),  # only hard negatives use the shared one, and nothing can train it
        ({"cma": {}, "temperature": {"learned": False}}, set(), {"shared"}),
        ({"itm": {}, "mlm": {}}, set(), set()),
    ],
)
def test_temperatures_in_use(objectives: dict[str, Any], learned: set[str], fixed: set[str]) -> None:
    temperatures = model(objectives).temperatures
    assert {name for name, _ in temperatures.named_parameters()} == learned
    assert {name for name, _ in temperatures.named_buffers()} == fixed


def test_a_terms_own_temperature_is_used_for_it_alone() -> None:
    tcl = model({"cma": {}, "imc": OWN})
    assert tcl.temperature("imc").item() == pytest.approx(0.1)
    assert tcl.temperature("cma").item() == pytest.approx(0.07)
    assert tcl.temperature("lmi") is tcl.temperature("cma")


def test_clamping_moves_every_temperature_into_its_own_bounds_in_place() -> None:
    tcl = model({"cma": {}, "imc": {"temperature": {"initial": 0.1, "maximum": 0.2, "learned": False}}})
    shared = tcl.temperature("cma")
    with torch.no_grad():
        shared.fill_(9.0)
        tcl.temperature("imc").fill_(0.0)
    tcl.clamp_temperatures()
    assert tcl.temperature("cma") is shared
    assert shared.item() == pytest.approx(0.5)
    assert tcl.temperature("imc").item() == pytest.approx(0.001)


def test_the_meta_device_allocates_nothing_and_loads_no_weights() -> None:
    with torch.device("meta"):
        tcl = model(image_encoder={"name": "test_vit", "image_size": 64, "weights": "/nowhere.safetensors"})
    assert all(tensor.is_meta for tensor in tcl.state_dict().values())


def test_a_cnn_can_be_the_image_encoder() -> None:
    tcl = model(image_encoder={"name": "test_resnet", "image_size": 64})
    image = tcl.online.encode_image(torch.randn(2, 3, 64, 64))
    fused = tcl.online.fusion_encoder(
        torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool), tcl.online.fusion_encoder.keys_values(image.tokens)
    )
    assert tcl.online.project_image_locals(image.tokens).shape == (2, 4, 16)
    assert fused.isfinite().all()
