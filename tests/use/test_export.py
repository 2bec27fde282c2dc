"""Promises of `tclx export`: the same embeddings elsewhere, a card that says what is known, nothing overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tclx
from tclx.data.batch import normalise
from tclx.data.dataset import stack_images
from tclx.errors import InputError
from tclx.use.loaded import VisionLanguageModel
from tests.cli.test_cli import Ended
from tests.train import toy

RUN, TEXTS = "whole-s0-00000001", ["a red circle", "two green squares on white", "", "blue " * 40]


def export(runs: Path, output: Path, *arguments: str, run: str = RUN) -> Ended:
    return Ended("export", run, "-o", output, *arguments, "--runs-dir", runs)


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    ended = export(runs, folder)
    assert (ended.code, ended.out.strip()) == (0, str(folder)), ended.err
    return folder


def test_an_exported_folder_gives_the_same_bits_wherever_it_is(
    exported: Path, photos: list[Path], tmp_path: Path, whole: VisionLanguageModel
) -> None:
    shutil.copytree(exported, tmp_path / "elsewhere")
    found = tclx.load(tmp_path / "elsewhere")
    assert np.array_equal(found.embed_images(photos), whole.embed_images(photos))
    assert np.array_equal(found.embed_texts(TEXTS), whole.embed_texts(TEXTS))
    assert np.array_equal(found.score(photos, TEXTS, by="itm"), whole.score(photos, TEXTS, by="itm"))
    assert (found.name, found.step, found.image_identity) == (whole.name, whole.step, whole.image_identity)
    assert np.array_equal(tclx.load(exported / "model.safetensors").embed_images(photos), whole.embed_images(photos))


def test_an_exported_model_of_questions_keeps_its_answers(runs: Path, photos: list[Path], tmp_path: Path) -> None:
    assert export(runs, tmp_path / "asked", run="asked").code == 0
    found, before = tclx.load(tmp_path / "asked"), tclx.load("asked", runs_dir=runs)
    assert len(json.loads((tmp_path / "asked" / "answers.json").read_text())) > 3
    assert found.answer(photos[0], "what color is it?") == before.answer(photos[0], "what color is it?")


def test_a_folder_has_no_training_parts_and_no_private_places(exported: Path) -> None:
    from safetensors.torch import load_file

    assert not [name for name in load_file(exported / "model.safetensors") if name.startswith(("momentum.", "queue."))]
    spec = json.loads((exported / "config.json").read_text())["spec"]
    assert spec["launch"]["backend"] == "local"
    assert spec["tracking"]["wandb"] is None


def test_preprocessing_is_what_the_run_was_trained_with(exported: Path) -> None:
    found = json.loads((exported / "preprocessing.json").read_text())
    spec = toy.toy_spec()
    assert found["image"]["size"] == spec.model.image_encoder.image_size
    assert tuple(found["image"]["mean"]) == spec.data.normalization.mean
    assert found["text"]["max_tokens"] == spec.data.max_caption_tokens


def test_the_card_says_data_metrics_and_licence(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "generated scenes, 64 images" in card
    assert "text_to_image/r1" in card
    assert "[" in card.partition("text_to_image/r1")[2].partition("\n")[0]  # an interval
    assert "states no licence" in card


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/tokenizer.json", "config.json"])
def test_a_damaged_folder_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(exported, tmp_path / "model")
    content = bytearray((tmp_path / "model" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model" / name).write_bytes(content[:-3])
    with pytest.raises(InputError, match="damaged"):
        tclx.load(tmp_path / "model")


def test_onnx_gives_the_same_embeddings(runs: Path, photos: list[Path], tmp_path: Path, whole: VisionLanguageModel) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'tclx[export]'")
    import onnxruntime

    ended = export(runs, tmp_path / "onnx", "--to", "onnx")
    assert ended.code == 0, ended.err

    def opened(name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(tmp_path / "onnx" / name, providers=["CPUExecutionProvider"])

    for number in (1, 3):
        pixels = normalise(stack_images(whole.prepared(photos[:number])), whole.spec.data.normalization)
        (found,) = opened("image_encoder.onnx").run(None, {"pixels": pixels.numpy()})
        assert found == pytest.approx(whole.embed_images(photos[:number]), abs=1e-4)
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:3]):
        ids, mask = whole._encoded(texts)
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.to(torch.int64).numpy()}
        (found,) = opened("text_encoder.onnx").run(None, inputs)
        assert found == pytest.approx(whole.embed_texts(texts), abs=1e-4)


def test_the_official_form_is_that_of_weights_export(runs: Path, tmp_path: Path) -> None:
    assert export(runs, tmp_path / "official", "--to", "official").code == 0
    assert Ended("weights", "export", runs / RUN, tmp_path / "tcl.pth", "--form", "pretrain").code == 0
    ours, theirs = (
        torch.load(path, weights_only=True)["model"] for path in (tmp_path / "official/pretrain.pth", tmp_path / "tcl.pth")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_the_official_form_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    vit = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2}
    spec = toy.toy_spec(**{"model.image_encoder": {**vit, "stem": "conv"}, "training.steps": 3, "evaluation.every_steps": 3})
    toy.run(toy.prepare(tmp_path / "toy-s3-00000004", spec))
    ended = export(tmp_path, tmp_path / "out", "--to", "official", run="toy")
    assert ended.code == 2
    assert "convolutional stem" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        (RUN, ["--form", "vqa"], "of `--to official`"),
        (RUN, ["--to", "official", "--form", "vqa"], "which this model does not"),
        ("asked", ["--to", "onnx"], "no embeddings"),
        ("plain", ["--to", "official"], "itm"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    runs: Path, tmp_path: Path, run: str, arguments: list[str], message: str
) -> None:
    ended = export(runs, tmp_path / "out", *arguments, run=run)
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    ended = export(runs, tmp_path)
    assert ended.code == 2
    assert "is not empty" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_exported_folder_is_evaluated_as_its_run_was(exported: Path, runs: Path) -> None:
    found, before = (json.loads(Ended("eval", target, "--json").out)["metrics"] for target in (exported, runs / RUN))
    assert found == before
