"""Promises of `tclx.plan`: numbers follow from the spec, what cannot work is refused by name, the same spec is the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tclx.errors import InputError
from tclx.files import read_as
from tclx.plan import DataFacts, Plan, check_spec, make_plan, remarks, run_id
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import ROOT, Place, key_paths
from tclx.spec.load import load_experiments
from tclx.spec.objectives import TERMS
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm
from tests.spec.documents import GOOD, load_one, write
from tests.spec.test_validation import walk

FACTS = DataFacts(num_train_rows=25_000, num_train_images=5_000, num_val_images=64, num_val_captions=320)


def plan_of(folder: Path, *overrides: str, facts: DataFacts = FACTS) -> Plan:
    spec, origins = load_one(folder, overrides=overrides)
    return make_plan(spec, facts, origins)


def refused(folder: Path, *overrides: str, facts: DataFacts = FACTS) -> str:
    with pytest.raises(InputError) as caught:
        plan_of(folder, *overrides, facts=facts)
    return str(caught.value).replace(f"{folder}/", "")


# --- derived numbers


def test_the_numbers_of_a_run_counted_in_steps(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert (plan.world_size, plan.global_micro_batch_size, plan.global_batch_size) == (1, 128, 128)
    assert (plan.steps_per_epoch, plan.total_steps) == (195, 300)  # 25,000 = 195 x 128 + 40
    assert plan.num_epochs == 300 / 195
    assert (plan.warmup_steps, plan.soft_label_ramp_steps) == (30, 195)
    assert (plan.evaluate_every_steps, plan.checkpoint_every_steps) == (195, 195)
    assert (plan.num_patches, plan.num_lmi_locals) == (16, None)
    assert plan.num_negatives == {"cma": 512 + 127}


def test_the_numbers_of_a_run_counted_in_epochs(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "training={steps: null, epochs: 3, batch_size_per_gpu: 10, accumulation_steps: 4}",
        "launch.num_processes=2",
        "objectives.soft_labels.ramp_epochs=0.5",
        "evaluation.every_epochs=2",
        "training.checkpoints.every_steps=100",
    )
    assert (plan.global_micro_batch_size, plan.global_batch_size) == (20, 80)
    assert (plan.steps_per_epoch, plan.total_steps, plan.num_epochs) == (312, 936, 3)  # 25,000 = 312 x 80 + 40
    assert (plan.soft_label_ramp_steps, plan.evaluate_every_steps, plan.checkpoint_every_steps) == (156, 624, 100)


def test_a_run_shorter_than_an_epoch_is_evaluated_at_its_last_step(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "training.steps=50").evaluate_every_steps == 50


def test_without_a_split_nothing_is_evaluated_during_training(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "evaluation.during_training=null").evaluate_every_steps is None


def test_no_soft_labels_no_ramp(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "objectives.soft_labels=null").soft_label_ramp_steps == 0


def test_zero_steps_only_evaluate_however_small_the_data(tmp_path: Path) -> None:
    facts = FACTS._replace(num_train_rows=3)
    plan = plan_of(tmp_path, "training.steps=0", "evaluation={during_training: null, at_end: val}", facts=facts)
    assert (plan.total_steps, plan.num_epochs, plan.steps_per_epoch, plan.evaluate_every_steps) == (0, 0, 0, None)


def test_negatives_come_from_the_whole_batch_and_the_queue_or_from_one_process(tmp_path: Path) -> None:
    terms = ["objectives.imc.weight=1", "objectives.lmi.pooled_grid=2", "launch.num_processes=4"]
    assert plan_of(tmp_path, *terms).num_negatives == {"cma": 1023, "imc": 1023, "lmi": 511 * 4}
    local = plan_of(tmp_path, *terms, "objectives.in_batch_negatives=local")
    assert local.num_negatives == {"cma": 639, "imc": 639, "lmi": 127 * 4}


@pytest.mark.parametrize(
    ("overrides", "num_patches", "num_locals"),
    [
        (["model.image_encoder={name: vit_base_patch16_224, image_size: 256, patch_size: null}"], 256, 16),
        (
            [
                "model.image_encoder={name: deit_tiny_patch16_224, image_size: 64, patch_size: null}",
                "objectives.lmi.pooled_grid=null",
            ],
            16,
            16,
        ),
        (["model.image_encoder={name: resnet18, patch_size: null}"], None, 16),
        (
            ["model.image_encoder={name: swin_tiny_patch4_window7_224, patch_size: null}", "objectives.lmi.pooled_grid=null"],
            None,
            None,
        ),
    ],
)
def test_patches_are_counted_where_the_name_tells(
    tmp_path: Path, overrides: list[str], num_patches: int | None, num_locals: int | None
) -> None:
    plan = plan_of(tmp_path, "objectives.lmi.weight=1", *overrides)
    assert (plan.num_patches, plan.num_lmi_locals) == (num_patches, num_locals)


@pytest.mark.parametrize(
    ("terms", "momentum", "second_view", "fusion"),
    [
        ("cma", True, False, False),
        ("imc", True, True, False),
        ("lmi", True, True, False),
        ("itm", False, False, True),
        ("mlm", True, False, True),
        ("mlm, soft_labels: null", False, False, True),
    ],
)
def test_each_term_needs_only_its_own_parts(
    tmp_path: Path, terms: str, momentum: bool, second_view: bool, fusion: bool
) -> None:
    term, _, rest = terms.partition(", ")
    text = GOOD.replace("cma: {weight: 0.5}\n  imc: null\n  itm: {}", f"{term}: {{}}" + (f"\n  {rest}" if rest else ""))
    objectives = load_one(tmp_path, text, ["evaluation={retrieval: null, during_training: null}"]).spec.objectives
    needed = [objectives.need(part) for part in (Needs.MOMENTUM, Needs.SECOND_VIEW, Needs.FUSION)]
    assert needed == [momentum, second_view, fusion]


def test_a_plan_reads_back_from_its_json(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({**plan.to_json(), "key_of_a_newer_version": 1}))
    assert read_as(tmp_path / "plan.json", Plan) == plan


# --- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.image_encoder.image_size=36"],
            "model.image_encoder.image_size: 36 is not a multiple of the patch size 8 (take 32 or 40)",
        ),
        (
            ["model.image_encoder={name: vit_base_patch16_224, patch_size: null, image_size: 12}"],
            "model.image_encoder.image_size: 12 is not a multiple of the patch size 16 (take 16)",
        ),
        (
            ["model.image_encoder={width: 64, num_heads: 3}"],
            "model.image_encoder.num_heads: width 64 is not a multiple of num_heads 3",
        ),
        (
            ["objectives.lmi.pooled_grid=5"],
            "objectives.lmi.pooled_grid: 5 x 5 locals cannot be pooled from 4 x 4 patches (at most 4; null keeps every patch)",
        ),
        (
            ["model.fusion_encoder=null"],
            "model.fusion_encoder: itm needs a fusion encoder (add `fusion_encoder: {num_layers: 6}`, or set "
            "objectives.itm: null)",
        ),
        (
            ["model.fusion_encoder=null", "objectives.mlm={}"],
            "model.fusion_encoder: itm and mlm need a fusion encoder (add `fusion_encoder: {num_layers: 6}`, "
            "or set objectives.itm: null, objectives.mlm: null)",
        ),
        (["model.queue_size=100"], "model.queue_size: 100 cannot hold one global batch of 128 (take 0 or at least 128)"),
        (
            ["model.image_encoder.frozen=true"],
            "model.image_encoder.frozen: a frozen image encoder with random weights would never see anything "
            "(name its weights, or an init)",
        ),
        (
            ["model.text_encoder.lora={}"],
            "model.text_encoder.lora: adapters beside random weights would learn little (name its weights, or an init)",
        ),
        (
            ["model.image_encoder={frozen: true, lora: {}, weights: hub}"],
            "model.image_encoder.lora: the image encoder is frozen; with adapters its own weights stay fixed, too "
            "(null, or frozen: false)",
        ),
        (
            ["model.image_encoder={lora: {}, weights: hub}", "launch.fsdp=true", "launch.num_processes=2"],
            "launch.fsdp: adapters are not divided among processes, and the weights that would be need neither gradients nor "
            "moments (false)",
        ),
        (
            ["launch.num_processes=8"],
            "launch.num_processes: at odds with model.queue_size (toy.yaml:8:3): 512 cannot hold one global batch of 1024 "
            "(take 0 or at least 1024)",
        ),
        (
            ["compat=official", "model.queue_size=300", "optim.schedule.warmup_steps=0"],
            "model.queue_size: 300 is not a multiple of the global batch 128, as the official code requires "
            "(take 256, or remove "
            "`compat: official`)",
        ),
        (
            ["compat=official", "optim.schedule.warmup_steps=160"],
            "optim.schedule.warmup_steps: 160 is not a multiple of 100: the official warm-up climbs once in 100 "
            "steps (take 200)",
        ),
        (
            ["data.max_caption_tokens=33"],
            "data.max_caption_tokens: 33 tokens, but the text encoder has 32 positions (or raise "
            "model.text_encoder.sizes.max_positions)",
        ),
        (
            ["model.text_encoder={sizes: null, name: bert-base-uncased}", "data.max_caption_tokens=513"],
            "data.max_caption_tokens: 513 tokens, but the text encoder has 512 positions",
        ),
        (
            ["training.batch_size_per_gpu=1", "model.queue_size=0", "objectives.imc={}"],
            "training.batch_size_per_gpu: with a batch of one cma, imc, itm have no negatives (2 or more; a queue "
            "(model.queue_size) serves cma and imc alone)",
        ),
        (
            ["training.batch_size_per_gpu=1"],
            "training.batch_size_per_gpu: with a batch of one itm has no negatives (2 or more; a queue "
            "(model.queue_size) serves "
            "cma and imc alone)",
        ),
        (
            ["objectives.soft_labels.weight=1"],
            "objectives.soft_labels.weight: 1 leaves nothing of the ground truth (below 1; the paper has 0.4)",
        ),
        (
            ["model.momentum=0"],
            "model.momentum: at 0 the momentum encoders are the online ones, and soft labels repeat the model's "
            "own answer (above 0, "
            "or objectives.soft_labels: null)",
        ),
        (
            ["evaluation.at_end=test"],
            "evaluation.at_end: `test`, but there is no `data.test` (add data.test, or set null)",
        ),
        (
            ["objectives={cma: null, itm: null, imc: {}}"],
            "objectives.cma: at odds with evaluation.retrieval (toy.yaml:28:14): "
            "no term that is on brings images and texts together "
            f"(switch on one of {', '.join(name for name, term in TERMS.items() if term.aligns)}, or set null)",
        ),
        (
            ["objectives={cma: null, itm: {}, imc: null}"],
            "objectives.cma: at odds with evaluation.retrieval (toy.yaml:28:14): "
            "no contrastive term is on, so there are no embeddings to choose the candidates by that "
            "ITM re-ranks (switch on objectives.cma, or set null)",
        ),
        (
            ["evaluation.best_metric=text_to_image/r2"],
            "evaluation.best_metric: `text_to_image/r2` is not a retrieval metric of which more is better (did you mean "
            "`text_to_image/r5`?)",
        ),
        (
            ["evaluation.best_metric=dual/image_to_text/median_rank"],
            "evaluation.best_metric: `dual/image_to_text/median_rank` is not a retrieval metric of which more is "
            "better (did you mean "
            "`dual/image_to_text/r5`?)",
        ),
        (
            ["training={device: cpu, precision: fp16}"],
            "training.precision: fp16 needs a GPU, and training.device is cpu (fp32 or bf16)",
        ),
        (
            ["training={device: cpu, precision: tf32}"],
            "training.precision: tf32 needs a GPU, and training.device is cpu (fp32 or bf16)",
        ),
        (
            ["training={device: mps, precision: bf16}"],
            "training.precision: bf16 does not run on training.device: mps (fp32)",
        ),
        (
            ["training={device: mps, compile: true}"],
            "training.compile: torch.compile is not supported on training.device: mps (false)",
        ),
        (
            ["training.device=mps", "launch.num_processes=2"],
            "launch.num_processes: a Mac has one GPU, and mps exchanges nothing between processes (1; training.device: cpu "
            "trains in several)",
        ),
        (
            ["training.device=mps", "launch={backend: slurm}"],
            "training.device: mps is a Mac's GPU, and launch.backend is slurm (auto, cuda or cpu)",
        ),
        (["launch.fsdp=true"], "launch.fsdp: layers are divided among processes, and there is one (false, or more of them)"),
        (
            ["launch={fsdp: true, num_processes: 2}", "training.precision=fp16"],
            "launch.fsdp: does not work with fp16's scaled gradients (training.precision: bf16)",
        ),
        (
            ["launch={fsdp: true, num_processes: 2}", "objectives.balance={name: pcgrad}"],
            "launch.fsdp: no process has the whole gradients that `pcgrad` compares "
            "(objectives.balance: {name: uncertainty}, or null)",
        ),
        (
            ["launch={fsdp: true, num_processes: 2}", "tracking.term_gradient_norms_every_steps=9"],
            "launch.fsdp: no process has the whole gradients that `tracking.term_gradient_norms_every_steps` measures "
            "(tracking.term_gradient_norms_every_steps: null)",
        ),
        (
            ["training.steps=0", "evaluation.during_training=null"],
            "training.steps: 0 only evaluates, but `evaluation.at_end` is null: there is nothing to do",
        ),
        (
            ["training.steps=30"],
            "training.steps: at odds with optim.schedule.warmup_steps (toy.yaml:22:28): "
            "the warm-up takes 30 of 30 steps: the full learning rate is never reached (below 30)",
        ),
    ],
)
def test_what_cannot_work_names_the_key_to_change(tmp_path: Path, overrides: list[str], message: str) -> None:
    text = refused(tmp_path, *overrides)
    places = ("--set: ", *(f"toy.yaml:{line}:{column}: " for line in range(1, 30) for column in range(1, 90)))
    (line,) = text.splitlines()
    assert next(line.removeprefix(place) for place in places if line.startswith(place)) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optim.schedule.minimum_learning_rate=2e-4"],
            "--set: optim.schedule.minimum_learning_rate: 0.0002 is above the peak, "
            "optim.learning_rate: 0.0001 (at most 0.0001)",
        ),
        (
            ["optim.schedule.warmup_learning_rate=2e-4"],
            "--set: optim.schedule.warmup_learning_rate: 0.0002 is above the peak, "
            "optim.learning_rate: 0.0001 (at most 0.0001)",
        ),
        (
            ["optim.weight_decay=10000"],
            "--set: optim.weight_decay: 10000 x the learning rate 0.0001 takes away all of a weight at every step "
            "(the paper has 0.02)",
        ),
    ],
)
def test_rates_that_turn_the_schedule_upside_down_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert refused(tmp_path, *overrides) == message


def test_equal_rates_of_warm_up_peak_and_end_are_a_schedule(tmp_path: Path) -> None:
    plan_of(tmp_path, "optim.schedule.minimum_learning_rate=1e-4", "optim.schedule.warmup_learning_rate=1e-4")


def test_against_another_file_a_problem_stands_where_the_user_wrote(tmp_path: Path) -> None:
    """The warm-up is the base's; that the run ends before it is the child's doing."""
    write(tmp_path, GOOD, "base.yaml")
    (found,) = load_experiments(write(tmp_path, "extends: base.yaml\ntraining: {steps: 20}\n"))
    with pytest.raises(InputError) as caught:
        make_plan(found.spec, FACTS, found.origins)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "toy.yaml:2:12: training.steps: at odds with optim.schedule.warmup_steps (base.yaml:22:28): the warm-up takes 30 of 20 "
        "steps: the full learning rate is never reached (below 20)"
    )


@pytest.mark.parametrize(
    "key",
    [
        "training.checkpoints.every_steps", "tracking.log_every_steps", "tracking.term_gradient_norms_every_steps",
        "tracking.term_gradients_every_steps",
        "evaluation.every_steps",
    ],
)  # fmt: skip
def test_what_comes_only_after_the_end_is_remarked_on(tmp_path: Path, key: str) -> None:
    def of(steps: int) -> list[str]:
        spec, origins = load_one(tmp_path, overrides=[f"{key}={steps}"])
        return [str(remark) for remark in remarks(spec, make_plan(spec, FACTS, origins), origins)]

    assert of(300) == []
    (remark,) = of(301)
    assert remark.startswith(f"--set: {key}: 301 is beyond the end, step 300: ")


def test_an_evaluation_after_epochs_that_never_end_is_remarked_on(tmp_path: Path) -> None:
    spec, origins = load_one(tmp_path, overrides=["evaluation.every_epochs=2"])
    (remark,) = remarks(spec, make_plan(spec, FACTS, origins), origins)
    assert str(remark) == (
        "--set: evaluation.every_epochs: step 390 is beyond the end, step 300: there is one evaluation, at the end"
    )


def test_divided_layers_measure_no_gradients_and_are_planned_from_what_was_resolved(tmp_path: Path) -> None:
    overrides = ["launch={fsdp: true, num_processes: 2}"]
    spec, origins = load_one(tmp_path, overrides=overrides)
    plan = make_plan(spec, FACTS, origins)
    assert remarks(spec, plan, origins) == []
    assert make_plan(ExperimentSpec.model_validate(spec.model_dump()), FACTS) == plan  # which writes every default out
    written, origins = load_one(tmp_path, overrides=[*overrides, "tracking.term_gradients_every_steps=9"])
    (remark,) = remarks(written, make_plan(written, FACTS, origins), origins)
    assert "tracking.term_gradients_every_steps: is not measured with launch.fsdp" in str(remark)


def test_an_older_torch_is_named_before_layers_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tclx.spec.rules.version", lambda _: "2.14.1+cpu")
    text = refused(tmp_path, "launch={fsdp: true, num_processes: 2}")
    assert "launch.fsdp: needs torch 2.15 or newer, and 2.14.1+cpu is installed (pip install 'torch>=2.15', or false)" in text


def test_defaults_are_not_remarked_on(tmp_path: Path) -> None:
    spec, origins = load_one(tmp_path, overrides=["training.steps=8", "optim.schedule.warmup_steps=2"])
    assert remarks(spec, make_plan(spec, FACTS, origins), origins) == []


def test_more_pairs_in_a_step_than_in_the_data_are_refused(tmp_path: Path) -> None:
    text = refused(tmp_path, "training.accumulation_steps=2", facts=FACTS._replace(num_train_rows=255))
    assert text == (
        "--set: training.accumulation_steps: at odds with training.batch_size_per_gpu (toy.yaml:26:3): "
        "a step takes 256 pairs (128 a process x 1 processes x 2 "
        "passes), but data.train "
        "has 255 (a smaller batch, or more data)"
    )


def test_a_problem_stands_at_the_key_or_at_the_section_around_it(tmp_path: Path) -> None:
    text = GOOD.replace("  val: {source: scenes, split: val, num_images: 64}\n", "")
    spec, origins = load_one(tmp_path, text)
    with pytest.raises(InputError, match=r"toy\.yaml:27:38: evaluation\.during_training: `val`, but there is no"):
        check_spec(spec, origins)
    text = GOOD.replace("  queue_size: 512\n", "").replace("batch_size_per_gpu: 128", "batch_size_per_gpu: 65537")
    spec, origins = load_one(tmp_path, text)
    with pytest.raises(InputError, match=r"toy\.yaml:4:1: model\.queue_size: 65536 cannot hold"):
        check_spec(spec, origins)
    with pytest.raises(InputError, match=r"^model\.queue_size: 65536 cannot hold"):
        check_spec(spec)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    overrides = ["model.queue_size=1", "data.max_caption_tokens=99", "training.steps=10", "init.checkpoint=/nowhere"]
    assert len(refused(tmp_path, *overrides, facts=FACTS._replace(num_train_rows=1)).splitlines()) == 5


def test_official_compat_allows_what_the_official_code_only_lacks(tmp_path: Path) -> None:
    overrides = ["compat=official", "training={precision: bf16, accumulation_steps: 2}", "optim.schedule.warmup_steps=400"]
    assert plan_of(tmp_path, *overrides).warmup_steps == 400


def test_a_queue_nobody_uses_may_have_any_size(tmp_path: Path) -> None:
    without_contrast = (
        "objectives.cma=null",
        "evaluation={retrieval: null, during_training: null, at_end: null, every_epochs: null, every_steps: null}",
    )
    assert plan_of(tmp_path, *without_contrast, "model.queue_size=1").num_negatives == {}


def test_a_batch_of_one_with_a_queue_contrasts_with_the_queue(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "training.batch_size_per_gpu=1", "objectives.itm=null").num_negatives == {"cma": 512}


def test_files_and_folders_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "here.json").write_text("[]")
    source = "{source: files, form: pretrain, files: [here.json, gone.json], image_root: images}"
    text = GOOD.replace("{source: scenes, split: train, num_images: 5000}", source)
    text = text.replace("weights: null", "weights: w.pth").replace(
        "max_caption_tokens: 24", "tokenizer: {source: pretrained, name: ./words}"
    )
    spec, origins = load_one(tmp_path, text + "init: {experiment: first.yaml}\n")
    with pytest.raises(InputError) as caught:
        check_spec(spec, origins)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "toy.yaml:16:61: data.train.files[1]: no such file: gone.json",
        "toy.yaml:16:73: data.train.image_root: no such folder: images",
        "toy.yaml:5:78: model.image_encoder.weights: no such file: w.pth",
        "toy.yaml:18:35: data.tokenizer.name: no such folder: words",
        "toy.yaml:29:8: init.experiment: no such file: first.yaml",
    ]
    with pytest.raises(InputError) as without_data:
        make_plan(spec, FACTS, origins, without_data=True)
    assert [problem.key for problem in without_data.value.problems] == [
        "model.image_encoder.weights",
        "data.tokenizer.name",
        "init.experiment",
    ]


# --- run id


def test_a_run_id_names_spec_variant_and_seed(tmp_path: Path) -> None:
    spec = load_one(tmp_path, GOOD + "variants: {a+b: {}}\n").spec
    assert run_id(spec, 128).startswith("toy-a+b-s3-")
    assert run_id(load_one(tmp_path).spec, 128).startswith("toy-s3-")


def test_a_run_id_does_not_change_from_one_version_to_the_next(tmp_path: Path) -> None:
    """A golden value: when this fails, runs that exist would be trained again. Then either mend it or raise SCHEMA_VERSION."""
    assert run_id(load_one(tmp_path).spec, 128) == "toy-s3-9b9d8ca3"


def test_what_is_written_out_is_the_same_run_as_its_default(tmp_path: Path) -> None:
    written = GOOD.replace("learning_rate: 1e-4", "weight_decay: 0.02\n  learning_rate: 0.0001  # the same")
    assert run_id(load_one(tmp_path, written).spec, 128) == run_id(load_one(tmp_path).spec, 128)


def test_the_global_batch_is_part_of_the_run(tmp_path: Path) -> None:
    spec = load_one(tmp_path).spec
    assert run_id(spec, 128) != run_id(spec, 256)


FREE = (
    "launch.",
    "tracking.",
    "data.num_workers",
    "training.checkpoints.in_background",
    *(f"data.{split}.cache." for split in ("train", "val", "test")),
)
"""Keys that do not change a run."""
LABELLED, CLASSES = "{source: scenes, attribute: shape}", "{source: folder, folder: /x, class_names: /y}"
REGIONS = "{source: refcoco, file: /x, image_root: /y, boxes: /z, detections: /w}"
FULL = [
    *(
        f"objectives.{name}={{{'temperature: {}' if issubclass(term, ContrastiveTerm) else ''}}}"
        for name, term in TERMS.items()
    ),
    "data.test={source: scenes, split: test, num_images: 3}",
    "data.tokenizer={source: captions}",
    "init={checkpoint: /x, experiment: null}",
    "optim.clip_gradient_norm=1",
    "model.image_encoder.lora={}",
    "model.text_encoder.lora={}",
    "objectives.balance={name: gradnorm}",
    "compat=official",
    "tracking.notify={}",
    "tracking.wandb={entity: x, group: x, job_type: x, notes: x, tags: [x]}",
    f"evaluation.classification={{val: {LABELLED}, test: {LABELLED}}}",
    "evaluation.selection={val: {source: scenes}, test: {source: scenes}}",
    "evaluation.entailment={}",
    "evaluation.nlvr={}",
    "evaluation.vqa={answer_list: /a}",
    "evaluation.retrieval.positives={val: /p, test: /q}",
    "evaluation.grounding={val: {source: scenes}, test: {source: scenes}}",
]
"""With GOOD, two specs that hold every section and both kinds where there are two."""
PAIRS = "{source: aro, file: /a, image_root: /b}"
FILES = "{source: files, form: pretrain, files: [/a, /b], image_root: /c, approximate_rows: 3}"
FOLDER = "{source: folder, folder: /a, image_column: x, caption_columns: [x], part: [0, 0.5], limit: 3}"
FOLDERS = [*FULL, *(f"data.{split}={FOLDER}" for split in ("train", "val", "test"))]
OTHER = [
    *FULL,
    *(f"data.{split}={FILES}" for split in ("train", "val", "test")),
    "data.tokenizer={source: pretrained, name: /x}",
    "model.text_encoder={name: x, sizes: null, weights: hub}",
    "optim.schedule={name: constant}",
    "training={steps: null, epochs: 3, checkpoints: {every_steps: 3}}",
    "init={checkpoint: null, experiment: /x, variant: x}",
    "evaluation={every_steps: 3, at_end: test}",
    f"evaluation.classification={{val: {CLASSES}, test: {CLASSES}}}",
    f"evaluation.grounding={{val: {REGIONS}, test: {REGIONS}}}",
    f"evaluation.selection={{val: {PAIRS}, test: {PAIRS}}}",
    "launch={backend: slurm, gpus_per_node: 0, container: {image: /x.sif}}",
    "task={name: vqa}",
    "evaluation.classification.templates_file=/t",
]

ON_SHARDS = [f"data.{split}={{source: shards, folder: /{split}, cache: {{folder: /c}}}}" for split in ("train", "val", "test")]

HOSTED = [f"data.{split}={{source: datasets, name: x/y}}" for split in ("train", "val", "test")]

_SOME = "{source: scenes, num_images: 8, split: train}"
MIXED = [
    f"data.{split}={{source: mixture, rows_per_epoch: 8, sources: {{x: {{share: 1, data: {_SOME}}}}}}}"
    for split in ("train", "val", "test")
]


def leaves(place: Place, value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Every key of a dumped spec that holds no section."""
    for key in value:
        child = place.child(key)
        assert child is not None
        if isinstance(value[key], dict) and child.sections:
            yield from leaves(child, value[key], (*path, key))
        elif not (child.sections and value[key] is None):
            yield (*path, key), child


def changed(spec: ExperimentSpec, path: tuple[str, ...], place: Place) -> ExperimentSpec | None:
    """The same spec with another valid value at one key, or None where there is no other."""
    *sections, key = path
    candidates = [
        None,
        True,
        False,
        1,
        2,
        16,
        20_000,
        0.01,
        0.25,
        0.5,
        "x",
        "/y",
        *place.choices,
        [0.5, 0.75],
        [1, 2, 3],
        ["/z"],
        ["failed"],
        ["{} of a kind"],
        {"exclude": "bad-node"},
        "f" * 40,
    ]
    for candidate in candidates:
        dumped = spec.model_dump(mode="json")
        inside = dumped
        for section in sections:
            inside = inside[section]
        if inside[key] == candidate and type(inside[key]) is type(candidate):
            continue
        inside[key] = candidate
        try:
            other = ExperimentSpec.model_validate_json(json.dumps(dumped))
        except ValidationError:
            continue
        if other != spec:
            return other
    return None


def test_every_key_changes_the_run_except_those_that_change_no_result(tmp_path: Path) -> None:
    found: dict[str, bool] = {}
    for overrides in (FULL, OTHER, FOLDERS, ON_SHARDS, HOSTED, MIXED):
        spec = load_one(tmp_path, overrides=overrides).spec
        for path, place in leaves(ROOT, spec.model_dump(mode="json")):
            if other := changed(spec, path, place):
                found[".".join(path)] = run_id(other, 128) != run_id(spec, 128)
    wrong = [key for key, changes in found.items() if changes == key.startswith(FREE)]
    assert wrong == []
    tags = {f"{key}.{place.tag}" for key, place in walk(ROOT) if place.tag}
    sections = {path.rpartition(".")[0] for path in key_paths()}
    sections |= {path.rpartition(".x.")[0] for path in found}  # of the user's own names
    assert set(key_paths()) - sections - tags - set(found) == set()


def test_where_the_other_half_of_a_contradiction_was_written_counts_too(tmp_path: Path) -> None:
    """The heads are the base's; the width with which they do not go together is the child's."""
    write(tmp_path, GOOD.replace("image_encoder: {", "image_encoder: {num_heads: 4, "), "base.yaml")
    (found,) = load_experiments(write(tmp_path, "extends: base.yaml\nmodel: {image_encoder: {width: 66}}\n"))
    with pytest.raises(InputError) as caught:
        make_plan(found.spec, FACTS, found.origins)
    (message,) = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert message.startswith(
        "toy.yaml:2:25: model.image_encoder.width: at odds with model.image_encoder.num_heads (base.yaml:"
    )
    assert message.endswith("width 66 is not a multiple of num_heads 4")
