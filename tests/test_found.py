"""One function says which runs a name stands for; a sweep's trials stay out of its experiment's table."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError
from tclx.found import find, find_one, is_trial_only, saved_or_run
from tclx.launch.order import plan_runs
from tclx.launch.prepare import prepare
from tclx.report import results
from tclx.runs import Attempt, RunFolder, RunState
from tclx.sweep.begin import create_study
from tclx.sweep.load import load_sweep
from tclx.sweep.stage import Search
from tclx.sweep.study import StudyFolder, open_study
from tclx.sweep.trial import Worker, _planned
from tests.sweep.toy import TRAINING, write_sweep


def ended(folder: RunFolder, value: float, *, split: str = "val") -> None:
    """As if it had trained."""
    folder.write_state(RunState("finished", step=4, total_steps=4))
    folder.write_json(folder.evaluated("retrieval", split), {"metrics": {f"retrieval/{split}/r_mean": value}})


def study_of(tmp_path: Path, *, num_trials: int = 3, **changes: Any) -> StudyFolder:
    """A study whose trials are planned and noted by the real worker, and have ended without training."""
    path = write_sweep(tmp_path, num_trials=num_trials, **changes)
    sweep = load_sweep(path, runs_dir=tmp_path / "runs")
    folder = StudyFolder.of(sweep.spec.name, tmp_path / "runs")
    create_study(sweep, folder)
    study = open_study(folder, sweep)
    worker = Worker(Search(study, sweep, folder), lambda line: None, lambda: False)
    for number in range(num_trials):
        trial = study.ask()
        for run in _planned(trial, worker):
            prepare(run, RunFolder(folder.runs_dir / run.plan.run_id))
            ended(RunFolder(folder.runs_dir / run.plan.run_id), float(number))
        study.tell(trial, float(number))
    return folder


def ordinary(tmp_path: Path, file: str = "toy.yaml") -> list[RunFolder]:
    """The experiment's own runs, as `tclx run` would leave them."""
    folders = []
    for run in plan_runs([tmp_path / file], [], runs_dir=tmp_path / "runs"):
        folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
        prepare(run, folder)
        ended(folder, 50.0)
        folders.append(folder)
    return folders


def ids(tmp_path: Path, *names: str) -> list[str]:
    return [folder.name for folder in find(names, runs_dir=tmp_path / "runs").folders]


def tclx(tmp_path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--runs-dir", str(tmp_path / "runs")])


SHORTER = {"changes": {"training.steps": 2}}


def test_trials_of_a_shorter_experiment_stay_out_of_its_table(tmp_path: Path) -> None:
    study = study_of(tmp_path, **SHORTER)
    (run,) = ordinary(tmp_path)
    assert ids(tmp_path) == ids(tmp_path, "toy") == ids(tmp_path, str(tmp_path / "toy.yaml")) == [run.run_id]
    assert ids(tmp_path, str(tmp_path / "runs")) == [run.run_id]
    (note,) = find(["toy"], runs_dir=tmp_path / "runs").notes
    assert "3 runs of the sweep toy-sweep left out" in note
    by_name = ids(tmp_path, "toy-sweep")
    assert len(by_name) == 3
    assert run.run_id not in by_name
    assert by_name == ids(tmp_path, str(tmp_path / "sweep.yaml")) == ids(tmp_path, str(study.path))
    assert len(find([], runs_dir=tmp_path / "runs", trials=True).folders) == 4


def test_trial_0_that_is_the_experiment_stays_in_its_table_whoever_made_it(tmp_path: Path) -> None:
    study_of(tmp_path)
    trial_0 = ids(tmp_path, "toy-sweep")[0]
    assert ids(tmp_path, "toy") == [trial_0]
    (run,) = ordinary(tmp_path)
    assert run.run_id == trial_0


def test_changes_that_change_nothing_leave_trial_0_the_experiment(tmp_path: Path) -> None:
    study_of(tmp_path, changes={"training.steps": TRAINING["steps"], "tracking.log_every_steps": 2, "data.num_workers": 1})
    assert ids(tmp_path, "toy") == ids(tmp_path, "toy-sweep")[:1]


def test_an_ordinary_run_that_a_sweep_takes_or_goes_on_with_stays_one(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    (run,) = ordinary(tmp_path)
    study_of(tmp_path)
    run.begin(Attempt("trial-0123abcd"))  # it was cut off, and the sweep's worker went on with it
    assert run.run_id in ids(tmp_path, "toy")


def test_a_trial_that_is_asked_for_by_itself_is_an_ordinary_run_from_then_on(tmp_path: Path) -> None:
    study_of(tmp_path, **SHORTER)
    trial = ids(tmp_path, "toy-sweep")[1]
    assert ids(tmp_path, trial) == [trial]  # by its id it is always found
    with pytest.raises(InputError, match=r"every run of toy is a trial of a sweep \(name toy-sweep"):
        ids(tmp_path, "toy")
    RunFolder(tmp_path / "runs" / trial).adopt()
    assert ids(tmp_path, "toy") == [trial]
    assert len(ids(tmp_path, "toy-sweep")) == 3


def as_of_53ca314(study: StudyFolder) -> None:
    """What the same study was on disk then: no trial.json, no experiment in sweep.json; attempts were called as today."""
    for path in study.runs_dir.glob("*/trial.json"):
        path.unlink()
        RunFolder(path.parent).begin(Attempt("trial-0123abcd"))
    content = json.loads(study.sweep.read_text())
    del content["experiment"]
    study.sweep.write_text(json.dumps(content))


def test_trials_of_earlier_versions_stay_out_too(tmp_path: Path) -> None:
    as_of_53ca314(study_of(tmp_path, **SHORTER))
    (run,) = ordinary(tmp_path)
    assert ids(tmp_path, "toy") == [run.run_id]
    assert len(ids(tmp_path, "toy-sweep")) == 3
    assert "3 trials of sweeps left out" in find(["toy"], runs_dir=tmp_path / "runs").notes[0]
    trial = RunFolder(tmp_path / "runs" / ids(tmp_path, "toy-sweep")[0])
    trial.adopt()
    assert ids(tmp_path, "toy") == sorted([run.run_id, trial.run_id])


def test_an_earlier_version_s_trial_0_that_is_the_experiment_stays_in(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    as_of_53ca314(study)
    assert ids(tmp_path, "toy") == ids(tmp_path, "toy-sweep")[:1]
    sweep = study.read_sweep()
    assert sweep.experiment == sweep.base


def test_a_name_of_both_is_the_experiment_s_and_says_how_the_study_is_named(tmp_path: Path) -> None:
    study = study_of(tmp_path, name="toy", **SHORTER)
    (run,) = ordinary(tmp_path)
    found = find(["toy"], runs_dir=tmp_path / "runs")
    assert [folder.name for folder in found.folders] == [run.run_id]
    assert str(study.path) in found.notes[0]
    assert len(find([str(study.path)], runs_dir=tmp_path / "runs").folders) == 3


def test_a_run_named_twice_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path)
    (run,) = ordinary(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = find([str(run.path), f"runs/{run.run_id}", run.run_id, "toy"], runs_dir=Path("runs"))
    assert len(found.folders) == 1


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "..", "no/such", "sweeps", "tox", "toy-swep"])
def test_a_name_of_nothing_is_one_line(tmp_path: Path, name: str) -> None:
    study_of(tmp_path, **SHORTER)
    with pytest.raises(InputError) as caught:
        ids(tmp_path, name)
    assert len(str(caught.value).splitlines()) == 1
    if name == "toy-swep":
        assert "did you mean toy-sweep?" in str(caught.value)


def test_a_damaged_trial_json_hides_no_run(tmp_path: Path) -> None:
    study_of(tmp_path, **SHORTER)
    folder = RunFolder(tmp_path / "runs" / ids(tmp_path, "toy-sweep")[0])
    for content in (
        "",
        "[]",
        '{"study": 1}',
        '{"study": 1, "number": "x"}',
        "7",
        "\0",
        "[" * 5000,
    ):
        folder.trial.write_text(content)
        assert not is_trial_only(folder)
        folder.adopt()
    folder.trial.write_text('{"study": "x", "number": 0, "key_of_a_newer_version": 1}')
    assert is_trial_only(folder)
    folder.trial.unlink()
    folder.attempt.write_text("[1]")
    folder.adopt()
    assert not is_trial_only(folder)


def test_one_run_where_one_is_needed(tmp_path: Path) -> None:
    study_of(tmp_path, **SHORTER)
    (run,) = ordinary(tmp_path)
    assert find_one("toy", runs_dir=tmp_path / "runs").name == run.run_id
    with pytest.raises(InputError, match=r"toy-sweep stands for 3 runs: .*\(trial 0\)"):
        find_one("toy-sweep", runs_dir=tmp_path / "runs")


# ----------------------------------------------------------------------------------------------------------------- as commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three trials and the experiment's run, none of which go on."""
    folder = tmp_path_factory.mktemp("found")
    study_of(folder, **SHORTER)
    ordinary(folder)
    return folder


COMMANDS = {
    "status": "", "results": "--split val", "report": "-o {place}/out.html", "cancel": "", "tensorboard": "",
    "resume": "", "sync": "", "logs": "", "eval": "", "weights export": "{place}/out.pth --form pretrain",
}  # fmt: skip
WANT_ONE_RUN = ("logs", "eval", "weights export")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["id", "folder", "experiment", "experiment file", "study", "sweep file"])
def test_every_command_knows_every_kind_of_name(place: Path, command: str, kind: str) -> None:
    (run,) = find(["toy"], runs_dir=place / "runs").folders
    name = {
        "id": run.name,
        "folder": str(run),
        "experiment": "toy",
        "experiment file": str(place / "toy.yaml"),
        "study": "toy-sweep",
        "sweep file": str(place / "sweep.yaml"),
    }[kind]
    several = kind in ("study", "sweep file")
    if command == "resume" and several:
        return  # trains: see tests/sweep/test_sweeps.py
    ended = tclx(place, *command.split(), name, *COMMANDS[command].format(place=place).split())
    if command in WANT_ONE_RUN:  # which was found, and has nothing
        assert ("stands for 3 runs" if several else "has no") in ended.stderr
    elif command == "sync":
        assert f"none of the {3 if several else 1} runs was started with W&B" in ended.stderr
    else:
        assert ended.exit_code == 0, ended.stderr


def test_a_study_s_rows_name_what_differs_and_csv_and_json_the_runs_and_the_study(tmp_path: Path) -> None:
    space = {"objectives.imc": {"on_or_off": True}, "objectives.imc.weight": {"log_uniform": [0.1, 3.0]}}
    study_of(tmp_path, num_trials=4, space=space, sampler={"name": "random"}, **SHORTER)
    ended = tclx(tmp_path, "results", "toy-sweep", "--split", "val", "--csv", str(tmp_path / "out.csv"), "--json")
    rows = json.loads(ended.stdout)["rows"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["trial"] for row in rows] == [0, 1, 2, 3] == [int(line["trial"]) for line in lines]
    assert {row["study"] for row in rows} == {"toy-sweep"} == {line["study"] for line in lines}
    assert [[run["run_id"] for run in row["runs"]] for row in rows] == [line["run_ids"].split() for line in lines]
    assert [run_id for line in lines for run_id in line["run_ids"].split()] == ids(tmp_path, "toy-sweep")
    assert {row["differs"]["imc"] for row in rows} == {"on", "off"}
    table = tclx(tmp_path, "results", "toy-sweep", "--split", "val").stdout
    for row in rows:
        assert f"toy-sweep trial {row['trial']} (imc={row['differs']['imc']}" in table
        if row["differs"]["imc"] == "off":
            assert "imc.weight" not in row["differs"]
    assert not any(run_id[-8:] in table for run_id in ids(tmp_path, "toy-sweep"))


def test_seeds_of_a_trial_are_one_row(tmp_path: Path) -> None:
    study_of(tmp_path, num_trials=2, seeds=[0, 1], **SHORTER)
    found = find(["toy-sweep"], runs_dir=tmp_path / "runs")
    summary = results.summarise(results.read_runs(found.selection), split="val")
    assert [[run.seed for run in row.runs] for row in summary.rows] == [[0, 1], [0, 1]]


def test_status_of_a_study_says_which_trial_a_run_is(tmp_path: Path) -> None:
    study_of(tmp_path, **SHORTER)
    shown = tclx(tmp_path, "status", "toy-sweep")
    assert "toy-sweep 2" in shown.stdout
    listed = json.loads(tclx(tmp_path, "status", "toy-sweep", "--json").stdout)
    assert [(one["study"], one["trial"], one["state"]) for one in listed] == [("toy-sweep", n, "finished") for n in range(3)]
    assert "left out" in tclx(tmp_path, "status").stderr


def test_the_page_of_a_study_is_called_after_it(tmp_path: Path) -> None:
    study_of(tmp_path, **SHORTER)
    assert tclx(tmp_path, "report", "toy-sweep", "-o", str(tmp_path / "out.html"), "--split", "val").exit_code == 0
    page = (tmp_path / "out.html").read_text()
    assert "<title>Sweep toy-sweep</title>" in page
    assert "trial 1 (learning_rate=" in page


def test_a_run_that_moved_and_a_study_without_runs(tmp_path: Path) -> None:
    study = study_of(tmp_path, **SHORTER)
    for folder in find(["toy-sweep"], runs_dir=tmp_path / "runs").folders:
        shutil.rmtree(folder)
    found = find(["toy-sweep"], runs_dir=tmp_path / "runs")
    assert (found.folders, found.notes) == ((), ("toy-sweep has no runs yet",))
    with pytest.raises(InputError, match="has no runs yet"):
        find_one(str(study.path), runs_dir=tmp_path / "runs")


def test_a_folder_that_is_called_as_an_experiment_does_not_hide_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path)
    (run,) = ordinary(tmp_path)
    name = run.run_id.rpartition("-s")[0]
    (tmp_path / name).mkdir()  # where `tclx init` has put the spec
    assert saved_or_run(name, runs_dir=tmp_path / "runs") == run.path
    (tmp_path / name / "model.safetensors").touch()
    assert saved_or_run(name, runs_dir=tmp_path / "runs") == Path(name)
    (tmp_path / "other").mkdir()
    assert saved_or_run("other", runs_dir=tmp_path / "runs") == Path("other")  # whoever reads it says what it is not
