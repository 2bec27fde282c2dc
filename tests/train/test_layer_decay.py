"""With a decay from layer to layer the lower layers learn slower, in encoders of every kind; without one nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tclx.launch.order import plan_runs
from tclx.spec.experiment import ExperimentSpec
from tclx.train.checkpoint import newest
from tclx.train.optim import build_optimizer, parameter_groups, rate_scales
from tests.launch.toy import SPEC, write_spec
from tests.train import toy


def specs(folder: Path, **changes: Any) -> ExperimentSpec:
    model = {**SPEC["model"], "text_encoder": {**SPEC["model"]["text_encoder"], "num_layers": 3}}
    model["image_encoder"] = {**model["image_encoder"], "depth": 4}
    (run,) = plan_runs([write_spec(folder, **{"model": model, **changes})], runs_dir=folder / "runs")
    return run.spec


def model_of(spec: ExperimentSpec) -> Any:
    with torch.device("meta"):
        return spec.task.build_model(spec, vocab_size=100, pad_token_id=0)


def test_each_layer_learns_slower_than_the_one_above_and_the_rest_at_the_full_rate(tmp_path: Path) -> None:
    model = model_of(specs(tmp_path))
    scales = rate_scales(model, 0.5)
    named = dict(model.named_parameters())
    assert scales.keys() <= named.keys()

    def of(part: str) -> set[float]:
        return {scale for name, scale in scales.items() if name.startswith(f"online.{part}")}

    assert [of(f"image_encoder.body.blocks.{layer}.") for layer in range(4)] == [{0.5**4}, {0.5**3}, {0.5**2}, {0.5}]
    assert of("image_encoder.body.cls_token") == of("image_encoder.body.patch_embed") == {0.5**5}
    assert [of(f"text_encoder.layers.{layer}.") for layer in range(3)] == [{0.5**3}, {0.5**2}, {0.5}]
    assert of("text_encoder.embeddings") == {0.5**4}
    assert not of("fusion_encoder") | of("mlm_head")
    assert not any(name.startswith(("itm_head", "temperatures")) for name in scales)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_image_encoders_of_other_kinds_have_layers_too(tmp_path: Path, name: str) -> None:
    size = 224 if "224" in name else 64
    model = model_of(specs(tmp_path, model={**SPEC["model"], "image_encoder": {"name": name, "image_size": size}}))
    scales = [scale for key, scale in rate_scales(model, 0.5).items() if "image_encoder" in key]
    body = {key for key, _ in model.named_parameters() if key.startswith("online.image_encoder.body")}
    assert len(scales) == len(body)
    assert len(set(scales)) >= 5
    assert scales[0] == min(scales)
    assert max(scale for scale in scales if scale < 1) == 0.5


def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(tmp_path: Path) -> None:
    model = model_of(specs(tmp_path))
    plain = parameter_groups(model, weight_decay=0.1, official=False)
    groups = parameter_groups(model, weight_decay=0.1, official=False, layer_decay=0.5)
    assert all("rate_scale" not in group for group in plain)
    assert [len(plain), len(groups)] == [2, 12]
    decays = {name: group["weight_decay"] for group in plain for name in group["param_names"]}
    assert {name: group["weight_decay"] for group in groups for name in group["param_names"]} == decays
    assert sum(len(group["param_names"]) for group in groups) == len(decays)
    scales = rate_scales(model, 0.5)
    for group in groups:
        assert {scales.get(name, 1.0) for name in group["param_names"]} == {group["rate_scale"]}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "sgd", "nadamw"])
def test_optimizers_keep_the_rates_of_their_groups(tmp_path: Path, optimizer: str) -> None:
    spec = specs(tmp_path, optim={"learning_rate": 1e-3, "layer_decay": 0.5, "optimizer": optimizer})
    made = build_optimizer(model_of(spec), spec.optim, official=False)
    assert {group["rate_scale"] for group in made.param_groups} == {0.5**depth for depth in range(6)}


def test_a_frozen_encoder_takes_no_part(tmp_path: Path) -> None:
    model = model_of(specs(tmp_path))
    model.online.image_encoder.body.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, official=False, layer_decay=0.5)
    assert not any("image_encoder.body" in name for group in groups for name in group["param_names"])


def test_a_step_of_training_moves_each_layer_at_its_own_rate(tmp_path: Path) -> None:
    """AdamW's first step is as long as its learning rate, whatever the gradient."""
    schedule = {"optim.schedule": {"name": "constant"}, "optim.weight_decay": 0.0, "training.steps": 1}
    schedule |= {"training.checkpoints.every_steps": 1, "evaluation.every_steps": 1, "tracking.log_every_steps": 1}
    moved = {}
    for name, decay in (("none", None), ("first", 0.1), ("again", 0.1)):
        folder = toy.run(toy.prepare(tmp_path / name, toy.toy_spec(**schedule, **{"optim.layer_decay": decay})))
        last = newest(folder.checkpoints)
        assert last is not None
        moved[name] = load_file(last / "model.safetensors")
    rate = toy.toy_spec().optim.learning_rate
    for key, expected in (("online.text_encoder.layers.0.", 0.9), ("online.text_encoder.embeddings.", 0.99)):
        steps = [(moved["first"][name] - moved["none"][name]).abs().max() for name in moved["none"] if name.startswith(key)]
        assert max(steps) == pytest.approx(rate * expected, rel=0.02), key
    assert all(torch.equal(moved["first"][name], moved["again"][name]) for name in moved["first"])
