"""Promises of `tclx plan --resolved`: it loads again as the same runs, and says of each value where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tclx.launch.order import plan_runs
from tclx.spec.resolved import resolve
from tclx.spec.shipped import all_shipped
from tests.cli.test_cli import Ended

EXPERIMENTS = [one for one in all_shipped() if not one.is_sweep and not one.is_part]


@pytest.mark.parametrize("shipped", EXPERIMENTS, ids=lambda one: one.name)
def test_it_loads_again_as_the_same_runs(shipped: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCLX_DATA", "/data")
    path = shipped.path  # type: ignore[attr-defined]
    made = []
    for number, one in enumerate(resolve(path)):
        made.append(tmp_path / f"{number}.yaml")
        made[-1].write_text(one.text)
    asked = [run.plan.run_id for run in plan_runs([path], runs_dir=tmp_path, without_data=True) if run.asked_for]
    again = [run.plan.run_id for run in plan_runs(made, runs_dir=tmp_path, without_data=True)]
    assert set(asked) <= set(again)
    assert set(again) == {run.plan.run_id for run in plan_runs([path], runs_dir=tmp_path, without_data=True)}


def test_each_value_says_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "name: mine\nextends: tclx:quickstart\nseeds: [3, 4]\nvariants:\n  plain: {}\n  no-lmi:\n    objectives: {lmi: null}\n"
    )
    Path("mine.yaml").write_text(text)
    ended = Ended("plan", "--resolved", "mine.yaml", "--variant", "no-lmi", "--set", "optim.weight_decay=0.5")
    lines = [line.strip() for line in ended.out.splitlines()]
    assert "name: mine # mine.yaml:1" in lines
    assert "seeds: [3, 4] # mine.yaml:3" in lines
    assert "lmi: null # mine.yaml:7 (variant no-lmi)" in lines
    assert "weight_decay: 0.5 # --set" in lines
    assert "epsilon: 1e-08 # default" in lines
    assert any(line.startswith("batch_size_per_gpu: 64 # ") and "quickstart" in line for line in lines)
    Path("again.yaml").write_text(ended.out)
    assert [one.variant for one in resolve(Path("again.yaml"))] == ["no-lmi"]
    assert Ended("plan", "--resolved", "mine.yaml").out.count("\n---\n") == 1


def test_a_kind_that_nobody_wrote_is_a_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: tclx:quickstart\noptim: {schedule: {warmup_steps: 5}}\n")
    (one,) = resolve(path)
    assert one.sources["task.name"] == "default"
    assert one.sources["launch.backend"] == "default"


@pytest.mark.parametrize("text", ["0123", "yes", "a: b", "#x", "[x", "1e5", "~", "Ümlaut 'q' \"d\"", "x\\n", " ", "2026-11-27"])
def test_any_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    notes = json.dumps(text, ensure_ascii=False)
    path.write_text(f"name: mine\nextends: tclx:quickstart\ntracking: {{wandb: {{notes: {notes}}}}}\n")
    (one,) = resolve(path)
    path.write_text(one.text)
    assert resolve(path)[0].tree["tracking"]["wandb"]["notes"] == text


def test_a_variant_that_is_not_there_is_refused_with_those_that_are() -> None:
    ended = Ended("plan", "--resolved", "tclx:ablation/scenes", "--variant", "nothing")
    assert ended.code == 2
    assert "it has cma," in ended.err
