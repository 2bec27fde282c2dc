"""Promises about a study on W&B, kept with its unmodified client and a server on loopback: one run a study, whose table and
figures are what `tclx sweep status` says, whoever finishes the study and however often it goes on; and a sweep that W&B cannot
touch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tclx.sweep import space
from tclx.sweep.begin import create_study
from tclx.sweep.importance import importances_of
from tclx.sweep.metrics import GPU_HOURS, PROCESS_HOURS
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder, open_confirmation, open_study
from tclx.sweep.tracking import due_of, publish, standing
from tests.cli.test_cli import Ended
from tests.sweep.toy import load, run, status
from tests.track.wandb_server import API_KEY, SILENCE, ReceivedRun, WandbServer

SHORT = {"init_timeout_seconds": 1, "finish_timeout_seconds": 2}
RATE, IMC, WEIGHT, QUEUE = "optim.learning_rate", "objectives.imc", "objectives.imc.weight", "model.queue_size"
METRIC = "retrieval/val/r_mean"


def tracked(**wandb: Any) -> dict[str, Any]:
    """An experiment whose runs go to W&B."""
    return {"tracking": {"log_every_steps": 1, "wandb": {"project": "tests", **wandb}}}


def begin(path: Path, **changes: Any) -> tuple[Sweep, optuna.Study, StudyFolder]:
    """A study whose trials wait."""
    sweep = load(path, **changes)
    folder = StudyFolder.of(sweep.spec.name, path / "runs")
    study = create_study(sweep, folder)
    folder.note_start()
    return sweep, study, folder


def work(folder: StudyFolder) -> tuple[int, str]:
    """A worker whose runs train nothing and know nothing of W&B: its exit code and words."""
    log = folder.path / "printed.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tests.sweep.light", str(folder.path)]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    return code, log.read_text()


def tell(study: optuna.Study, sweep: Sweep, values: list[float] | None, **parameters: Any) -> None:
    """The next waiting trial, or one with these parameters, ends with these values or fails."""
    if parameters:
        study.enqueue_trial(parameters)
    trial = study.ask()
    drawn = space.draw(trial, sweep.spec)
    trial.set_user_attr("values", space.shown(space.values_of(drawn, sweep.spec), sweep.spec))
    if values is None:
        trial.set_user_attr("reason", "the loss is not finite")
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, values)


def of_study(server: WandbServer) -> ReceivedRun:
    (run,) = [run for run in server.runs.values() if run.facts["jobType"] == "sweep"]
    return run


def table(run: ReceivedRun) -> list[dict[str, Any]]:
    """The newest one."""
    content = json.loads(run.files[run.summary["trials"]["path"]])
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def assert_equal(there: ReceivedRun, tree: dict[str, Any]) -> None:
    """What the server has and what `tclx sweep status --json` says."""
    rows = table(there)
    assert [(row["trial"], row["state"]) for row in rows] == [(trial["number"], trial["state"]) for trial in tree["trials"]]
    for row, trial in zip(rows, tree["trials"], strict=True):
        assert row[METRIC] == (trial["values"][0] if trial["values"] else None)
        assert {key: row[key] for key in trial["changes"]} == trial["changes"]
        assert (row["runs"].split(), row["reason"]) == (trial["runs"], trial["reason"])
        assert row["best"] == (trial["number"] in tree["best"])
    best = tree["trials"][tree["best"][0]]
    assert there.summary["best/trial"] == best["number"]
    assert there.summary[f"best/{METRIC}"] == best["values"][0]
    assert {key: there.summary[f"best/{key}"] for key in best["changes"]} == best["changes"]
    # W&B's names are those of the first studies that were sent there, whose charts go on with them.
    for sent, state in {
        "complete": "finished",
        "running": "running",
        "pruned": "pruned",
        "failed": "failed",
        "waiting": "queued",
    }.items():
        assert there.summary[f"num_trials/{sent}"] == tree[state]
    assert there.summary["num_trials/asked_for"] == tree["trials_asked_for"]


@pytest.mark.slow
def test_a_study_is_a_run_beside_its_trials_and_goes_on_as_the_same(tmp_path: Path, server: WandbServer) -> None:
    path = tmp_path / "sweep.yaml"
    load(tmp_path, num_trials=2, experiment=tracked(tags=["a"], notes="a note"))
    code, _, stderr = run(path)
    assert code == 0, stderr
    there = of_study(server)
    assert f"W&B: {server.url}/lab/tests/runs/{there.name}" in stderr
    assert_equal(there, status(path))
    facts = {"groupName": "toy-sweep", "jobType": "sweep", "displayName": "toy-sweep", "tags": ["a"], "notes": "a note"}
    assert there.facts == facts
    assert (there.project, there.exit_code) == ("tests", 0)
    trials = {run.facts["displayName"]: run for run in server.runs.values() if run is not there}
    assert all(run.facts["groupName"] == "toy-sweep" for run in trials.values())
    assert [row["wandb"] for row in table(there)] == [
        f"{server.url}/lab/tests/runs/{trials[row['runs']].name}" for row in table(there)
    ]
    assert there.config["sweep"]["value"]["space"][RATE]["log_uniform"] == [1e-5, 1e-1]
    assert there.config["experiment"]["value"]["model"]["queue_size"] == 32
    assert 0 < there.summary[PROCESS_HOURS] < 0.1

    sweep, study, folder = begin(tmp_path, num_trials=4, experiment=tracked(tags=["a"], notes="a note"))
    tell(study, sweep, [10.0], **{RATE: 1e-4})
    tell(study, sweep, [60.0], **{RATE: 1e-2})
    publish(study, sweep, folder, say=print, stopping=lambda: False)
    assert of_study(server) is there
    assert there.summary["best/trial"] == 3
    assert_equal(there, status(path))
    assert there.config["sweep"]["value"]["num_trials"] == 4
    shares = importances_of(study, 0)
    assert shares is not None
    assert there.summary[f"importance/{RATE}"] == pytest.approx(shares[RATE])
    assert there.steps == [0, 1]  # its table after every part of the study
    for file in folder.path.rglob("*"):
        assert not file.is_file() or API_KEY.encode() not in file.read_bytes(), file
    assert not (folder.path / "wandb").exists()

    num_requests = len(server.requests)
    synced = Ended("sync", "toy-sweep", "--runs-dir", folder.runs_dir, "--json")
    outcomes = {outcome.get("run_id", "the study"): outcome["outcome"] for outcome in json.loads(synced.out)}
    assert outcomes == dict.fromkeys([*trials, "the study"], "was complete")
    assert len(server.requests) == num_requests


def test_a_sweep_ends_as_it_would_without_wandb_and_sync_makes_up_for_it(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, study, folder = begin(tmp_path, num_trials=1, experiment=tracked(**SHORT))
    server.fault = SILENCE
    code, said = work(folder)
    ended_at = study.trials[0].datetime_complete
    assert code == 0, said
    assert ended_at is not None
    assert time.time() - ended_at.timestamp() < 3 + 15  # the silence itself has no end
    assert "deadline exceeded" in said or "within 3 s" in said  # the client's own bound, or ours
    assert f"the study is not touched: `tclx sync {folder.path}`" in said
    lines: list[str] = []
    before = time.monotonic()
    publish(study, sweep, folder, say=lines.append, stopping=lambda: True)
    assert time.monotonic() - before < 1
    assert "W&B: stopped" in lines[-1]
    server.fault = None
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    publish(study, sweep, folder, say=lines.append, stopping=lambda: False)
    assert "wandb login" in lines[-1]
    assert standing(sweep, folder) == lines[-1]
    assert "f" * 40 not in "".join(lines)
    assert not server.runs

    refused = Ended("sync", "--runs-dir", folder.runs_dir)
    assert refused.code == 3
    assert "lacks its newest metrics" in refused.out
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    ended = Ended("sync", "--runs-dir", folder.runs_dir)
    assert ended.code == 0, ended.err
    assert ended.out == f"toy-sweep  1 trials  {standing(sweep, folder)[5:]}  complete\n"
    assert_equal(of_study(server), status(tmp_path / "sweep.yaml"))


SPACE = {
    RATE: {"log_uniform": [1e-5, 1e-1]},
    IMC: {"on_or_off": True},
    WEIGHT: {"uniform": [0.1, 3.0]},
    QUEUE: {"choices": [16, 32, 64]},
}


def test_offline_nothing_is_sent_and_sync_by_the_sweeps_file_sends_what_is_new(tmp_path: Path, server: WandbServer) -> None:
    sweep, study, folder = begin(tmp_path, space=SPACE, experiment=tracked(mode="offline"))
    path = tmp_path / "sweep.yaml"

    def sync(*options: str) -> dict[str, Any]:
        ended = Ended("sync", path, *options, "--runs-dir", folder.runs_dir, "--json")
        assert ended.code == 0, ended.err
        (outcome,) = json.loads(ended.out)
        assert outcome["study"] == "toy-sweep"
        return dict(outcome)

    assert sync()["outcome"] == "has nothing to upload yet"
    tell(study, sweep, [30.0])  # the experiment
    tell(study, sweep, [40.0], **{RATE: 1e-3, IMC: "on", WEIGHT: 0.5, QUEUE: 32})
    publish(study, sweep, folder, say=pytest.fail, stopping=lambda: False)
    assert f"tclx sync {folder.path}" in (standing(sweep, folder) or "")
    assert server.requests == []

    assert sync()["outcome"] == "complete"
    assert_equal(of_study(server), status(path))
    assert of_study(server).summary[f"best/{WEIGHT}"] == 0.5
    tell(study, sweep, [60.0], **{RATE: 1e-2, IMC: "off", QUEUE: 16})
    tell(study, sweep, None, **{RATE: 1e-1, IMC: "off", QUEUE: 16})
    assert sync()["outcome"] == "complete"
    there = of_study(server)
    assert_equal(there, status(path))
    assert f"best/{WEIGHT}" not in there.summary  # the winner has no such weight, and the one before it had
    assert sync()["outcome"] == "was complete"
    assert sync("--again")["outcome"] == "complete"
    assert len(server.runs) == 2


@pytest.mark.parametrize("over", [False, True])
def test_a_confirmation_is_beside_the_best_of_the_search(tmp_path: Path, over: bool) -> None:
    sweep, study, folder = begin(tmp_path, num_trials=2, confirm={"top": 1, "seeds": 3}, experiment=tracked())
    tell(study, sweep, [10.0])
    tell(study, sweep, [60.0], **{RATE: 1e-2})
    confirming = open_confirmation(folder, sweep)
    assert confirming is not None
    for seed, (first, second) in enumerate([(10.0, 30.0), (12.0, 32.1), (11.0, 30.9)][: 3 if over else 1], 1):
        for of, value in ((0, first), (1, second)):
            confirming.enqueue_trial({}, user_attrs={"of": of, "seed": seed})
            confirming.tell(confirming.ask(), value)
    due = due_of(study, sweep, folder, sweep.wandb() or pytest.fail("no W&B"))
    assert due.summary["best/trial"] == 1
    assert due.summary["confirmation/winner"] == (1 if over else None)
    assert due.summary["confirmation/num_runs"] == (6 if over else 2)
    if over:
        assert due.summary["confirmation/low"] < due.summary["confirmation/difference"] == pytest.approx(20.0, abs=0.1)


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    objective = [{"metric": METRIC, "direction": "maximize"}, {"metric": GPU_HOURS, "direction": "minimize"}]
    sweep, study, folder = begin(tmp_path, objective=objective, experiment=tracked())
    tell(study, sweep, [30.0, 3.0])
    tell(study, sweep, [50.0, 2.0], **{RATE: 1e-3})
    tell(study, sweep, [40.0, 1.0], **{RATE: 1e-2})
    due = due_of(open_study(folder, sweep), sweep, folder, sweep.wandb() or pytest.fail("no W&B"))
    assert due.summary["front/trials"] == [1, 2]
    assert (due.summary[f"front/{METRIC}"], due.summary[f"front/{GPU_HOURS}"]) == (50.0, 1.0)
    assert not any(name.startswith("best/") for name in due.summary)
    assert due.columns == ("trial", "state", "best", METRIC, GPU_HOURS, RATE, "reason", "runs", "wandb")
    assert due.rows[1][:5] == (1, "finished", True, 50.0, 2.0)
