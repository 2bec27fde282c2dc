"""Adapters: nothing changes at first, they alone learn, and the plain model that computes the same can be made of any state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tclx
from tclx.errors import InputError
from tclx.model.lora import merged, unused_adapters
from tclx.model.tcl import TCL
from tclx.model.text import build_text
from tclx.model.weights import from_official, load_initial_weights, official_state_dict
from tclx.plan import DataFacts, make_plan
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.model import LoraSpec, TextEncoderSpec
from tclx.spec.rules import missing_packages
from tclx.train import checkpoint
from tclx.train.cost import estimate_cost
from tests.model.test_text_families import TINY, captions, tiny
from tests.train.toy import kill, outcome, prepare, run, start, start_with, toy_spec, wait, wait_until

VOCABULARY = 64
INIT = {"checkpoint": "/x"}
BOTH: dict[str, Any] = {
    "model.image_encoder.lora": {"rank": 4},
    "model.text_encoder.lora": {"rank": 2, "layers": ["query", "value"]},
}


def spec_of(**changes: Any) -> ExperimentSpec:
    return toy_spec(**{"init": INIT, "model.text_encoder.dropout": 0.0, **BOTH, **changes})


def model_of(spec: ExperimentSpec) -> TCL:
    return TCL(spec, vocab_size=VOCABULARY, pad_token_id=0).eval()


def plain_model(**changes: Any) -> TCL:
    return model_of(spec_of(**{"model.image_encoder.lora": None, "model.text_encoder.lora": None, **changes}))


def learned(model: TCL) -> TCL:
    """With adapters that do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model


def answers(model: TCL) -> list[Tensor]:
    """Of both encoders and both copies."""
    torch.manual_seed(0)
    images, ids = torch.randn(3, 3, 32, 32), torch.randint(5, VOCABULARY, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [6]])
    assert model.momentum is not None
    with torch.no_grad():
        return [
            found
            for encoders in (model.online, model.momentum)
            for found in (encoders.image_encoder(images), encoders.text_encoder(ids, mask)[mask])
        ]


def assert_same(one: TCL, other: TCL, *, tolerance: float = 1e-5) -> None:
    for first, second in zip(answers(one), answers(other), strict=True):
        torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------------------------------------- what it computes


def test_at_first_nothing_is_changed() -> None:
    plain, adapted = plain_model(), model_of(spec_of())
    load_initial_weights(adapted, plain.state_dict(), source="there")
    assert_same(adapted, plain, tolerance=0.0)
    assert all(not torch.equal(first, second) for first, second in zip(answers(learned(adapted)), answers(plain), strict=True))


def test_the_adapters_are_what_the_paper_writes() -> None:
    """W x + alpha / rank * B A x."""
    model = learned(model_of(spec_of(**{"model.image_encoder.lora": {"rank": 4, "alpha": 6.0}})))
    layer = model.online.image_encoder.body.blocks[0].attn.qkv
    inputs = torch.randn(5, 16)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    expected = layer.base_layer(inputs) + 6.0 / 4 * (inputs @ down.T @ up.T)
    torch.testing.assert_close(layer(inputs), expected)


def test_the_merged_state_computes_the_same_in_a_model_without_adapters() -> None:
    model, plain = learned(model_of(spec_of())), plain_model()
    state = merged(model.state_dict())
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    assert_same(plain, model)


def test_a_state_without_adapters_is_its_own() -> None:
    state = plain_model().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merged(state).items())


def test_a_part_that_is_called_as_peft_calls_its_own_keeps_its_name() -> None:
    """timm's DLA has one."""
    state = {"online.image_encoder.body.base_layer.0.weight": torch.ones(2), **model_of(spec_of()).state_dict()}
    assert torch.equal(merged(state)["online.image_encoder.body.base_layer.0.weight"], torch.ones(2))


@pytest.mark.parametrize("end", [".lora_scale", ".lora_A.default.weight", ".base_layer.weight"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_adapters_that_are_not_whole_are_refused_not_left_out(end: str, is_gone: bool) -> None:
    state = model_of(spec_of()).state_dict()
    name = f"online.image_encoder.body.blocks.0.attn.qkv{end}"
    if is_gone:
        del state[name]
    else:
        state[name] = torch.zeros(3, 5)
    with pytest.raises(
        InputError, match=r"init\.checkpoint: the adapters of online\.image_encoder\.body\.blocks\.0\.attn\.qkv in there"
    ):
        load_initial_weights(plain_model(), state, source="there")


def test_official_checkpoints_are_of_the_merged_model() -> None:
    model, plain = learned(model_of(spec_of())), plain_model()
    load_initial_weights(plain, from_official(official_state_dict(model, form="pretrain"), source="there"), source="there")
    assert_same(plain, model)


@pytest.mark.parametrize("rank", [4, 3])
def test_another_run_starts_from_what_was_learned_whatever_its_rank(rank: int) -> None:
    model, other = learned(model_of(spec_of())), model_of(spec_of(**{"model.image_encoder.lora": {"rank": rank}}))
    report = load_initial_weights(other, model.state_dict(), source="there")
    assert report.missing == ("queue.image_index",)
    assert not report.unused
    assert_same(other, model)
    assert all((parameter == 0).all() for name, parameter in other.named_parameters() if ".lora_B." in name)


# --------------------------------------------------------------------------------------------------------------------- training


def test_they_alone_are_trained_in_their_encoders() -> None:
    trained = {name for name, parameter in model_of(spec_of()).named_parameters() if parameter.requires_grad}
    image = {name for name in trained if name.startswith("online.image_encoder.")}
    text = {name for name in trained if name.startswith("online.text_encoder.")}
    assert len(image) == 2 * 4  # qkv, proj, fc1, fc2 of one block
    assert len(text) == 2 * 2
    assert all(".lora_" in name for name in image | text)
    assert {"online.image_projection.weight", "online.fusion_encoder.layers.0.cross_attention.query.weight"} <= trained
    assert not any(name.startswith("momentum.") for name in trained)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(prepare(tmp_path_factory.mktemp("lora") / "whole", toy_spec()))


def adapted(pretrained: RunFolder, path: Path, **changes: Any) -> RunFolder:
    return prepare(path, spec_of(**{"init": {"checkpoint": str(pretrained.path)}, "training.steps": 8, **changes}))


def test_a_run_learns_by_them_and_goes_on_after_a_kill_with_the_same_bits(pretrained: RunFolder, tmp_path: Path) -> None:
    whole = run(adapted(pretrained, tmp_path / "whole"))
    folder = adapted(pretrained, tmp_path / "killed")
    processes = start(folder)
    wait_until(lambda: bool(checkpoint.complete(folder.checkpoints)), processes)
    kill(processes)
    assert outcome(run(folder)) == outcome(whole)
    before, newest = checkpoint.weights_of(pretrained.path).tensors, checkpoint.newest(whole.checkpoints)
    assert newest is not None
    after = load_file(newest / "model.safetensors")
    fixed = [name for name in after if name.startswith("online.image_encoder.") and ".lora_" not in name]
    assert len(fixed) > 10
    assert all(torch.equal(after[name], before[name.replace(".base_layer.", ".")]) for name in fixed)
    for part in ("online", "momentum"):
        assert (after[f"{part}.image_encoder.body.blocks.0.attn.qkv.lora_B.default.weight"] != 0).any()


def test_several_processes_and_recomputed_layers_train_it(pretrained: RunFolder, tmp_path: Path) -> None:
    changes = {"launch.num_processes": 2, "training.activation_checkpointing": True, "training.batch_size_per_gpu": 4}
    run(adapted(pretrained, tmp_path / "two", **changes))


def no_wandb_at_its_end(_device: str) -> None:
    from tclx.train.session import Session

    finish = Session.finish

    def checked(self: Session) -> None:
        finish(self)
        assert "wandb" not in sys.modules

    Session.finish = checked  # type: ignore[method-assign]


def wandb_at_its_end(device: str) -> None:
    no_wandb_at_its_end(device)
    sys.modules["wandb"] = sys


def test_its_packages_do_not_bring_wandb_into_the_training(pretrained: RunFolder, tmp_path: Path) -> None:
    assert wait([start_with(no_wandb_at_its_end, adapted(pretrained, tmp_path / "run"))]) == [0]
    assert wait([start_with(wandb_at_its_end, adapted(pretrained, tmp_path / "brought"))]) == [1]


# ------------------------------------------------------------------------------------------------------------ what is refused


def planned(spec: ExperimentSpec) -> Any:
    plan = make_plan(toy_spec(), DataFacts(64, 64, 6, 30, 6, 30))  # of the same steps; the run that spec starts from is nowhere
    return estimate_cost(spec, plan, vocab_size=VOCABULARY)


def test_a_plan_counts_what_is_trained() -> None:
    adapted, plain = planned(spec_of()), planned(spec_of(**{"model.image_encoder.lora": None, "model.text_encoder.lora": None}))
    assert adapted.parameters_trainable < plain.parameters_trainable
    assert adapted.parameters_total > plain.parameters_total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.image_encoder.lora": {"layers": ["qkv", "query"]}},
            "no linear layer is called query (of fc1, fc2, proj, qkv)",
        ),
        (
            {"model.image_encoder": {"name": "resnet10t", "image_size": 32, "lora": {}}},
            "model.image_encoder.lora: this encoder has no linear layers",
        ),
        (
            {"model.image_encoder": {"name": "beit_base_patch16_224", "image_size": 224, "depth": 1, "lora": {}}},
            "the model reads the weights of qkv past the layer",
        ),
    ],
)
def test_what_no_adapter_can_reach_is_refused_when_it_is_planned(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        planned(spec_of(**changes))
    assert message in str(refused.value)


def test_they_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(missing_packages(spec_of())) == []
    monkeypatch.setattr("tclx.spec.rules.find_spec", lambda name: None if name == "peft" else object())
    (problem, _) = missing_packages(spec_of())
    assert str(problem) == "model.image_encoder.lora: the package peft is not installed (pip install 'tclx[lora]', or null)"


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "deberta-v2"])
def test_text_encoders_of_other_families_take_them(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path)
    spec = TextEncoderSpec(name=str(tmp_path), num_layers=2, dropout=0.0, lora=LoraSpec(rank=2))
    encoder = build_text(spec, None, vocab_size=TINY["vocab_size"], pad_token_id=0, image_width=12, mlm=False).text_encoder
    encoder(*captions()).sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not unused_adapters(encoder)


def test_layer_decay_goes_with_them(pretrained: RunFolder, tmp_path: Path) -> None:
    run(adapted(pretrained, tmp_path / "run", **{"optim.layer_decay": 0.75}))


def test_a_trained_run_is_used_like_any(pretrained: RunFolder, tmp_path: Path) -> None:
    folder = run(adapted(pretrained, tmp_path / "run"))
    loaded = tclx.load(folder.path)
    vocabulary = loaded.tokenizer.vocab_size
    plain = TCL(toy_spec(), vocab_size=vocabulary, pad_token_id=loaded.tokenizer.pad_id).eval()
    load_initial_weights(plain, checkpoint.weights_of(folder.path).tensors, source=folder.path)
    ids = torch.from_numpy(loaded.tokenizer.encode(["a red circle"], max_tokens=16).input_ids)
    with torch.no_grad():
        expected = plain.online.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).embedding
    found = torch.from_numpy(loaded.embed_texts(["a red circle"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
