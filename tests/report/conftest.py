"""Four finished runs: two variants of one experiment, two seeds each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tclx.found import find
from tclx.plan import run_id
from tclx.report.sections import runnable
from tclx.report.write import write_report
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tests.train.toy import prepare, run, toy_spec

SHORT = {
    "training.steps": 4,
    "training.checkpoints": {"every_steps": 4},
    "evaluation.every_steps": 2,
    "tracking": {"log_every_steps": 1},
}


class Trained(NamedTuple):
    """Runs and where they are."""

    runs_dir: Path
    both: tuple[RunFolder, RunFolder]
    without_imc: tuple[RunFolder, RunFolder]

    @property
    def all(self) -> tuple[RunFolder, ...]:
        return (*self.both, *self.without_imc)


def train(runs_dir: Path, spec: ExperimentSpec) -> RunFolder:
    """A finished run of the spec, in the folder where `tclx run` would put it."""
    return run(prepare(runs_dir / run_id(spec, 8), spec))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    runs_dir = tmp_path_factory.mktemp("report") / "runs"
    both = [train(runs_dir, toy_spec(variant="both", seed=seed, **SHORT)) for seed in (0, 1)]
    without = [train(runs_dir, toy_spec(variant="no-imc", seed=seed, **SHORT, **{"objectives.imc": None})) for seed in (0, 1)]
    return Trained(runs_dir, (both[0], both[1]), (without[0], without[1]))


@pytest.fixture(scope="session")
def page(trained: Trained) -> Path:
    """The report of all four."""
    path = trained.runs_dir.parent / "report.html"
    write_report(find([], runs_dir=trained.runs_dir).selection, path)
    return path


def as_file(path: Path, spec: dict[str, object]) -> Path:
    """The experiment file of one resolved spec."""
    import json

    path.write_text(json.dumps(runnable(spec)))
    return path
