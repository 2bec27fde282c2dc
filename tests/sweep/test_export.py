"""The best trial as an experiment: it extends the one that was swept, at its full length, and is exactly what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import load_experiments
from tclx.sweep.begin import create_study
from tclx.sweep.export import experiment_of
from tclx.sweep.load import load_sweep
from tclx.sweep.searched import Sweep, content
from tclx.sweep.study import StudyFolder
from tests.sweep.toy import TRAINING, part_of, write_sweep

SHORT = {"changes": {"training.steps": 2, "evaluation.every_steps": 2, "launch.num_processes": 2}}
RATE = {"optim.learning_rate": {"log_uniform": [1e-5, 1e-1]}}


def study_of(path: Path) -> tuple[Sweep, optuna.Study]:
    """Two complete trials, the second the best."""
    sweep = load_sweep(path, runs_dir=path.parent / "runs")
    study = create_study(sweep, StudyFolder.of(sweep.spec.name, path.parent / "runs"))
    from tclx.sweep import space

    for value in (1.0, 2.0):
        trial = study.ask()
        space.draw(trial, sweep.spec)
        study.tell(trial, value)
    return sweep, study


def written(tmp_path: Path, text: str, folder: str = "") -> list[ExperimentSpec]:
    path = tmp_path / folder / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return [one.spec for one in load_experiments(path)]


def read(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = YAML(typ="safe").load(text)
    return tree


def test_it_has_the_experiments_own_length_and_names_the_changes_it_leaves_out(tmp_path: Path) -> None:
    sweep, study = study_of(write_sweep(tmp_path, space=RATE, **SHORT))
    text = experiment_of(part_of(sweep, study), beside=tmp_path / "best")
    (spec,) = written(tmp_path, text, "best")
    rate = study.best_trial.params["optim.learning_rate"]
    assert (spec.training.steps, spec.optim.learning_rate, spec.launch.num_processes) == (TRAINING["steps"], rate, 1)
    assert set(read(text)) == {"extends", "name", "optim"}
    assert read(text)["extends"] == "../toy.yaml"
    assert str(tmp_path) not in text
    assert f"#   training.steps: 2; here {TRAINING['steps']}\n" in text
    assert "#   launch.num_processes: 2; here as in the experiment\n" in text
    assert "`tclx sweep best --keep-changes` keeps them." in text


def test_the_changes_can_be_kept(tmp_path: Path) -> None:
    sweep, study = study_of(write_sweep(tmp_path, space=RATE, **SHORT))
    text = experiment_of(part_of(sweep, study), keep_changes=True, beside=tmp_path)
    (spec,) = written(tmp_path, text)
    assert (spec.training.steps, spec.evaluation.every_steps) == (2, 2)
    assert content(spec) == content(
        sweep.planned(study.best_trial.params)[0].spec.model_copy(update={"name": "toy-sweep-best", "variant": None})
    )
    assert "kept here:\n" in text
    assert "#   training.steps: 2\n" in text
    assert "#   launch.num_processes: 2; here as in the experiment\n" in text


def test_one_of_several_variants_is_written_alone(tmp_path: Path) -> None:
    variants = {"both": {}, "no-imc": {"objectives": {"imc": None}}, "slow": {"optim": {"learning_rate": 1e-4}}}
    for variant in ("no-imc", "slow"):
        folder = tmp_path / variant
        folder.mkdir()
        path = write_sweep(folder, experiment={"variants": variants, "seeds": [0, 1]}, variant=variant, space=RATE, **SHORT)
        sweep, study = study_of(path)
        specs = written(folder, experiment_of(part_of(sweep, study), beside=folder))
        assert [spec.seed for spec in specs] == [0, 1]
        assert {spec.variant for spec in specs} == {None}
        assert all((spec.objectives.imc is None) == (variant == "no-imc") for spec in specs)
        assert {spec.optim.learning_rate for spec in specs} == {study.best_trial.params["optim.learning_rate"]}


def test_sections_switched_on_and_off_kinds_and_seeds(tmp_path: Path) -> None:
    space = {
        "objectives.imc": {"on_or_off": True},
        "objectives.imc.weight": {"log_uniform": [0.1, 3.0]},
        "optim.schedule.name": {"choices": ["cosine", "constant"]},
    }
    sweep, study = study_of(write_sweep(tmp_path, space=space, seeds=[3, 4], sampler={"name": "random"}, **SHORT))
    for number, trial in enumerate(study.get_trials()):
        specs = written(tmp_path, experiment_of(part_of(sweep, study), number=number, beside=tmp_path))
        assert [spec.seed for spec in specs] == [3, 4]
        assert (specs[0].objectives.imc is None) == (trial.params["objectives.imc"] == "off")
        assert specs[0].optim.schedule.name == trial.params["optim.schedule.name"]
        assert "here" in experiment_of(part_of(sweep, study), number=number)


def test_an_experiment_that_changed_since_is_written_as_it_was(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space=RATE, **SHORT)
    sweep, study = study_of(path)
    write_sweep(tmp_path, space=RATE, experiment={"training": {**TRAINING, "steps": 9}, "evaluation": None, "seed": 5}, **SHORT)
    (spec,) = written(tmp_path, experiment_of(part_of(sweep, study), beside=tmp_path))
    assert sweep.experiment is not None
    values = {"optim": spec.optim, "name": spec.name, "variant": None}
    assert content(spec) == content(sweep.experiment.model_copy(update=values))


def test_without_the_experiments_file_everything_is_written_out(tmp_path: Path) -> None:
    sweep, study = study_of(write_sweep(tmp_path, space=RATE, **SHORT))
    (tmp_path / "toy.yaml").unlink()
    text = experiment_of(part_of(sweep, study))
    assert "extends" not in read(text)
    (spec,) = written(tmp_path, text)
    assert spec.training.steps == TRAINING["steps"]


def test_a_study_of_53ca314_knows_the_length_while_the_file_is_what_it_was(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space=RATE, **SHORT)
    _, study = study_of(path)
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    recorded = json.loads(folder.sweep.read_text())
    del recorded["experiment"]
    folder.sweep.write_text(json.dumps(recorded))
    sweep = folder.read_sweep()
    (spec,) = written(tmp_path, experiment_of(part_of(sweep, study), beside=tmp_path))
    assert spec.training.steps == TRAINING["steps"]
    write_sweep(tmp_path, space=RATE, experiment={"training": {**TRAINING, "batch_size_per_gpu": 6}}, **SHORT)
    with pytest.raises(InputError, match="--keep-changes"):
        experiment_of(part_of(sweep, study))
    (kept,) = written(tmp_path, experiment_of(part_of(sweep, study), keep_changes=True, beside=tmp_path))
    assert (kept.training.steps, kept.training.batch_size_per_gpu) == (2, 8)


def test_what_has_no_winner_says_why(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, space=RATE, constraints=[{"metric": "loss/total", "at_most": 1.0}])
    sweep = load_sweep(path, runs_dir=tmp_path / "runs")
    study = create_study(sweep, StudyFolder.of(sweep.spec.name, tmp_path / "runs"))
    with pytest.raises(InputError, match=r"has no best trial .no trial is complete yet"):
        experiment_of(part_of(sweep, study), beside=tmp_path)
    trial = study.ask()
    trial.set_constraint("loss/total", 0.5)
    study.tell(trial, 1.0)
    with pytest.raises(InputError, match=r"has no best trial .no complete trial keeps the constraints"):
        experiment_of(part_of(sweep, study), beside=tmp_path)
    with pytest.raises(InputError, match=r"--trial: trial 7 is not complete .complete are 0"):
        experiment_of(part_of(sweep, study), number=7, beside=tmp_path)


def test_the_command_writes_beside_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_of(write_sweep(tmp_path, space=RATE, **SHORT))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    arguments = ["sweep", "best", "toy-sweep", "--runs-dir", str(tmp_path / "runs")]
    for extra, steps in (([], TRAINING["steps"]), (["--keep-changes"], 2)):
        assert CliRunner().invoke(app, [*arguments, *extra, "-o", "../best.yaml"]).exit_code == 0
        assert load_experiments(tmp_path / "best.yaml")[0].spec.training.steps == steps
        (spec,) = written(tmp_path, CliRunner().invoke(app, [*arguments, *extra]).stdout, "anywhere")
        assert spec.training.steps == steps
