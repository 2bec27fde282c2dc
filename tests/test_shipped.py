"""The specs that ship with tclx: each is planned and compared with its golden plan, and fits the schema that editors read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from tclx.launch.order import plan_runs
from tclx.spec.schema import experiment_schema

from .conftest import PROJECT

EXPERIMENTS = PROJECT / "experiments"
GOLDEN = PROJECT / "tests" / "golden"
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))
BASES = {
    "base/tcl.yaml", "base/retrieval.yaml", "base/downstream.yaml", "base/scenes.yaml", "flickr8k/base.yaml", "small/base.yaml",
}  # fmt: skip
RUNNABLE = [path for path in FILES if path.relative_to(EXPERIMENTS).as_posix() not in BASES]


def name_of(path: Path) -> str:
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_its_plan_is_the_golden_one(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TCLX_GOLDEN=write pytest tests/test_shipped.py writes them anew; read the difference before you commit it."""
    monkeypatch.setenv("TCLX_DATA", "/data")
    runs = plan_runs([path], (), runs_dir=tmp_path, without_data=True)
    plans = [run.plan.to_json() for run in runs]
    golden = GOLDEN / f"{name_of(path).replace('/', '-')}.json"
    text = json.dumps(plans, indent=1) + "\n"
    if os.environ.get("TCLX_GOLDEN") == "write":
        golden.write_text(text, encoding="utf-8")
    assert json.loads(golden.read_text(encoding="utf-8")) == json.loads(text)


def test_every_golden_plan_belongs_to_a_shipped_spec() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {name_of(path).replace("/", "-") for path in RUNNABLE}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_it_fits_the_schema_it_names(path: Path) -> None:
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    reference = first_line.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / reference).resolve() == EXPERIMENTS / "schema.json"
    Draft202012Validator(experiment_schema()).validate(YAML(typ="safe").load(path))


def test_the_shipped_schema_is_the_current_one() -> None:
    """tclx schema -o experiments/schema.json writes it anew."""
    assert json.loads((EXPERIMENTS / "schema.json").read_text(encoding="utf-8")) == experiment_schema()
