"""Promises of the downstream tasks: they learn, resume, start from a pre-training, and score alike in any process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tclx.data.batch import normalise
from tclx.data.dataset import training_captions
from tclx.data.forms.vqa import answers_of
from tclx.data.items import open_items
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError
from tclx.metrics import find_metric
from tclx.model.weights import load_initial_weights
from tclx.plan import check_spec
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.judging import JudgingStep
from tclx.tasks.task import Evaluation
from tclx.tasks.text_assignment.step import LEFT, NEITHER, RIGHT, TextAssignmentStep, draw_assignment
from tclx.tasks.vqa import evaluation as vqa_evaluation
from tclx.tasks.vqa.evaluation import generate, rank
from tclx.track.jsonl import read
from tclx.train import checkpoint
from tests.processes import finish_processes, start_processes
from tests.tasks.downstream import TASKS, downstream_spec
from tests.train.toy import kill, outcome, prepare, run, start, toy_spec, wait_until

CPU = torch.device("cpu")


def untrained(spec: ExperimentSpec) -> tuple[Any, CaptionTokenizer]:
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    model = spec.task.build_model(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    torch.manual_seed(0)
    with torch.no_grad():  # spread the scores
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model, tokenizer


def evaluated(task: str, /, **changes: Any) -> Evaluation:
    spec = downstream_spec(task, **changes)
    model, tokenizer = untrained(spec)
    return spec.evaluation.tasks[task].evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)


# ------------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("task", [*TASKS, "text_assignment"])
def test_a_run_learns_its_training_rows_and_logs_what_the_tables_know(tmp_path: Path, task: str) -> None:
    form = "captions" if task == "text_assignment" else task
    few = {"source": "scenes", "split": "train", "num_images": 8, "form": form}
    spec = downstream_spec(
        task,
        **{
            "data.train": few,
            "data.augmentation": {"crop_scale": [1.0, 1.0], "random_ops": 0, "blur": 0, "grayscale": 0, "color_jitter": 0},
            "model.text_encoder.dropout": 0.0,
            "training.steps": 60,
            "optim.schedule": {"name": "constant"},
            "optim.learning_rate": 0.01,
            "evaluation.every_steps": 60,
        }
        if task != "text_assignment"
        else {"training.steps": 4},
    )
    rows = read(run(prepare(tmp_path / "run", spec)).metrics)
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    if task != "text_assignment":  # whose wrong images are drawn anew at every step
        assert losses[-1] < 0.6 * losses[0]
    names = {name for row in rows for name in row} - {"step", "epoch"}
    assert [name for name in names if find_metric(name) is None] == []


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_a_run_that_was_stopped_takes_the_steps_of_one_that_was_not(tmp_path: Path, task: str) -> None:
    spec = downstream_spec(task)
    whole = run(prepare(tmp_path / "whole", spec))
    halved = prepare(tmp_path / "halved", spec)
    processes = start(halved)
    wait_until(lambda: (halved.checkpoints / "step-00000006").exists(), processes)
    kill(processes)
    run(halved)
    assert outcome(halved) == outcome(whole)


@pytest.mark.parametrize("task", [*TASKS, "text_assignment"])
def test_two_processes_train_it(tmp_path: Path, task: str) -> None:
    two = {"launch": {"backend": "local", "num_processes": 2}, "training.batch_size_per_gpu": 4}
    state = run(prepare(tmp_path / "run", downstream_spec(task, **two))).read_state()
    assert state is not None
    assert state.status == "finished"


def test_soft_labels_are_the_momentum_models_share_of_the_target() -> None:
    spec = downstream_spec("entailment")
    model, tokenizer = untrained(spec)
    batch: Any = next(iter(spec.task.batches(spec, tokenizer=tokenizer, rank=0, world_size=1, start_micro_step=0)))
    step = JudgingStep(model.eval(), spec)
    hard, soft = (step(batch, soft_label_weight=weight).loss.item() for weight in (0.0, 0.25))
    images = normalise(batch.images[:, 0], spec.data.normalization)[:, None]
    with torch.no_grad():
        student, teacher = (
            model.classify(part, images, batch.input_ids, batch.attention_mask) for part in (model.online, model.momentum)
        )
    assert hard == pytest.approx(functional.cross_entropy(student, batch.labels).item(), rel=1e-5)
    told = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean().item()
    assert soft == pytest.approx(0.75 * hard + 0.25 * told, rel=1e-5)


def test_without_soft_labels_there_is_no_momentum_copy() -> None:
    model, _ = untrained(downstream_spec("vqa", task={"name": "vqa", "soft_labels": None}))
    assert model.momentum is None


# ----------------------------------------------------------------------------------------- starting from a pre-training


def pretrained_weights() -> dict[str, Tensor]:
    spec = toy_spec()
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    model = spec.task.build_model(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    return model.state_dict()


def started(task: str) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    spec = downstream_spec(task)
    weights = pretrained_weights()
    vocab_size = len(weights["online.text_encoder.embeddings.word_embeddings.weight"])
    model: Any = spec.task.build_model(spec, vocab_size=vocab_size, pad_token_id=0)
    report = load_initial_weights(model, spec.task.initial_weights(weights, model), source="pre-training")
    return model.state_dict(), weights, report.missing


def test_a_classifier_takes_over_encoders_and_fusion_and_only_its_head_begins_at_random() -> None:
    own, theirs, missing = started("entailment")
    assert {name for name in missing if name.startswith("online.")} == {
        f"online.head.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    for name, tensor in own.items():
        if name.startswith("online.") and ".head." not in name:
            assert torch.equal(tensor, theirs[name]), name


def test_each_fusion_layer_becomes_a_pair_that_shares_keys_and_values() -> None:
    own, theirs, _ = started("nlvr")
    layers = "online.fusion_encoder.layers"
    for name in [name for name in theirs if name.startswith(f"{layers}.0.")]:
        rest = name.removeprefix(f"{layers}.0.")
        assert torch.equal(own[f"{layers}.0.{rest}"], theirs[name])
        if rest.startswith(("cross_attention.key", "cross_attention.value")):
            assert f"{layers}.1.{rest}" not in own
        else:
            assert torch.equal(own[f"{layers}.1.{rest}"], theirs[name])


def test_the_decoder_starts_as_the_fusion_layers_the_embeddings_and_the_head_of_words() -> None:
    own, theirs, missing = started("vqa")
    assert [name for name in missing if name.startswith("online.")] == []
    for name, source in (
        ("decoder.layers.0.attention.self.query.weight", "fusion_encoder.layers.0.attention.self.query.weight"),
        ("decoder.layers.0.cross_attention.key.weight", "fusion_encoder.layers.0.cross_attention.key.weight"),
        ("decoder.embeddings.word_embeddings.weight", "text_encoder.embeddings.word_embeddings.weight"),
        ("decoder.head.dense.weight", "mlm_head.dense.weight"),
        ("decoder.head.bias", "mlm_head.bias"),
    ):
        assert torch.equal(own[f"online.{name}"], theirs[f"online.{source}"]), name


def test_a_chain_keeps_the_words_of_the_run_that_it_starts_from(tmp_path: Path) -> None:
    first = run(prepare(tmp_path / "first", toy_spec(**{"training.steps": 4, "evaluation": {}})))
    second = run(prepare(tmp_path / "second", downstream_spec("vqa", init={"checkpoint": str(first.path)})))
    words = [checkpoint.load_tokenizer(one.tokenizer).vocabulary for one in (first, second)]
    assert words[0] == words[1]
    third = prepare(
        tmp_path / "third",
        downstream_spec(
            "vqa",
            **{
                "init": {"checkpoint": str(first.path)},
                "data.tokenizer": {"source": "pretrained", "name": str(other(tmp_path))},
            },
        ),
    )
    with pytest.raises(AssertionError, match=r"data\.tokenizer: its words are not those that .*first was trained with"):
        run(third)


def other(folder: Path) -> Path:
    tokenizer = build_tokenizer(toy_spec().data.tokenizer, ["quite other words"])
    tokenizer.save(folder / "other")
    return folder / "other"


# ----------------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("task", TASKS)
def test_three_processes_give_what_one_gives(tmp_path: Path, task: str) -> None:
    alone = evaluated(task)
    output = tmp_path / "found.json"
    finish_processes(start_processes(["-m", "tests.tasks.downstream_worker", task, str(output)], world_size=3))
    metrics, examples, predictions = json.loads(output.read_text())
    assert metrics == pytest.approx(alone.metrics, rel=1e-6)
    for found, expected in zip(examples["items"], alone.examples()["items"], strict=True):
        assert [answer["text"] for answer in found["answers"]] == [answer["text"] for answer in expected["answers"]]
        scores = [answer["score"] for answer in expected["answers"]]
        assert [answer["score"] for answer in found["answers"]] == pytest.approx(scores, rel=1e-4)
    assert predictions == alone.predictions


@pytest.mark.parametrize("task", ["entailment", "nlvr"])
def test_accuracy_counts_one_item_at_a_time(task: str) -> None:
    spec = downstream_spec(task)
    model, tokenizer = untrained(spec)
    items = open_items(spec, "test")
    model.eval()
    right = 0
    for number in range(items.num_items):
        (images,) = items.image_batches([number], batch_size=1)
        ids, mask = items.encode(tokenizer, [number])
        with torch.no_grad():
            logits = model.classify(model.online, normalise(images[0], spec.data.normalization)[None], ids, mask)
        right += int(logits.argmax()) == items.items[number].target
    found = evaluated(task)
    assert found.metrics["accuracy"] == pytest.approx(100 * right / items.num_items)
    assert found.metrics["num_items"] == items.num_items


@pytest.mark.parametrize("most_logits", [1, vqa_evaluation.MOST_LOGITS])
def test_ranking_prefers_the_answer_with_the_largest_likelihood(most_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers are read at once."""
    monkeypatch.setattr(vqa_evaluation, "MOST_LOGITS", most_logits)
    spec = downstream_spec("vqa")
    model, tokenizer = untrained(spec)
    model.eval()
    items = open_items(spec, "test")
    (images,) = items.image_batches([0, 1], batch_size=2)
    ids, mask = items.encode(tokenizer, [0, 1])
    listed = ["red", "blue", "one", "two", "yes", "no", "top left corner"]
    candidates = tokenizer.encode_answers(listed, max_tokens=12)
    with torch.no_grad():
        questions = model.read(model.online, normalise(images[:, 0], spec.data.normalization)[:, None], ids, mask)
        found = rank(model, questions, mask, candidates, top_k=len(listed))
        for row in range(2):
            likelihoods = []
            for answer in listed:
                words = torch.from_numpy(tokenizer.encode_answers([answer], max_tokens=12).input_ids)
                logits = model.write(
                    model.online, words, torch.ones_like(words, dtype=torch.bool), questions[row : row + 1], mask[row : row + 1]
                )
                likelihoods.append(
                    sum(logits[0, place].log_softmax(0)[words[0, place + 1]].item() for place in range(words.shape[1] - 1))
                )
            order = sorted(range(len(listed)), key=lambda number: -likelihoods[number])
            assert found.numbers[row].tolist() == order
            shares = torch.tensor([likelihoods[number] for number in order]).softmax(0)
            torch.testing.assert_close(found.shares[row], shares, atol=1e-5, rtol=1e-4)


def test_a_written_answer_is_the_most_likely_word_at_every_place() -> None:
    spec = downstream_spec("vqa")
    model, tokenizer = untrained(spec)
    model.eval()
    items = open_items(spec, "test")
    (images,) = items.image_batches([0, 1, 2], batch_size=3)
    ids, mask = items.encode(tokenizer, [0, 1, 2])
    with torch.no_grad():
        questions = model.read(model.online, normalise(images[:, 0], spec.data.normalization)[:, None], ids, mask)
        written = generate(model, questions, mask, tokenizer=tokenizer, max_tokens=6)
        for row in range(3):
            words, share = [tokenizer.cls_id], 1.0
            while len(words) < 6 and words[-1] != tokenizer.sep_id:
                so_far = torch.tensor([words])
                logits = model.write(
                    model.online,
                    so_far,
                    torch.ones_like(so_far, dtype=torch.bool),
                    questions[row : row + 1],
                    mask[row : row + 1],
                )
                probabilities = logits[0, -1].softmax(0)
                words.append(int(probabilities.argmax()))
                share *= float(probabilities.max())
            assert written[row][0][0] == tokenizer.decode(words)
            assert written[row][0][1] == pytest.approx(share, rel=1e-4)


def test_open_generation_is_scored_and_written_for_a_server(tmp_path: Path) -> None:
    folder = run(prepare(tmp_path / "run", downstream_spec("vqa", **{"evaluation.vqa": {"answer": "generate"}})))
    assert 0 <= folder.read_evaluations()["test"].metrics["vqa/test/accuracy"] <= 100
    predictions = json.loads(folder.predictions("vqa", "test").read_text())
    assert [set(one) for one in predictions] == [{"question_id", "answer"}] * 28
    examples = folder.read_json(folder.examples("vqa", "test"))
    assert examples["items"][0]["answers"][0]["text"] in {one["answer"] for one in predictions}


def test_majority_and_random_are_what_they_say() -> None:
    found = evaluated("vqa").metrics
    items = open_items(downstream_spec("vqa"), "test")
    right = [answers_of(items.items[number].target).given[0] for number in range(items.num_items)]
    assert found["majority"] == pytest.approx(100 * max(map(right.count, right)) / len(right))
    train = [answers_of(items.rows.item(0).target)]  # the list is of the training rows
    assert train
    assert 0 < found["random"] < found["majority"]


# ------------------------------------------------------------------------------------------------------------ text assignment


def test_a_wrong_image_never_shows_what_the_caption_describes() -> None:
    embeddings = functional.normalize(torch.randn(8, 4), dim=1)
    image_index = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    torch.manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(300):
        drawn = draw_assignment(embeddings, image_index)
        own = torch.arange(8)
        assert torch.equal(drawn.left[drawn.labels == LEFT], own[drawn.labels == LEFT])
        assert torch.equal(drawn.right[drawn.labels == RIGHT], own[drawn.labels == RIGHT])
        for side, label in ((drawn.left, LEFT), (drawn.right, RIGHT)):
            elsewhere = drawn.labels != label
            assert not (image_index[side[elsewhere]] == image_index[elsewhere]).any()
        neither = drawn.labels == NEITHER
        assert (drawn.left[neither] != drawn.right[neither]).all()
        counts += drawn.labels.bincount(minlength=3)
    assert torch.allclose(counts / counts.sum(), torch.full((3,), 1 / 3), atol=0.03)


def test_more_similar_images_are_drawn_more_often() -> None:
    embeddings = functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.3], [-1.0, 0.2], [0.0, 1.0]]), dim=1)
    torch.manual_seed(0)
    wrong = torch.cat(
        [draw.right[draw.labels == LEFT] for draw in (draw_assignment(embeddings, torch.arange(4)) for _ in range(400))]
    )
    assert (wrong == 1).sum() > (wrong == 2).sum()


def test_the_projection_that_draws_learns_nothing() -> None:
    spec = downstream_spec("text_assignment")
    model, tokenizer = untrained(spec)
    batch: Any = next(iter(spec.task.batches(spec, tokenizer=tokenizer, rank=0, world_size=1, start_micro_step=0)))
    TextAssignmentStep(model, spec)(batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - trained == {
        "online.image_projection.weight",
        "online.image_projection.bias",
    }


# ------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            "vqa",
            {"data.train": {"source": "scenes", "split": "train", "num_images": 32}},
            "data.train.form: is of `form: captions`, and task vqa learns from vqa",
        ),
        (
            "nlvr",
            {"data.test": {"source": "scenes", "split": "test", "num_images": 6}},
            "data.test.form: is of `form: captions`, and evaluation.nlvr reads nlvr",
        ),
        (
            "entailment",
            {"objectives": {"cma": {}}},
            "objectives: the terms of the loss are pre-training's; task entailment has its own loss",
        ),
        ("entailment", {"model.fusion_encoder": None}, "model.fusion_encoder: task entailment needs one"),
        ("entailment", {"evaluation.vqa": {}}, "evaluation.vqa: a model of task entailment has no head for it"),
        ("text_assignment", {"training.batch_size_per_gpu": 2}, "training.batch_size_per_gpu: 2 images leave no two others"),
        (
            "vqa",
            {"evaluation.vqa": {"answer": "generate", "answer_list": "/x"}},
            "evaluation.vqa.answer_list: `generate` writes answers",
        ),
        (
            "vqa",
            {"evaluation.vqa": {"answer_list": "/nowhere.json"}},
            "evaluation.vqa.answer_list: no such file: /nowhere.json",
        ),
        (
            "entailment",
            {"task": {"name": "entailment", "soft_labels": {"weight": 1.0}}},
            "task.soft_labels.weight: 1 leaves nothing",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(task: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        check_spec(downstream_spec(task, **changes))
    assert message in str(refused.value)


def test_the_default_best_metric_is_the_tasks_own() -> None:
    assert downstream_spec("nlvr").evaluation.best_row_metric == "nlvr/val/accuracy"
    assert toy_spec().evaluation.best_row_metric == "retrieval/val/r_mean"
