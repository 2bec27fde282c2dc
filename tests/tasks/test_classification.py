"""Promises of zero-shot classification."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tclx.data.batch import normalise
from tclx.data.captions import clean_caption
from tclx.data.dataset import training_captions
from tclx.data.scenes import COLORS, SHAPES, draw_scenes
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError
from tclx.metrics import find_metric
from tclx.model.tcl import TCL
from tclx.plan import check_spec
from tclx.spec.data import ScenesSource
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.classification import ClassificationSpec
from tclx.tasks.task import Evaluation
from tests.processes import finish_processes, start_processes
from tests.train.toy import prepare, run, toy_spec

NUM_IMAGES = 12
TEMPLATES = ["a {}", "there is a {} here"]
SHAPES_OF_SCENES = {"test": {"source": "scenes", "attribute": "shape", "num_images": NUM_IMAGES}, "templates": TEMPLATES}


def spec_with(classification: dict[str, Any], **changes: Any) -> ExperimentSpec:
    return toy_spec(**{"evaluation.classification": classification, **changes})


def untrained(spec: ExperimentSpec) -> tuple[TCL, CaptionTokenizer]:
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    torch.manual_seed(0)
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    with torch.no_grad():  # spread the similarities
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model, tokenizer


def evaluated(spec: ExperimentSpec) -> tuple[Evaluation, TCL, CaptionTokenizer]:
    model, tokenizer = untrained(spec)
    task = spec.evaluation.classification
    assert task is not None
    return task.evaluate(model, spec, "test", tokenizer=tokenizer, device=torch.device("cpu")), model, tokenizer


def write_folder(root: Path, **classes: list[tuple[int, int, int]]) -> Path:
    """A folder of images of one colour each."""
    for name, colours in classes.items():
        (root / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (40, 30), colour).save(root / name / f"{number}.png")
    return root


def prediction(model: TCL, spec: ExperimentSpec, tokenizer: CaptionTokenizer, image: Tensor, classes: list[str]) -> int:
    """One image and one prompt at a time."""
    model.eval()
    with torch.no_grad():
        embedding = model.online.encode_image(normalise(image[None], spec.data.normalization)).embedding
        assert embedding is not None
        scores = []
        for name in classes:
            prompts = []
            for template in TEMPLATES:
                text = clean_caption(template.replace("{}", name), max_words=spec.data.max_caption_words)
                encoded = tokenizer.encode([text], max_tokens=spec.data.max_caption_tokens)
                prompt = model.online.encode_text(torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask))
                assert prompt.embedding is not None
                prompts.append(prompt.embedding[0])
            scores.append(float(embedding[0] @ functional.normalize(torch.stack(prompts).mean(dim=0), dim=0)))
    return int(np.argmax(scores))


@pytest.mark.parametrize(("attribute", "classes"), [("shape", list(SHAPES)), ("color", list(COLORS))])
def test_scenes_are_classified_as_one_image_and_one_prompt_at_a_time(attribute: str, classes: list[str]) -> None:
    from tclx.data.scenes import draw_image

    labelled = {"source": "scenes", "attribute": attribute, "num_images": NUM_IMAGES}
    spec = spec_with({"test": labelled, "templates": TEMPLATES, "batch_size": 5})
    found, model, tokenizer = evaluated(spec)
    drawn = draw_scenes(ScenesSource(source="scenes", split="test", num_images=6 * NUM_IMAGES + 64))
    single = [scene for scene in drawn if len(scene.objects) == 1][:NUM_IMAGES]
    labels = [classes.index(getattr(scene.objects[0], attribute)) for scene in single]
    images = [torch.from_numpy(draw_image(scene).transpose(2, 0, 1).copy()) for scene in single]
    right = [prediction(model, spec, tokenizer, image, classes) == label for image, label in zip(images, labels, strict=True)]
    assert found.metrics["accuracy"] == pytest.approx(100 * np.mean(right))
    own = [np.mean([one for one, of in zip(right, labels, strict=True) if of == label]) for label in set(labels)]
    assert found.metrics["balanced_accuracy"] == pytest.approx(100 * np.mean(own))
    assert (found.metrics["num_images"], found.metrics["num_classes"]) == (NUM_IMAGES, 8)
    chance = find_metric("classification/test/accuracy")
    assert chance is not None
    assert chance.chance is not None
    assert chance.chance(found.metrics) == 12.5


def test_a_folder_of_classes_and_the_names_of_its_classes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", red_ball=[(200, 0, 0)] * 3, n0042=[(0, 0, 200)])
    (folder / ".hidden").mkdir()
    (folder / "red_ball" / ".DS_Store").write_bytes(b"x")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"n0042": "blue disc", "red_ball": "red ball", "n0043": "not here"}))
    labelled = {"source": "folder", "folder": str(folder), "class_names": str(names)}
    spec = spec_with({"test": labelled, "templates": TEMPLATES})
    found, _, _ = evaluated(spec)
    assert (found.metrics["num_images"], found.metrics["num_classes"]) == (4.0, 2.0)
    examples = found.examples()
    assert {name: each["num_images"] for name, each in examples["classes"].items()} == {"blue disc": 1, "red ball": 3}
    mean = sum(each["accuracy"] for each in examples["classes"].values()) / 2
    assert found.metrics["balanced_accuracy"] == pytest.approx(mean)
    first = simplejpeg.decode_jpeg(base64.b64decode(examples["pictures"]["0"]), colorspace="RGB")
    assert first.mean(axis=(0, 1))[2] > 150  # folders are sorted, n0042 is blue
    assert examples["items"][0]["right"] == ["blue disc"]
    task = spec.evaluation.classification
    assert task is not None
    assert [path.name for path in task.images("test")] == ["0.png", "0.png", "1.png", "2.png"]


def test_without_names_a_class_is_called_as_its_folder_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, red_ball=[(200, 0, 0)], disc=[(0, 0, 200)])
    found, _, _ = evaluated(spec_with({"test": {"source": "folder", "folder": str(folder)}}))
    assert list(found.examples()["classes"]) == ["disc", "red ball"]


def test_templates_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(TEMPLATES))
    from_file = {"test": SHAPES_OF_SCENES["test"], "templates_file": str(path)}
    assert evaluated(spec_with(from_file))[0].metrics == evaluated(spec_with(SHAPES_OF_SCENES))[0].metrics
    for content, message in (
        ('["a {} or {}"]', "prompt 0: `a {} or {}` has 2 places"),
        ("[]", "is an empty list"),
        ("{}", "list"),
    ):
        path.write_text(content)
        assert message in refusal(spec_with(from_file).evaluation.classification)


def refusal(task: ClassificationSpec | None) -> str:
    assert task is not None
    with pytest.raises(InputError) as refused:
        task.images("test")
    return str(refused.value)


def test_what_is_wrong_with_a_folder_is_said_before_training(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", a=[(0, 0, 0)])
    empty = write_folder(tmp_path / "empty", a=[(0, 0, 0)], b=[])
    two = write_folder(tmp_path / "two", a=[(0, 0, 0)], b=[(1, 1, 1)])
    names, same = tmp_path / "names.json", tmp_path / "same.json"
    names.write_text('{"a": "x"}')
    same.write_text('{"a": "x", "b": "x"}')

    def task(folder: Path, **more: str) -> ClassificationSpec | None:
        return spec_with({"test": {"source": "folder", "folder": str(folder), **more}}).evaluation.classification

    assert "has 1 folders (a folder for each class, two or more" in refusal(task(one))
    assert f"{empty}/b has no image" in refusal(task(empty))
    assert "has no name, a text, for b" in refusal(task(two, class_names=str(names)))
    assert '2 classes are called "x"' in refusal(task(two, class_names=str(same)))
    with pytest.raises(InputError, match=r"evaluation\.classification\.test\.folder: no such folder: /nowhere"):
        check_spec(spec_with({"test": {"source": "folder", "folder": "/nowhere"}}))


@pytest.mark.parametrize(
    ("classification", "changes", "message"),
    [
        ({"val": {"source": "scenes", "attribute": "shape"}}, {"evaluation.during_training": None}, "val: is never evaluated"),
        (
            SHAPES_OF_SCENES,
            {"objectives.cma": None},
            "no term that is on brings the embeddings of images and texts together",
        ),
    ],
)
def test_what_cannot_be_classified_is_refused(classification: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    changes = {"evaluation.every_steps": None, **changes} if "evaluation.during_training" in changes else changes
    with pytest.raises(InputError, match=message):
        check_spec(spec_with(classification, **changes))


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}"])
def test_a_template_names_the_class_once(template: str) -> None:
    with pytest.raises(ValueError, match="places for the class"):
        ClassificationSpec.model_validate_json(json.dumps({**SHAPES_OF_SCENES, "templates": [template]}))


def test_a_run_has_both_tasks_beside_each_other_and_may_choose_by_either(tmp_path: Path) -> None:
    both = {**SHAPES_OF_SCENES, "val": {"source": "scenes", "attribute": "color", "num_images": 6}}
    folder = run(prepare(tmp_path / "run", spec_with(both, **{"evaluation.best_metric": "classification/accuracy"})))
    metrics = folder.read_evaluations()["test"].metrics
    assert {"retrieval/test/r_mean", "classification/test/accuracy"} <= metrics.keys()
    names = {"classification-test.json", "retrieval-test.json"}
    assert {path.name for path in folder.evaluation.glob("*.json")} == names
    assert names <= {path.name for path in (folder.evaluation / "examples").iterdir()}
    best = folder.read_best()
    assert best is not None
    assert best.metric == "classification/val/accuracy"


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    for number in (1, 2):
        arguments = ["-m", "tests.tasks.classification_worker", str(tmp_path / f"{number}.json")]
        finish_processes(start_processes(arguments, world_size=number))
    alone, together = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2))
    assert alone == together
