"""Downstream tasks against the numbers that the official code gave: losses, logits, gradients, rankings, names of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tclx.data.captions import clean_question
from tclx.data.tokenizer import EncodedCaptions
from tclx.model.weights import from_official, load_official, official_state_dict
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.judging import JudgingStep, LabelledBatch
from tclx.tasks.vqa.evaluation import rank
from tclx.tasks.vqa.step import AnsweredBatch, AnsweringStep
from tests.parity.official import PAD_ID, recorded_tensors, tiny_spec

INITIAL = {"entailment": "ve_init", "nlvr": "nlvr_init", "vqa": "vqa_init"}


def spec_of(task: str, *, compat: str | None = "official") -> ExperimentSpec:
    """The recorded geometry with a downstream task; the published model of two images has six text layers and six pairs."""
    spec = tiny_spec()
    model = spec.model.model_dump(mode="json")
    if task == "nlvr":
        model["text_encoder"]["num_layers"] = 6
        model["fusion_encoder"]["num_layers"] = 6
    own = {"name": task, **({"decoder_layers": 6} if task == "vqa" else {})}  # six, whatever the encoders have
    data = spec.data.model_dump(mode="json")
    data["train"]["form"] = "pretrain" if task == "text_assignment" else task
    return tiny_spec(compat=compat, model=model, objectives={}, data=data, task=own)


def model_of(shared: Path, task: str, spec: ExperimentSpec) -> Any:
    model = spec.task.build_model(spec, vocab_size=61, pad_token_id=PAD_ID)
    load_official(model, load_file(shared / "parity" / f"{INITIAL[task]}.safetensors"))
    return model


@pytest.fixture(scope="module")
def tensors(shared: Path) -> dict[str, Tensor]:
    return recorded_tensors(shared)


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "parity" / "expected.json").read_text(encoding="utf-8"))["scenarios"]
    return found


def labelled(tensors: dict[str, Tensor], targets: Tensor, *, num_images: int) -> LabelledBatch:
    images = [tensors["pretrain/in0/image"], tensors["pretrain/in1/image"]][:num_images]
    return LabelledBatch(
        row=torch.arange(4),
        num_bad_images=0,
        images=torch.stack(images, dim=1),
        input_ids=tensors["pretrain/in0/input_ids"],
        attention_mask=tensors["pretrain/in0/attention_mask"].bool(),
        labels=targets,
    )


@pytest.mark.parametrize(
    ("task", "short", "loss", "num_images"),
    [("entailment", "ve", "ve_train_loss_alpha0.4", 1), ("nlvr", "nlvr", "nlvr_train_loss_alpha0.4", 2)],
)
def test_loss_and_logits_of_a_choice_among_classes(
    shared: Path, tensors: dict[str, Tensor], expected: dict[str, Any], task: str, short: str, loss: str, num_images: int
) -> None:
    spec = spec_of(task)
    model = model_of(shared, task, spec)
    batch = labelled(tensors, tensors[f"{short}/targets"], num_images=num_images)
    spec.task.before_update(model, spec)  # the momentum encoders move before the forward pass
    output = JudgingStep(model, spec)(batch, soft_label_weight=0.4)
    assert float(output.loss.detach()) == pytest.approx(expected[loss], abs=1e-5)
    with torch.no_grad():
        logits = model.classify(model.online, batch.images, batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(logits, tensors[f"{short}/logits"], atol=1e-5, rtol=1e-5)


def answered(tensors: dict[str, Tensor]) -> AnsweredBatch:
    return AnsweredBatch(
        row=torch.arange(3),
        num_bad_images=0,
        images=tensors["pretrain/in2/image"][:3, None],
        input_ids=tensors["vqa/q_ids"],
        attention_mask=tensors["vqa/q_att"].bool(),
        answer_ids=tensors["vqa/a_ids"],
        answer_mask=tensors["vqa/a_att"].bool(),
        answer_rows=torch.arange(3).repeat_interleave(tensors["vqa/k"]),
        answer_weights=tensors["vqa/weights"],
    )


def test_loss_of_answers_is_the_official_one_whatever_the_soft_label_weight(
    shared: Path, tensors: dict[str, Tensor], expected: dict[str, Any]
) -> None:
    spec = spec_of("vqa")
    model = model_of(shared, "vqa", spec)
    for weight in (0.0, 0.4):
        output = AnsweringStep(model, spec)(answered(tensors), soft_label_weight=weight)
        assert float(output.loss.detach()) == pytest.approx(expected[f"vqa_train_loss_alpha{weight}"], abs=1e-5)


def test_outside_compat_the_momentum_model_reaches_the_loss_of_answers(shared: Path, tensors: dict[str, Tensor]) -> None:
    spec = spec_of("vqa", compat=None)
    model = model_of(shared, "vqa", spec)
    step = AnsweringStep(model, spec)
    batch = answered(tensors)
    hard, soft = (step(batch, soft_label_weight=weight).loss for weight in (0.0, 0.4))
    # Slow and obvious: every word of every answer by itself.
    with torch.no_grad():
        student, teacher = (
            model.write(
                encoders,
                batch.answer_ids,
                batch.answer_mask,
                model.read(encoders, batch.images, batch.input_ids, batch.attention_mask),
                batch.attention_mask,
                batch.answer_rows,
            )
            for encoders in (model.online, model.momentum)
        )
    total = 0.0
    for row in range(5):
        for place in range(1, int(batch.answer_mask[row].sum())):
            said, told = student[row, place - 1].log_softmax(0), teacher[row, place - 1].softmax(0)
            word = -float(said[batch.answer_ids[row, place]])
            total += float(batch.answer_weights[row]) * (0.6 * word - 0.4 * float((told * said).sum()))
    assert float(soft.detach()) == pytest.approx(total / 3, rel=1e-5)
    assert abs(float(soft.detach()) - float(hard.detach())) > 1e-3


def test_ranking_of_a_list_of_answers(shared: Path, tensors: dict[str, Tensor]) -> None:
    spec = spec_of("vqa")
    model = model_of(shared, "vqa", spec)
    candidates = EncodedCaptions(tensors["vqa/cand_ids"].numpy(), tensors["vqa/cand_att"].bool().numpy())
    batch = answered(tensors)
    with torch.no_grad():
        questions = model.read(model.online, batch.images, batch.input_ids, batch.attention_mask)
        found = rank(model, questions, batch.attention_mask, candidates, top_k=4, official=True)
        fixed = rank(model, questions, batch.attention_mask, candidates, top_k=4)
    assert found.numbers.tolist() == tensors["vqa/topk_ids"].tolist()
    torch.testing.assert_close(found.shares, tensors["vqa/topk_probs"], atol=1e-4, rtol=1e-4)
    assert (fixed.shares - found.shares).abs().max() > 1e-3  # the first word counts once


@pytest.mark.parametrize("task", INITIAL)
def test_nothing_is_lost_from_an_official_checkpoint_and_back(shared: Path, task: str) -> None:
    official = load_file(shared / "parity" / f"{INITIAL[task]}.safetensors")
    back = official_state_dict(model_of(shared, task, spec_of(task)), form=task)  # type: ignore[arg-type]
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("task", INITIAL)
def test_flat_checkpoints_without_momentum_parts_are_taken(shared: Path, task: str) -> None:
    """As ALBEF's released ones are."""
    official = load_file(shared / "parity" / f"{INITIAL[task]}.safetensors")
    flat = {name: tensor for name, tensor in official.items() if "_m." not in name}
    spec = spec_of(task)
    model = spec.task.build_model(spec, vocab_size=61, pad_token_id=PAD_ID)
    report = load_official(model, flat)
    assert {name.partition(".")[0] for name in report.missing} == {"momentum"}
    for name, tensor in model.momentum.state_dict().items():
        torch.testing.assert_close(tensor, model.online.state_dict()[name], rtol=0, atol=0, msg=name)


def recorded_keys(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "parity" / "extras.json").read_text(encoding="utf-8"))["state_dict_keys"]
    return found


def real_size(task: str, side: int) -> Any:
    """The published model, without memory."""
    model = {
        "image_encoder": {"name": "vit_base_patch16_224", "image_size": side},
        "text_encoder": {"name": "bert-base-uncased", "num_layers": 6},
        "fusion_encoder": {"num_layers": 6},
    }
    spec = tiny_spec(model=model, objectives={}, data=spec_of(task).data.model_dump(mode="json"), task={"name": task})
    with torch.device("meta"):
        return spec.task.build_model(spec, vocab_size=30522, pad_token_id=0)


def test_the_checkpoint_of_text_assignment_holds_all_that_ours_has(shared: Path) -> None:
    official = {
        name: torch.zeros(()).expand(shape) for name, shape in recorded_keys(shared)["model_pretrain_nlvr"]["keys"].items()
    }
    translated = from_official(official, source="the recorded names")
    own = real_size("text_assignment", 256).state_dict()
    assert {name: list(tensor.shape) for name, tensor in own.items()} == {name: list(translated[name].shape) for name in own}
    assert set(translated) - set(own) == {"online.text_projection.weight", "online.text_projection.bias", "temperatures.shared"}


@pytest.mark.parametrize(("task", "official", "side"), [("entailment", "ve", 384), ("nlvr", "nlvr", 384), ("vqa", "vqa", 384)])
def test_the_real_size_model_has_the_official_names_shapes_and_parameters(
    shared: Path, task: str, official: str, side: int
) -> None:
    recorded = recorded_keys(shared)[f"model_{official}"]
    built = real_size(task, side)
    exported = official_state_dict(built, form=task)  # type: ignore[arg-type]
    assert {name: list(tensor.shape) for name, tensor in exported.items()} == recorded["keys"]
    trainable = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    assert trainable == recorded["params_trainable"]


def test_questions_are_cleaned_as_in_the_official_code(shared: Path) -> None:
    golden = json.loads((shared / "parity" / "extras.json").read_text(encoding="utf-8"))["pre_question_30"]
    assert golden
    assert {question: clean_question(question, max_words=30) for question in golden} == golden
