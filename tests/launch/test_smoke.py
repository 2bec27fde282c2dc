"""Promises of `tclx run --smoke`: the real worker tries every variant, what is limited is said, nothing stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tclx.launch.smoke import NUM_IMAGES, STEPS, _Small, try_out
from tclx.spec.load import load_experiments
from tclx.spec.shipped import all_shipped
from tests.cli.test_cli import Ended
from tests.launch.toy import write_spec

EXPERIMENTS = [one for one in all_shipped() if not one.is_sweep and not one.is_part]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_every_variant_is_tried_once_and_nothing_stays(tmp_path: Path, temporary: Path) -> None:
    spec = write_spec(tmp_path, variants={"good": {}, "bad": {"training": {"device": "cuda"}}}, seeds=[0, 1])
    said: list[str] = []
    before = sorted(tmp_path.iterdir())
    tried = try_out([spec], (), say=said.append)
    assert {(one.label, one.ending, one.exit_code) for one in tried} == {("toy-good", "works", 0), ("toy-bad", "fails", 3)}
    assert len(tried) == 2
    assert any("cuda" in (one.reason or "") for one in tried)
    assert list(temporary.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("shipped", EXPERIMENTS, ids=lambda one: one.name)
def test_a_small_spec_is_short_local_and_silent(shipped: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCLX_DATA", str(tmp_path))
    for spec, _ in load_experiments(shipped.path, ["tracking.wandb={}"]):  # type: ignore[attr-defined]
        small = _Small({}).spec(spec)
        assert small.training.steps == (0 if spec.training.steps == 0 else STEPS)
        assert (small.launch.backend, small.tracking.wandb, small.tracking.tensorboard) == ("local", None, False)
        assert (small.model, small.objectives, small.data.train) == (spec.model, spec.objectives, spec.data.train)


def test_a_run_that_goes_on_from_another_begins_at_step_0(tmp_path: Path) -> None:
    origin = tmp_path / "run" / "checkpoints" / "step-00000060"
    origin.mkdir(parents=True)
    changes = ["training.steps=80", f"init={{checkpoint: {origin.parent.parent}, resume: true}}"]
    (experiment,) = load_experiments(write_spec(tmp_path), changes)
    small = _Small({})
    assert small.spec(experiment.spec).init == experiment.spec.init.model_copy(update={"resume": False})
    assert next(iter(small.limits)) == "init.resume: from the other run's weights, at step 0"


def test_only_the_first_images_of_a_split_are_evaluated(tmp_path: Path) -> None:
    small = _Small({})
    files = {"source": "files", "form": "retrieval", "files": ["/a.csv"], "image_root": "/", "limit": None}
    assert small._first_rows(files, "val") == {**files, "limit": NUM_IMAGES}
    assert list(small.limits) == [f"data.val: the first {NUM_IMAGES} images"]
    fewer = {**files, "limit": NUM_IMAGES - 1}
    assert small._first_rows(fewer, "test") == fewer
    assert len(small.limits) == 1


def test_it_goes_with_nothing_that_keeps_or_leaves(tmp_path: Path) -> None:
    ended = Ended("run", write_spec(tmp_path), "--smoke", "--detach")
    assert ended.code == 2
    assert "--smoke" in ended.err
