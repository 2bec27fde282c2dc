"""Promises of `tclx.spec.cures`: who writes a value as other tools have it is told how it is written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.spec.cures import seconds_of
from tests.spec.documents import load_one, refusal

SLURM = "launch={backend: slurm}"


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("objectives.imc=false", "null switches it off"),
        ("objectives.imc=None", "null switches it off"),
        ("objectives.imc=off", "null switches it off"),
        ("tracking.wandb=false", "null switches it off"),
        ("data.val=None", "null switches it off"),
        ("objectives.imc=true", "{} switches it on with its defaults"),
        ("tracking.wandb=yes", "{} switches it on with its defaults"),
        ("tracking.wandb=my-project", "write {project: my-project}"),
        ("objectives.temperature=0.07", "write {initial: 0.07}"),
        ("objectives.cma.temperature=1", "write {initial: 1}"),
        ("objectives.mlm=0.3", "write {weight: 0.3}"),
        ("model.fusion_encoder=6", "write {num_layers: 6}"),
        ("training.checkpoints=500", "write {every_steps: 500}"),
        ("model.image_encoder=vit_base_patch16_224", "write {name: vit_base_patch16_224, image_size: IMAGE_SIZE}"),
        ("optim.schedule=constant", "write {name: constant}"),
        ("launch=slurm", "write {backend: slurm}"),
        ("training.compile=yes", "write true"),
        ("training.compile=None", "write false"),
        ("training.steps=None", "write null"),
        ("training.steps=1e3", "write 1000"),
        ("training.steps='300'", "without quotes: 300"),
        ("optim.learning_rate='1e-4'", "without quotes: 1e-4"),
        ("tracking.wandb.notes=3", 'put it in quotes if it is text: "3"'),
        ("tracking.wandb.notes=- x", "put it in quotes if it is text"),
        ("tracking.wandb.notes=a: b", "put it in quotes if it is text"),
        ("tracking.wandb.tags=first", "a list of one is written [first]"),
    ],
)
def test_the_usual_slip_is_answered_with_what_to_write(tmp_path: Path, override: str, cure: str) -> None:
    assert refusal(tmp_path, overrides=[override]).endswith(f" ({cure})")


@pytest.mark.parametrize("override", ["optim.betas=0.9", "init=runs/x", "data.tokenizer=bert", "objectives=1"])
def test_where_nothing_is_likely_nothing_is_guessed(tmp_path: Path, override: str) -> None:
    assert "(" not in refusal(tmp_path, overrides=[override])


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("time_limit_minutes", "24:00:00", "24:00:00 is 1440 minutes: write 1440"),
        ("time_limit_minutes", "1-00:00:00", "1-00:00:00 is 1440 minutes: write 1440"),
        ("time_limit_minutes", "1-12", "1-12 is 2160 minutes: write 2160"),
        ("time_limit_minutes", "24h", "24h is 1440 minutes: write 1440"),
        ("signal_seconds", "2:00", "2:00 is 120 seconds: write 120"),
        ("gpus_per_node", "a100:8", "write 8, and gpu_type: a100 beside it"),
        ("memory_gb", "64G", "write 64"),
    ],
)
def test_quantities_as_sbatch_has_them_are_converted(tmp_path: Path, key: str, value: str, cure: str) -> None:
    assert refusal(tmp_path, overrides=[SLURM, f"launch.{key}={value}"]).endswith(f" ({cure})")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90:30", 5430), ("01:30:00", 5400), ("2-0", 172_800), ("1-02:03", 93_780), ("90m", 5400), ("1.5h", 5400),
        ("30 seconds", 30), ("2 days", 172_800), ("3 weeks", None), ("a:b", None), ("", None), ("30", None),
    ],
)  # fmt: skip
def test_times_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


# ------------------------------------------------------------------------------------------------ what was written, where


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("fix #3", "fix #3"),
        ("#3", "#3"),
        ("a #b", "a #b"),
        ("3 # x", "3 # x"),
        ('"a #b"', "a #b"),
        ("'it #1'", "it #1"),
        ("1:30", "1:30"),
        ("C#", "C#"),
        ("\ue000 #", "\ue000 #"),
        ("''", ""),
    ],
)
def test_a_value_on_the_command_line_has_no_comments(tmp_path: Path, written: str, read: str) -> None:
    wandb = load_one(tmp_path, overrides=[f"tracking.wandb.notes={written}"]).spec.tracking.wandb
    assert wandb is not None
    assert wandb.notes == read


def test_a_hash_within_a_list_or_a_section_is_kept_too(tmp_path: Path) -> None:
    wandb = load_one(tmp_path, overrides=["tracking.wandb={notes: b # c, tags: [x #1, '#2']}"]).spec.tracking.wandb
    assert wandb is not None
    assert (wandb.notes, wandb.tags) == ("b # c", ("x #1", "#2"))


def test_an_image_root_with_a_hash_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = "{source: files, form: pretrain, files: [a.json], image_root: x}"
    spec = load_one(tmp_path, overrides=[f"data.train={files}", "data.train.image_root=d #2"]).spec
    assert spec.data.train.model_dump()["image_root"] == f"{tmp_path}/d #2"


@pytest.mark.parametrize("value", ["&a#b x", "*a#b", "!x#y z"])
def test_what_is_no_yaml_is_shown_with_its_hash(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, overrides=[f"tracking.wandb.notes={value}"])
    assert "#" in message
    assert "ue000" not in message
    assert message.endswith("(put the value in quotes if it is text)")
