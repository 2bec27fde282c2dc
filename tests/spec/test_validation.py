"""Promises of `tclx.spec.validation`: the user's words, the right line, the nearest right key, everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tclx.section import PATTERN_WORDS, text_like
from tclx.spec.fields import ROOT, Place, key_paths
from tclx.spec.load import load_spec_json
from tests.spec.documents import GOOD, load_one, refusal, write

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
        "toy.yaml:9:11: data.train.source: must be one of scenes, files, folder, datasets, shards, mixture, not `scene` "
        "(did you mean `scenes`?)\n"
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
            "2:1: zzz: unknown key (known here: name, seed, compat, task, model, objectives, data, optim, training, ",
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
        (
            "source: scenes, split: train",
            "split: train",
            "16:3: data.train.source: missing (one of scenes, files, folder, datasets, shards, mixture)",
        ),
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
        (
            "steps: 300",
            "steps: 300\n  epochs: 3",
            "26:3: training.epochs: give exactly one of `epochs` and `steps` (`training.steps: null` beside it)",
        ),
        (
            "text_encoder: {sizes:",
            "text_encoder: {name: x, sizes:",
            "6:27: model.text_encoder.sizes: give exactly one of `name` and `sizes` (`model.text_encoder.name: null` beside "
            "it)",
        ),
        ("itm: {}", "itm: {weight: -1}", "13:9: objectives.itm.weight: must be greater than 0, not -1"),
        (
            "max_caption_tokens: 24",
            "augmentation: {crop_scale: [1, 0.5]}",
            "18:18: data.augmentation.crop_scale: `crop_scale` [1, 0.5] is no range of areas",
        ),
        ("cma: {weight: 0.5}\n  imc: null\n  itm: {}", "imc: null", "11:3: objectives.imc: every term is off"),
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
    places = {key: place for key, place in places.items() if not key.startswith("evaluation.")}  # each task tests its own
    assert {key for key, place in places.items() if place.is_path} == {
        *(
            f"data.{split}.{key}"
            for split in ("train", "val", "test")
            for key in ("files", "image_root", "folder", "cache.folder")
        ),
        "model.image_encoder.weights",
        "model.text_encoder.weights",
        "init.experiment",
        "init.checkpoint",
    }
    data_sets = {f"data.{split}.name" for split in ("train", "val", "test")}
    hub_names = {key for key, place in places.items() if place.is_hub_name}
    assert hub_names == {"model.text_encoder.name", "data.tokenizer.name", *data_sets}
    assert {key: place.tag for key, place in places.items() if place.tag} == {
        "data.train": "source",
        "data.val": "source",
        "data.test": "source",
        "data.tokenizer": "source",
        "task": "name",
        "optim.schedule": "name",
        "objectives.balance": "name",
        "launch": "backend",
    }


# ----------------------------------------------------------------------------------------- whose line, and how many lines


BASE_AND_CHILD = "extends: base.yaml\nname: child\n"


@pytest.mark.parametrize(
    ("child", "overrides", "message"),
    [
        (
            "training: {epochs: 2}\n",
            [],
            "toy.yaml:3:12: training.epochs: give exactly one of `epochs` and `steps`; `training.steps` stands at "
            "base.yaml:25:3 (`training.steps: null` beside it)",
        ),
        (
            "",
            ["training.epochs=2"],
            "--set: training.epochs: give exactly one of `epochs` and `steps`; `training.steps` stands at base.yaml:25:3 "
            "(add --set training.steps=null)",
        ),
        ("training:\n  steps: null\n", [], "toy.yaml:4:3: training.steps: give exactly one of `epochs` and `steps`"),
        (
            "objectives: {temperature: {minimum: 0.1}}\n",
            [],
            "toy.yaml:3:28: objectives.temperature.minimum: initial 0.07 is outside minimum..maximum = 0.1..0.5",
        ),
        (
            "evaluation: {retrieval: null}\n",
            [],
            "toy.yaml:3:14: evaluation.retrieval: name a task to evaluate, for instance `retrieval: {}`; "
            "`evaluation.during_training` stands at base.yaml:28:38",
        ),
    ],
)
def test_keys_at_odds_are_reported_at_the_one_that_the_user_wrote(
    tmp_path: Path, child: str, overrides: list[str], message: str
) -> None:
    write(tmp_path, GOOD, "base.yaml")
    assert refusal(tmp_path, BASE_AND_CHILD + child, overrides) == message


def test_twenty_of_a_kind_are_said_and_the_others_counted(tmp_path: Path) -> None:
    lines = refusal(
        tmp_path, GOOD + "\n".join(f"key{index}: 1" for index in range(2000)) + "\nseed2: [\n]\noptim2: 3"
    ).splitlines()
    assert len(lines) == 21
    assert sum("unknown key" in line for line in lines[:20]) == 20
    assert lines[20] == "and 1,982 more like these: unknown key"


def test_other_kinds_are_said_beside_many_of_one(tmp_path: Path) -> None:
    text = GOOD.replace("seed: 3", "seed: fast") + "\n".join(f"key{index}: 1" for index in range(30))
    lines = refusal(tmp_path, text).splitlines()
    assert len(lines) == 22
    assert sum("seed: must be a whole number" in line for line in lines) == 1


def test_a_sweep_is_no_experiment_and_is_told_so_in_one_line(tmp_path: Path) -> None:
    text = "name: x\nexperiment: a.yaml\nspace: {optim.learning_rate: {log_uniform: [1e-5, 1e-3]}}\nnum_trials: 3\n"
    assert refusal(tmp_path, text) == "toy.yaml:1:1: this is a sweep, not an experiment (tclx sweep toy.yaml runs it)"


# ----------------------------------------------------------------------------------------------------------- what nobody means


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.learning_rate", "1.0", "less than 1"),
        ("optim.learning_rate", "1e-300", "at least 1e-12"),
        ("optim.weight_decay", "1e300", "at most 10000"),
        ("optim.betas", "[0.9, 0]", "at least 0.1"),
        ("optim.epsilon", "1e-300", "at least 1e-30"),
        ("optim.clip_gradient_norm", "1e-300", "at least 1e-08"),
        ("optim.clip_gradient_norm", "1e300", "at most 100000000"),
        ("optim.schedule.minimum_learning_rate", "1.5", "less than 1"),
        ("optim.schedule.warmup_steps", "9000000000000000000", "at most 1000000000"),
        ("objectives.cma.weight", "1e300", "at most 100000000"),
        ("objectives.cma.weight", "1e-300", "at least 1e-08"),
        ("objectives.temperature.maximum", "1e300", "at most 100"),
        ("objectives.temperature.minimum", "1e-300", "at least 1e-05"),
        ("data.augmentation.crop_scale", "[1e-300, 1]", "at least 0.001"),
        ("data.normalization.std", "[1e-300, 1, 1]", "at least 0.001"),
        ("data.normalization.mean", "[1e300, 1, 1]", "at most 1000"),
        ("data.tokenizer", "{source: captions, vocab_size: 1000000000}", "at most 10000000"),
        ("data.max_caption_tokens", "1000000000", "at most 100000"),
        ("model.image_encoder.depth", "1000000000", "at most 100"),
        ("model.image_encoder.width", "1000000000", "at most 65536"),
        ("model.image_encoder.num_heads", "1000000000", "at most 1024"),
        ("model.text_encoder.num_layers", "1000000000", "at most 100"),
        ("model.text_encoder.sizes.intermediate_size", "1000000000", "at most 262144"),
        ("model.text_encoder.sizes.max_positions", "1000000000", "at most 1000000"),
        ("model.fusion_encoder.num_layers", "1000000000", "at most 100"),
        ("model.embed_dim", "1000000000", "at most 65536"),
        ("model.queue_size", "1000000000", "at most 100000000"),
        ("training.steps", "9000000000000000000", "at most 1000000000"),
        ("training.batch_size_per_gpu", "1000000000", "at most 1000000"),
        ("training.accumulation_steps", "1000000000", "at most 1000000"),
        ("evaluation.retrieval.batch_size", "1000000000", "at most 1000000"),
        ("tracking.log_every_steps", "9000000000000000000", "at most 1000000000"),
        ("launch.num_processes", "1000000000", "at most 10000"),
    ],
)
def test_a_size_or_rate_that_can_only_be_a_slip_is_refused_where_it_is_written(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    refused = refusal(tmp_path, overrides=[f"{key}={value}"])
    assert refused.startswith(f"--set: {key}")
    assert f"must be {message}, not " in refused


def test_what_a_run_folder_holds_is_read_beyond_those_bounds(tmp_path: Path) -> None:
    """A run of an earlier version stays readable, however odd its spec."""
    tree = load_one(tmp_path).spec.model_dump(mode="json")
    tree["optim"] |= {"learning_rate": 1.0, "betas": [0.9, 0.0]}
    tree["objectives"]["cma"]["weight"] = 1e9
    tree["model"]["image_encoder"]["depth"] = 500
    tree["launch"] = {"backend": "slurm", "sbatch_options": {"job-nam": "x"}}
    path = write(tmp_path, json.dumps(tree), "spec.json")
    assert load_spec_json(path).optim.learning_rate == 1.0


def test_too_many_seeds_are_refused(tmp_path: Path) -> None:
    seeds = ", ".join(map(str, range(10_001)))
    assert (
        refusal(tmp_path, GOOD.replace("seed: 3", f"seeds: [{seeds}]"))
        == "toy.yaml:2:1: seeds: 10,001 seeds stand here (at most 10,000)"
    )


def test_a_pattern_is_called_the_same_wherever_it_stands() -> None:
    pattern, words = next(iter(PATTERN_WORDS.items()))
    text_like(pattern, words)
    with pytest.raises(ValueError, match="elsewhere"):
        text_like(pattern, "something else")
    assert PATTERN_WORDS[pattern] == words
