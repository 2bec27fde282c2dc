"""Promises of what comes with tclx: found by name, read from any folder, written out as the same runs, and in the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.launch.order import plan_runs
from tclx.spec.load import load_experiments
from tclx.spec.shipped import all_shipped, find_shipped
from tclx.sweep.load import load_sweep
from tests.cli.test_cli import Ended
from tests.conftest import PROJECT

EXPERIMENTS = [one for one in all_shipped() if not one.is_sweep and not one.is_part]
SWEEPS = [one for one in all_shipped() if one.is_sweep]


def run_ids(path: Path, runs_dir: Path) -> list[str]:
    return [run.plan.run_id for run in plan_runs([path], runs_dir=runs_dir, without_data=True)]


def test_every_name_is_one_files() -> None:
    names = [one.name for one in all_shipped()]
    assert len(set(names)) == len(names)
    assert {one.path for one in all_shipped()} == {
        *(PROJECT / "experiments").rglob("*.yaml"),
        *(PROJECT / "sweeps").rglob("*.yaml"),
    }


@pytest.mark.parametrize("shipped", EXPERIMENTS, ids=lambda one: one.name)
def test_an_experiment_is_the_same_runs_by_name_and_written_out(
    shipped: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = find_shipped(shipped.name)  # type: ignore[attr-defined]
    monkeypatch.setenv("TCLX_DATA", "/data")
    there = run_ids(one.path, tmp_path)
    assert run_ids(Path(f"tclx:{one.name}"), tmp_path) == there
    ended = Ended("examples", "--copy", one.name, tmp_path / "mine")
    assert ended.code == 0, ended.err
    written = Path(ended.out.strip())
    assert run_ids(written, tmp_path) == there
    first = written.read_text().splitlines()[0]
    schema = written.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_text())["title"] == "tclx experiment"
    again = Ended("examples", "--copy", one.name, tmp_path / "mine")
    assert again.code == 2
    assert "nothing is overwritten" in again.err


@pytest.mark.parametrize("shipped", SWEEPS, ids=lambda one: one.name)
def test_a_sweep_is_the_same_by_name_and_written_out(shipped: object, tmp_path: Path) -> None:
    one = find_shipped(shipped.name)  # type: ignore[attr-defined]
    there = load_sweep(one.path, runs_dir=tmp_path)
    assert load_sweep(Path(f"tclx:{one.name}"), runs_dir=tmp_path) == there
    written = Path(Ended("examples", "--copy", one.name, tmp_path / "mine").out.strip())
    assert load_sweep(written, runs_dir=tmp_path) == there


def test_an_own_spec_extends_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tclx:ablation/scenes\nname: mine\nseeds: [5]\n")
    loaded = load_experiments(tmp_path / "mine.yaml")
    assert {(one.spec.name, one.spec.seed) for one in loaded} == {("mine", 5)}
    assert len(loaded) == 4


@pytest.mark.parametrize(
    ("name", "hint"),
    [("quikstart", "tclx:quickstart"), ("scratch", "tclx:flickr8k/scratch"), ("zzz", "`tclx examples` lists them")],
)
def test_a_wrong_name_is_led_to_the_right_one(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        load_experiments(Path(f"tclx:{name}"))
    (tmp_path / "mine.yaml").write_text(f"name: mine\nextends: tclx:{name}\n")
    with pytest.raises(InputError, match=rf"mine\.yaml:2:1: extends: no experiment or sweep `{name}`.*{re.escape(hint)}"):
        load_experiments(tmp_path / "mine.yaml")


def test_a_wheel_has_them_and_plans_them_outside_the_clone(tmp_path: Path) -> None:
    build = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tclx", "experiments", "sweeps", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        (source / name).symlink_to(PROJECT / name)  # what is built leaves nothing in the clone
    built = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", next(tmp_path.glob("*.whl")), site], check=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.yaml").write_text("extends: tclx:quickstart\nname: mine\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for arguments in (
        ["plan", "--quick", "tclx:quickstart"], ["plan", "--quick", "mine.yaml"], ["sweep", "plan", "tclx:quick"],
        ["examples"],
    ):  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-m", "tclx.cli", *arguments],
            cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert (site / "tclx/shipped/experiments/schema.json").is_file()
