"""The official numbers, from the official features: six contrastive parts, ITM, MLM and the retrieval targets within 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tclx.losses.contrastive import similarity_logits, soft_cross_entropy, soft_targets, target_distribution
from tclx.losses.local_mi import local_mutual_information_loss
from tclx.losses.masked_lm import masked_language_modeling_loss
from tclx.losses.matching import image_text_matching_loss

from .official import recorded_tensors

BATCH = 4
SOFT_LABEL_WEIGHT = {"pretrain_eval": 0.4, "pretrain_train_dropout": 0.4, "pretrain_eval_alpha0": 0.0}
every_scenario = pytest.mark.parametrize("scenario", SOFT_LABEL_WEIGHT)


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, Any]:
    scenarios: dict[str, Any] = json.loads((shared / "parity" / "expected.json").read_text())["scenarios"]
    return scenarios


@pytest.fixture(scope="module")
def tensors(shared: Path, device: torch.device) -> dict[str, Tensor]:
    return recorded_tensors(shared, device)


@pytest.fixture(scope="module")
def initial(shared: Path, device: torch.device) -> dict[str, Tensor]:
    return recorded_tensors(shared, device, name="pretrain_init")


@pytest.fixture
def recorded(scenario: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scenario's tensors, by their short names."""
    return {name.removeprefix(f"{scenario}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{scenario}/")}


@pytest.fixture
def keys(recorded: dict[str, Tensor], initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """Momentum features of the batch, then the queue as it was before the step."""
    return {
        modality: torch.cat([recorded[f"{modality}_feat_m"], initial[f"{modality}_queue"].T]) for modality in ("image", "text")
    }


def assert_official(loss: Tensor, number: float) -> None:
    assert loss.item() == pytest.approx(number, abs=1e-5)


def one_hot_targets(keys: Tensor) -> Tensor:
    return target_distribution(torch.arange(BATCH, device=keys.device), torch.arange(len(keys), device=keys.device))


@every_scenario
@pytest.mark.parametrize(("part", "query", "other"), [("i2t", "image", "text"), ("t2i", "text", "image")])
def test_cma(
    scenario: str,
    part: str,
    query: str,
    other: str,
    recorded: dict[str, Tensor],
    keys: dict[str, Tensor],
    initial: dict[str, Tensor],
    expected: dict[str, Any],
) -> None:
    temperature, against = initial["temp"], keys[other]
    logits = similarity_logits(recorded[f"{query}_feat"], against, temperature=temperature)
    momentum_logits = similarity_logits(recorded[f"{query}_feat_m"], against, temperature=temperature)
    targets = soft_targets(one_hot_targets(against), momentum_logits, weight=SOFT_LABEL_WEIGHT[scenario])
    torch.testing.assert_close(logits, recorded[f"sim_{part}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(targets, recorded[f"sim_{part}_targets"], rtol=0, atol=1e-6)
    assert_official(soft_cross_entropy(logits, targets), expected[scenario][f"cma_{part}"])


@every_scenario
@pytest.mark.parametrize(("modality", "similarity"), [("image", "sim_i2i"), ("text", "sim_t2t")])
def test_imc(
    scenario: str,
    modality: str,
    similarity: str,
    recorded: dict[str, Tensor],
    keys: dict[str, Tensor],
    initial: dict[str, Tensor],
    expected: dict[str, Any],
) -> None:
    against = keys[modality]
    logits = similarity_logits(recorded[f"{modality}_feat"], against, temperature=initial["temp"])
    torch.testing.assert_close(logits, recorded[similarity], rtol=0, atol=1e-5)
    assert_official(soft_cross_entropy(logits, one_hot_targets(against)), expected[scenario][f"imc_{modality}"])


@every_scenario
def test_lmi_image(scenario: str, recorded: dict[str, Tensor], initial: dict[str, Tensor], expected: dict[str, Any]) -> None:
    loss = local_mutual_information_loss(recorded["image_feat"], recorded["image_feat_m_l"], temperature=initial["temp"])
    assert_official(loss, expected[scenario]["lmi_image"])


@every_scenario
def test_lmi_text(
    scenario: str, recorded: dict[str, Tensor], tensors: dict[str, Tensor], initial: dict[str, Tensor], expected: dict[str, Any]
) -> None:
    valid = tensors["pretrain/in0/attention_mask"][:, 1:].bool()
    loss = local_mutual_information_loss(
        recorded["text_feat"], recorded["text_feat_m_l"], temperature=initial["temp"], valid=valid
    )
    assert_official(loss, expected[scenario]["lmi_text"])


@every_scenario
def test_itm(scenario: str, recorded: dict[str, Tensor], expected: dict[str, Any]) -> None:
    labels = torch.tensor([1] * BATCH + [0] * 2 * BATCH, device=recorded["vl_output"].device)
    assert_official(image_text_matching_loss(recorded["vl_output"], labels), expected[scenario]["itm"])


def test_mlm_without_soft_labels(tensors: dict[str, Tensor], expected: dict[str, Any]) -> None:
    # With soft labels the momentum model's logits are needed, and those are not recorded: the replay of whole steps covers it.
    scenario = "pretrain_eval_alpha0"
    labels = tensors[f"{scenario}/mlm_labels"]
    masked = labels != -100
    loss = masked_language_modeling_loss(
        tensors[f"{scenario}/mlm_logits"][masked], labels[masked], momentum_logits=None, soft_label_weight=0.0
    )
    assert_official(loss, expected[scenario]["mlm"])


def test_retrieval_targets_share_the_mass_among_captions_of_one_image(tensors: dict[str, Tensor]) -> None:
    index = tensors["retrieval_eval/idx"]
    targets = target_distribution(index, torch.cat([index, index.new_full((12,), -100)]))
    torch.testing.assert_close(targets, tensors["retrieval_eval/sim_targets"], rtol=0, atol=0)
