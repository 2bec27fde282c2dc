"""What TAB completes, asked as a shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tclx.cli.completion import complete_settings
from tests.report.test_results import make_run


def tab(*words: str, folder: Path) -> list[str]:
    """What bash is offered for the last word."""
    asked = {"_TCLX_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["tclx", *words]), "COMP_CWORD": str(len(words))}
    here = {name: value for name, value in os.environ.items() if name != "TCLX_RUNS"}
    code = "import sys; sys.argv[0] = 'tclx'; from tclx.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**here, **asked}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for variant, seed in (("cma", 0), ("cma", 1), (None, 0)):
        run = make_run(tmp_path / "runs", name="mine", variant=variant, seed=seed)
        run.write_json(run.plan, {})
    sweep = tmp_path / "runs" / "sweeps" / "weights"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    return tmp_path


def test_runs_experiments_and_studies_are_completed_wherever_runs_are_named(runs: Path) -> None:
    ids = ["mine-cma-s0-0123abcd", "mine-cma-s1-0123abcd"]
    assert tab("status", "mine-c", folder=runs) == ["mine-cma", *ids]
    assert tab("logs", "mine-s", folder=runs) == ["mine-s0-0123abcd"]
    assert tab("report", "mine", "wei", folder=runs) == ["weights"]
    assert tab("compare", "mine-cma-", folder=runs) == ids
    assert tab("results", "--against", "mine-cma-", folder=runs) == ids
    (runs / "elsewhere").mkdir()
    assert tab("status", "--runs-dir", str(runs / "runs"), "wei", folder=runs / "elsewhere") == ["weights"]


def test_metrics_and_keys_are_completed(runs: Path) -> None:
    assert "dual/r_mean" in tab("results", "--metric", "dual/r", folder=runs)
    assert tab("results", "--sort", "r_m", folder=runs) == ["r_mean"]
    assert tab("run", "x.yaml", "--set", "training.prec", folder=runs) == ["training.precision="]
    assert tab("explain", "objectives.lmi.pool", folder=runs) == ["objectives.lmi.pooled_grid"]


def test_behind_a_key_stands_what_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert complete_settings("training.precision=b") == ["training.precision=bf16"]
    assert complete_settings("training.compile=") == ["training.compile=true", "training.compile=false"]
    assert complete_settings("optim.learning_rate=") == []
    assert complete_settings("no.such.key=") == []
    for _ in range(2):  # from timm, then from what was kept
        assert complete_settings("model.image_encoder.name=vit_tiny_patch16_38") == [
            "model.image_encoder.name=vit_tiny_patch16_384"
        ]
