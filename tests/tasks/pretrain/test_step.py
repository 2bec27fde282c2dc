"""The training step where the official code has no numbers: terms off, corners, several processes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.wire import received_bytes
from tclx.data.batch import Batch, normalise
from tclx.model.tcl import TCL
from tclx.tasks.pretrain.step import StepOutput, TrainingStep
from tests.processes import finish_processes, start_processes
from tests.train.step_worker import GLOBAL_BATCH, VOCAB_SIZE, WITHOUT_DROPOUT, fill, global_batch
from tests.train.toy import toy_spec

TERMS = ("cma", "imc", "lmi", "itm", "mlm")


def run_step(batch: Batch, *, measure: bool = False, **changes: Any) -> tuple[StepOutput, TCL]:
    spec = toy_spec(**{**WITHOUT_DROPOUT, **changes})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    output = TrainingStep(model, spec)(batch, soft_label_weight=0.4, draw=0, measure=measure)
    output.loss.backward()
    return output, model


def only(term: str, section: dict[str, Any] | None = None) -> dict[str, Any]:
    return {f"objectives.{name}": (section or {}) if name == term else None for name in TERMS}


def is_finite(output: StepOutput, model: TCL) -> bool:
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return bool(output.loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_alone_is_the_whole_loss_and_leaves_no_parameter_unused(term: str) -> None:
    output, model = run_step(global_batch(), measure=True, **only(term))
    assert output.terms.keys() == {term}
    weight = 1 / 3 if term in ("cma", "imc", "lmi") else 1.0
    assert output.loss.item() == pytest.approx(weight * output.terms[term].item())
    unused = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert unused == []


@pytest.mark.parametrize("term", ["cma", "imc", "lmi"])
def test_a_term_may_bring_its_own_temperature(term: str) -> None:
    _, model = run_step(global_batch(), measure=True, **only(term, {"temperature": {"initial": 0.2}}))
    assert getattr(model.temperatures, term).grad is not None


def test_a_weight_scales_its_term() -> None:
    single, _ = run_step(global_batch())
    double, _ = run_step(global_batch(), **{"objectives.itm": {"weight": 2.0}})
    assert (double.loss - single.loss).item() == pytest.approx(single.terms["itm"].item(), rel=1e-4)


def test_each_bound_on_mutual_information_is_of_its_own_direction_and_of_the_true_labels() -> None:
    """log(keys) minus the loss of that part, which with soft labels is another loss."""
    spec = toy_spec(**WITHOUT_DROPOUT)
    torch.manual_seed(0)
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    with torch.no_grad():  # fresh weights give nearly the same loss in every direction
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.clamp_temperatures()
    hard, soft = (
        TrainingStep(model, spec)(global_batch(), soft_label_weight=weight, draw=0, measure=True).measures
        for weight in (0.0, 0.4)
    )
    parts = ("cma_image_to_text", "cma_text_to_image", "imc_image", "imc_text")
    for part in parts:
        assert hard[f"mi_bound/{part}"].item() == pytest.approx(math.log(GLOBAL_BATCH) - hard[f"loss/{part}"].item(), abs=1e-5)
        assert soft[f"mi_bound/{part}"].item() == pytest.approx(hard[f"mi_bound/{part}"].item(), abs=1e-5)
    assert len({round(hard[f"loss/{part}"].item(), 3) for part in parts}) == len(parts)
    assert soft["loss/cma_text_to_image"].item() != pytest.approx(hard["loss/cma_text_to_image"].item(), abs=1e-3)


@pytest.mark.parametrize("compat", [None, "official"])
def test_one_pair_without_a_masked_word_and_with_an_empty_caption_is_finite(compat: str | None) -> None:
    batch = global_batch(slice(0, 1))
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = torch.tensor([[True, False, False, False, False, False, False]])
    batch = replace(batch, attention_mask=empty, mlm_positions=nothing, mlm_labels=nothing)
    output, model = run_step(batch, measure=True, compat=compat)
    assert is_finite(output, model)
    assert output.terms["mlm"].item() == 0
    assert output.terms["lmi"].item() == 0


def test_only_captions_of_one_image_is_finite() -> None:
    output, model = run_step(replace(global_batch(), image_index=torch.zeros(8, dtype=torch.int64)))
    assert is_finite(output, model)


def test_an_empty_queue_adds_no_negatives() -> None:
    """With nothing learned the bound on the mutual information is log(candidates) - loss: here the batch alone counts."""
    with_queue, _ = run_step(global_batch(), measure=True)
    without, _ = run_step(global_batch(), measure=True, **{"model.queue_size": 0})
    for name in ("loss/cma", "loss/imc_image", "mi_bound/cma_image_to_text"):
        assert with_queue.measures[name].item() == pytest.approx(without.measures[name].item(), abs=1e-5)
    assert with_queue.measures["health/queue_fill"].item() == 0


def test_decisions_are_counted_of_each_kind_apart_and_the_loss_is_that_of_steps_without_it() -> None:
    batch = global_batch()
    torch.manual_seed(0)
    spec = toy_spec(**WITHOUT_DROPOUT)
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    head = model.head("itm")
    with torch.no_grad():  # says match of everything
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0]))
    step = TrainingStep(model, spec)
    output = step(batch, soft_label_weight=0.4, draw=0, measure=True)
    shares = {kind: float(output.measures[f"accuracy/itm/{kind}"]) for kind in ("pairs", "hard_images", "hard_texts")}
    assert shares == {"pairs": 100.0, "hard_images": 0.0, "hard_texts": 0.0}
    (always,) = batch.mlm_labels[:1].tolist()
    with torch.no_grad():  # names one word, whatever is asked
        model.online.mlm_head.bias[always] = 100.0
    again = step(batch, soft_label_weight=0.4, draw=0, measure=True)
    expected = 100 * (batch.mlm_labels == always).float().mean().item()
    assert float(again.measures["accuracy/mlm"]) == pytest.approx(expected)
    plain = step(batch, soft_label_weight=0.4, draw=0, measure=False)
    assert plain.loss.item() == again.loss.item()
    assert not any(name.startswith("accuracy/") for name in plain.measures)


def test_the_bound_never_exceeds_the_number_of_candidates() -> None:
    output, _ = run_step(global_batch(), measure=True)
    bounds = [value.item() for name, value in output.measures.items() if name.startswith("mi_bound/")]
    assert len(bounds) == 4
    assert max(bounds) <= math.log(8)


def test_the_forward_pass_changes_no_state() -> None:
    spec = toy_spec()
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    TrainingStep(model, spec)(global_batch(), soft_label_weight=0.4, draw=0).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_negatives_are_drawn_anew_and_repeatably() -> None:
    spec = toy_spec(**WITHOUT_DROPOUT)
    step = TrainingStep(TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0), spec)
    losses = [step(global_batch(), soft_label_weight=0.4, draw=draw).terms["itm"].item() for draw in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("asked", [[], ["centred_queue"]], ids=["plain", "centred_queue"])
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_several_processes_learn_what_one_learns_from_the_whole_batch(
    tmp_path: Path, world_size: int, asked: list[str]
) -> None:
    for number in (1, world_size):
        arguments = ["-m", "tests.train.step_worker", str(tmp_path / f"{number}.safetensors"), *asked]
        finish_processes(start_processes(arguments, world_size=number))
    alone, together = (load_file(tmp_path / f"{number}.safetensors") for number in (1, world_size))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("term", ["cma", "imc"])
def test_turning_away_from_the_queue_lowers_no_loss_that_is_centred(term: str) -> None:
    """All queries turn by the same little away from where the queue's keys lie: nothing that is asked for is found by that."""
    changes = {**only(term), "model.momentum": 0.0}
    losses = {}
    for centred in (False, True):
        torch.manual_seed(0)
        spec = toy_spec(**{**WITHOUT_DROPOUT, **changes, "objectives.centred_queue": centred})
        model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
        fill(model)
        batch, found = global_batch(), []
        for turned in (1.0, -0.5):
            with torch.no_grad():
                for projection in (model.online.image_projection, model.online.text_projection):
                    projection.bias.fill_(turned)  # towards the keys, which lie around (1, 1, ...), and away
            found.append(TrainingStep(model, spec)(batch, soft_label_weight=0.0, draw=0).loss.item())
        losses[centred] = found
    assert losses[False][1] < losses[False][0] - 2
    assert losses[True][1] == pytest.approx(losses[True][0], abs=0.03)


@pytest.mark.faults
def test_what_a_process_receives_hardly_grows_with_their_number() -> None:
    """Twice the processes, and the hard negatives still are one image and one caption a row."""
    two, four = (received_bytes(4, everyone) for everyone in (2, 4))
    assert four < 1.7 * two
    assert received_bytes(4, 4, way="gathered") > 4 * four


def test_a_frozen_image_encoder_is_run_once_and_its_copy_sees_the_same() -> None:
    """CMA alone has no second view: momentum features come from the online tokens, as a pass of the copy gives them."""
    spec = toy_spec(**{**WITHOUT_DROPOUT, **only("cma"), "model.image_encoder.frozen": True})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    batch = replace(global_batch(), images_second=None)
    calls: list[int] = []
    handles = [part.image_encoder.register_forward_hook(lambda *_: calls.append(1)) for part in (model.online, model.momentum)]
    output = TrainingStep(model, spec)(batch, soft_label_weight=0.0, draw=0)
    assert len(calls) == 1
    for handle in handles:
        handle.remove()
    expected = model.momentum.encode_image(normalise(batch.images, spec.data.normalization)).embedding
    torch.testing.assert_close(output.keys.image, expected)
    output.loss.backward()
    assert model.online.image_projection.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.online.image_encoder.parameters())
