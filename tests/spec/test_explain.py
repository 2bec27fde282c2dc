"""Promises of `tclx explain`: every key is explained as it is validated, and the page of all keys is current."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tclx.spec.explain import SWEEP_ROOT, TABLE_ROOT, explain, known_paths, reference
from tclx.spec.fields import ROOT
from tests.cli.test_cli import Ended
from tests.conftest import PROJECT


@pytest.mark.parametrize("root", [ROOT, SWEEP_ROOT, TABLE_ROOT], ids=["experiment", "sweep", "table"])
def test_every_key_has_values_a_default_and_a_meaning(root: object) -> None:
    for path in known_paths(root):  # type: ignore[arg-type]
        found = explain(path, root)  # type: ignore[arg-type]
        assert found, path
        for one in found:
            assert one.values
            assert one.default
            assert one.meaning, path
            assert "any value" not in one.values, path


def test_what_is_said_of_a_key() -> None:
    (grid,) = explain("objectives.lmi.pooled_grid")
    assert "model.image_encoder.image_size" in grid.together_with
    (rate,) = explain("optim.learning_rate")
    assert (rate.values, rate.default) == ("a number at least 1e-12 and above 0 and below 1", "required")
    (device,) = explain("training.device")
    assert (device.values, device.default) == ("auto, cpu, cuda or mps", "auto")
    assert "evaluation.every_steps" in explain("evaluation.every_epochs")[0].together_with
    assert {one.goes_with for one in explain("data.train.source")} == {
        f"source: {name}" for name in ("scenes", "files", "folder", "datasets", "shards", "mixture")
    }
    assert explain("data.train.num_images")[0].goes_with == "source: scenes"
    assert explain("launch.sbatch_options")[0].values.startswith("names of your own")
    (share,) = explain("data.train.sources.mine.share")
    assert (share.path, share.goes_with) == ("data.train.sources.NAME.share", "source: mixture")
    assert explain("space.objectives.imc.weight.log_uniform", SWEEP_ROOT)[0].values.startswith("a list of 2")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("objectives.lmi.poold_grid", "did you mean `objectives.lmi.pooled_grid`?"),
        ("learning_rate", "did you mean `optim.learning_rate`?"),
    ],
)
def test_a_wrong_key_is_led_to_the_right_one(key: str, hint: str) -> None:
    ended = Ended("explain", key)
    assert ended.code == 2
    assert hint in ended.err
    assert "--set" not in ended.err


def test_the_command_prints_text_and_json() -> None:
    assert "weights" in Ended("explain", "model.image_encoder").out
    assert json.loads(Ended("explain", "num_trials", "--sweep", "--json").out)[0]["default"] == "required"
    for section in ("data", "optim", "objectives"):
        assert f"\n  {section} " in Ended("explain").out


def test_tab_completes_keys() -> None:
    asked = {"_TCLX_COMPLETE": "complete_bash", "COMP_WORDS": "tclx explain objectives.lmi.p", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['tclx']; from tclx.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **asked}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "objectives.lmi.pooled_grid" in ended.stdout.split(), ended.stderr


def test_the_page_of_all_keys_is_current() -> None:
    """tclx explain --all -o docs/reference.md writes it anew."""
    assert (PROJECT / "docs" / "reference.md").read_text(encoding="utf-8") == reference()
