"""Promises of the pairwise sigmoid term."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from tclx.model.tcl import TCL
from tclx.tasks.pretrain.features import Features
from tclx.tasks.pretrain.step import StepOutput, TrainingStep
from tests.processes import finish_processes, start_processes
from tests.train.step_worker import GLOBAL_BATCH, VOCAB_SIZE, WITHOUT_DROPOUT, global_batch
from tests.train.toy import toy_spec

OFF: dict[str, Any] = {f"objectives.{term}": None for term in ("cma", "imc", "lmi", "itm", "mlm")}
ALONE = {**WITHOUT_DROPOUT, **OFF, "objectives.sigmoid": {}}


def taken(**changes: Any) -> tuple[StepOutput, TCL]:
    spec = toy_spec(**{**ALONE, **changes})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    output = TrainingStep(model, spec)(global_batch(), soft_label_weight=0.0, draw=0, measure=True)
    output.loss.backward()
    return output, model


def embeddings(model: TCL) -> tuple[Tensor, Tensor]:
    features = Features(global_batch(), model=model, spec=toy_spec(**ALONE), soft_label_weight=0.0, draw=0)
    return features.embeddings


def test_it_is_the_published_sum_of_log_sigmoids() -> None:
    output, model = taken()
    with torch.no_grad():
        image, text = embeddings(model)
    index = global_batch().image_index
    total = 0.0
    for row in range(GLOBAL_BATCH):
        for column in range(GLOBAL_BATCH):
            label = 1.0 if index[row] == index[column] else -1.0  # two captions of one image are both its own
            logit = torch.dot(image[row], text[column]) / 0.1 - 10.0
            total -= float(functional.logsigmoid(label * logit))
    assert output.loss.item() == pytest.approx(total / GLOBAL_BATCH, rel=1e-5)


def test_embeddings_that_tell_nothing_cost_what_the_bias_says() -> None:
    """With every similarity 0 a pair costs softplus(-bias), anything else softplus(bias)."""
    spec = toy_spec(**{**ALONE, "objectives.sigmoid": {"bias": -2.0}})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    with torch.no_grad():
        for projection in (model.online.image_projection, model.online.text_projection):
            assert projection is not None
            projection.weight.zero_()
            projection.bias.zero_()
    output = TrainingStep(model, spec)(global_batch(), soft_label_weight=0.0, draw=0)
    num_pairs = GLOBAL_BATCH + 2  # two rows show one image
    expected = num_pairs * math.log1p(math.exp(2.0)) + (GLOBAL_BATCH**2 - num_pairs) * math.log1p(math.exp(-2.0))
    assert output.loss.item() == pytest.approx(expected / GLOBAL_BATCH, rel=1e-6)


def test_alone_it_needs_neither_momentum_encoders_nor_queue_nor_fusion() -> None:
    output, model = taken()
    assert (model.momentum, model.queue, model.online.fusion_encoder, output.keys) == (None, None, None, None)
    assert output.terms.keys() == {"sigmoid"}
    assert {name for name in output.measures if name.startswith("loss/")} == {"loss/sigmoid", "loss/total"}
    unused = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert unused == []
    assert {"sigmoid_head.bias", "temperatures.sigmoid"} <= model.state_dict().keys()


def test_the_bias_may_be_fixed() -> None:
    _, model = taken(**{"objectives.sigmoid": {"bias": -3.0, "learned_bias": False}})
    assert model.state_dict()["sigmoid_head.bias"].item() == -3.0
    assert not dict(model.named_parameters())["sigmoid_head.bias"].requires_grad


def test_beside_matching_hard_negatives_are_drawn_by_the_online_embeddings() -> None:
    """No momentum encoder gives keys; a pair far more similar than the others is drawn almost always."""
    spec = toy_spec(**{**ALONE, "objectives.itm": {}, "objectives.temperature": {"initial": 0.001}})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    torch.manual_seed(0)
    with torch.no_grad():  # spread the similarities
        for parameter in model.online.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    features = Features(global_batch(), model=model, spec=spec, soft_label_weight=0.0, draw=0)
    image, text = features.embeddings
    similarity = (image @ text.T).detach().masked_fill(features.neighbours.same_image, -1)
    best = similarity.topk(2, dim=1)
    clear = best.values[:, 0] - best.values[:, 1] > 0.02  # twenty temperatures
    assert clear.any()
    assert torch.equal(features.negatives.text[clear], best.indices[clear, 0])


def test_processes_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    for number in (1, 2):
        arguments = ["-m", "tests.train.step_worker", str(tmp_path / f"{number}.safetensors"), "sigmoid"]
        finish_processes(start_processes(arguments, world_size=number))
    alone, together = (load_file(tmp_path / f"{number}.safetensors") for number in (1, 2))
    assert alone.keys() == together.keys()
    assert "grad/sigmoid_head.bias" in alone
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
