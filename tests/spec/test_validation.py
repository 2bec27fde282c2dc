"""Promises of `tclx.spec.validation`: the user's words, the right line, the nearest right key, everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.spec.fields import ROOT, Place, key_paths
from tests.spec.documents import GOOD, refusal

FIVE_MISTAKES = """\
name: toy
model:
  imageencoder: {name: vit_tiny_patch16_224, image_size: 32}
  text_encoder: {name: bert-base-uncased, num_layers: six}
  queue_size: -1
objectives:
  cma: {weight: 0}
data:
  train: {source: scene, split: train, num_images: 5000}
optim: {learning_rate: 1e-4}
training: {epochs: 1}
"""


def test_the_text_of_five_mistakes_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path, FIVE_MISTAKES) == (
        "toy.yaml:2:1: model.image_encoder: missing\n"
        "toy.yaml:3:3: model.imageencoder: unknown key (did you mean `image_encoder`?)\n"
        "toy.yaml:4:43: model.text_encoder.num_layers: must be a whole number, not the text `six`\n"
        "toy.yaml:5:3: model.queue_size: must be at least 0, not -1\n"
        "toy.yaml:7:9: objectives.cma.weight: must be greater than 0, not 0\n"
        "toy.yaml:9:11: data.train.source: must be one of scenes, files, not `scene` (did you mean `scenes`?)\n"
        "toy.yaml:11:1: training.batch_size_per_gpu: missing"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optim:", "optimm:", "20:1: optimm: unknown key (did you mean `optim`?)"),
        ("seed: 3", "learning_rate: 3", "2:1: learning_rate: unknown key (did you mean `optim.learning_rate`?)"),
        (
            "seed: 3",
            "zzz: 3",
            "2:1: zzz: unknown key (known here: name, seed, compat, model, objectives, data, optim, training, ",
        ),
        ("steps: 300", "steps: 1e3", "25:3: training.steps: must be a whole number, not 1000.0"),
        ("steps: 300", "compile: yes\n  steps: 300", "25:3: training.compile: must be true or false, not the text `yes`"),
        ("learning_rate: 1e-4", "learning_rate: '1'", "21:3: optim.learning_rate: must be a number, not the text `1`"),
        ("learning_rate: 1e-4", "learning_rate: true", "21:3: optim.learning_rate: must be a number, not true"),
        ("name: toy", "name: my run", "1:1: name: must be letters, digits and `._+-`, at most 64"),
        ("name: toy", "name: 3", "1:1: name: must be text, not 3"),
        ("weights: null", "weights: 5", "5:78: model.image_encoder.weights: must be `hub` or text, not 5"),
        ("weights: null", "weights: ''", "5:78: model.image_encoder.weights: must be `hub` or text that is not empty, not ``"),
        ("warmup_steps: 30", "warmup: 30", "22:28: optim.schedule.warmup: unknown key (did you mean `warmup_steps`?)"),
        ("name: cosine", "name: cosin", "22:14: optim.schedule.name: must be one of cosine, constant, not `cosin` (did you"),
        ("source: scenes, split: train", "split: train", "16:3: data.train.source: missing (one of scenes, files)"),
        (
            "split: train",
            "split: trian",
            "16:27: data.train.split: must be one of train, val, test, not `trian` (did you mean `train`?)",
        ),
        ("split: train", "scenes: 1, split: train", "16:27: data.train.scenes: unknown key (known here: source, num_images"),
        ("split: train", "files: [a], split: train", "16:27: data.train.files: unknown key (it goes with `source: files`)"),
        ("  max_caption_tokens: 24", "  normalization: {std: [1, 1]}", "18:19: data.normalization.std: too few values"),
        (
            "  max_caption_tokens: 24",
            "  normalization: {std: [1, 1, 0]}",
            "18:31: data.normalization.std[2]: must be greater than 0, not 0",
        ),
        ("  max_caption_tokens: 24", "  normalization: {std: 1}", "18:19: data.normalization.std: must be a list, not 1"),
        (
            "learning_rate: 1e-4",
            "learning_rate: 1\n  betas: [0, 0, 0]",
            "22:3: optim.betas: must be a list of at most 2, not a list of 3",
        ),
        ("optim:", "optim: 5\nx:", "20:1: optim: must be a section with keys, not 5"),
        ("objectives:", "objectives:\nx:", "10:1: objectives: must be a section with keys, not null"),
        ("steps: 300", "steps: 300\n  epochs: 3", "24:1: training: give exactly one of `epochs` and `steps`"),
        ("itm: {}", "itm: {weight: -1}", "13:9: objectives.itm.weight: must be greater than 0, not -1"),
        (
            "max_caption_tokens: 24",
            "augmentation: {crop_scale: [1, 0.5]}",
            "18:3: data.augmentation: `crop_scale` [1, 0.5] is no range of areas",
        ),
        ("cma: {weight: 0.5}\n  imc: null\n  itm: {}", "imc: null", "10:1: objectives: every term is off"),
        (
            "source: scenes, split: train, num_images: 5000",
            "source: files, form: pretrain, files: [3], image_root: x",
            "16:50: data.train.files[0]: must be text, not 3",
        ),
        (
            "source: scenes, split: train, num_images: 5000",
            "source: files, form: pretrain, files: [], image_root: x",
            "16:42: data.train.files: must be a list of at least 1, not a list of 0",
        ),
    ],
)
def test_each_mistake_names_its_place_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert f"toy.yaml:{message}" in refusal(tmp_path, GOOD.replace(old, new, 1))


def test_no_message_shows_pydantics_own_words(tmp_path: Path) -> None:
    for old, new in [
        ("steps: 300", "steps: []"),
        ("cma: {weight: 0.5}", "cma: [1]"),
        ("model:", "model: []\nx:"),
        ("seed: 3", "seed: {}"),
    ]:
        text = refusal(tmp_path, GOOD.replace(old, new))
        assert "Input should" not in text
        assert "Value error" not in text


def test_long_values_are_cut(tmp_path: Path) -> None:
    assert refusal(tmp_path, GOOD.replace("seed: 3", f"seed: {'x' * 500}")).endswith(f"not the text `{'x' * 37}...`")


def walk(place: Place, path: str = "") -> list[tuple[str, Place]]:
    inside = [(f"{path}{key}", place.child(key)) for key in place.known_keys()]
    return [(key, child) for key, child in inside if child] + [
        found for key, child in inside if child for found in walk(child, f"{key}.")
    ]


def test_every_key_has_a_docstring() -> None:
    def missing(place: Place) -> list[str]:
        return [
            f"{section.__name__}.{key}"
            for section in place.sections
            for key, field in section.model_fields.items()
            if not field.description
        ]

    assert [name for _, place in [("", ROOT), *walk(ROOT)] for name in missing(place)] == []


def test_the_walk_over_the_spec_finds_paths_kinds_and_leaves() -> None:
    places = dict(walk(ROOT))
    assert list(places) != []
    assert set(places) == set(key_paths())
    assert {key for key, place in places.items() if place.is_path} == {
        *(f"data.{split}.{key}" for split in ("train", "val", "test") for key in ("files", "image_root")),
        "model.image_encoder.weights",
        "model.text_encoder.weights",
        "init.experiment",
        "init.checkpoint",
    }
    assert {key for key, place in places.items() if place.is_hub_name} == {"model.text_encoder.name", "data.tokenizer.name"}
    assert {key: place.tag for key, place in places.items() if place.tag} == {
        "data.train": "source",
        "data.val": "source",
        "data.test": "source",
        "data.tokenizer": "source",
        "optim.schedule": "name",
        "launch": "backend",
    }
