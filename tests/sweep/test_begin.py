"""A sweep that has changed goes on with what still counts, whatever has changed; the old study is kept whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tclx.errors import InputError
from tclx.runs import RunFolder
from tclx.sweep import claims, trial
from tclx.sweep.begin import IDENTITY, _identity, create_study, set_aside
from tclx.sweep.searched import Sweep
from tclx.sweep.stage import Search
from tclx.sweep.study import StudyFolder, open_study
from tclx.sweep.trial import Worker
from tests.sweep import light
from tests.sweep.toy import TRAINING, load, work_through

RATE = "optim.learning_rate"
QUEUE = "model.queue_size"
VAL = {"metric": "retrieval/val/r_mean", "direction": "maximize"}
LOSS = {"metric": "loss/total", "direction": "minimize"}


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_train", light.train)
    monkeypatch.setattr(light, "STEP_SECONDS", 0.0)


def folder_of(tmp_path: Path) -> StudyFolder:
    return StudyFolder.of("toy-sweep", tmp_path / "runs")


def work(folder: StudyFolder) -> optuna.Study:
    """All that the study has to do, and its search."""
    work_through(folder)
    return open_study(folder, folder.read_sweep())


def choices(*values: Any) -> dict[str, Any]:
    return {"choices": list(values)}


def log(low: float, high: float) -> dict[str, Any]:
    return {"log_uniform": [low, high]}


LOG_QUEUE = {"log_integer": [8, 64]}
SHARED = [{"keys": ["objectives.cma.weight", "objectives.lmi.weight"], "total": 2 / 3}]
BOTH = {RATE: choices(1e-3, 3e-3), QUEUE: choices(16, 32)}
# name: the sweep before, the sweep after, whether every earlier trial counts (None: some do)
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], bool | None]] = {
    "a choice more": ({"space": {RATE: choices(1e-3, 3e-3)}}, {"space": {RATE: choices(1e-3, 3e-3, 1e-2)}}, True),
    "a choice fewer": ({"space": {RATE: choices(1e-3, 3e-3, 1e-2)}}, {"space": {RATE: choices(1e-3, 3e-3)}}, None),
    "choices in another order": ({"space": {RATE: choices(1e-3, 3e-3)}}, {"space": {RATE: choices(3e-3, 1e-3)}}, True),
    "a range for choices": ({"space": {RATE: choices(1e-3, 3e-3)}}, {"space": {RATE: log(1e-4, 1e-1)}}, True),
    "choices for a range": ({"space": {RATE: log(1e-4, 1e-1)}}, {"space": {RATE: choices(1e-3, 3e-3)}}, None),
    "linear for logarithmic": ({"space": {RATE: log(1e-4, 1e-1)}}, {"space": {RATE: {"uniform": [1e-4, 1e-1]}}}, True),
    "a wider range": ({"space": {RATE: log(1e-4, 1e-1)}}, {"space": {RATE: log(1e-5, 1e-1)}}, True),
    "a narrower range": ({"space": {RATE: log(1e-5, 1e-1)}}, {"space": {RATE: log(9e-4, 2e-3)}}, None),
    "whole numbers for choices": ({"space": {QUEUE: choices(16, 32)}}, {"space": {QUEUE: {"integer": [8, 64]}}}, True),
    "logarithmic whole numbers": ({"space": {QUEUE: {"integer": [16, 64]}}}, {"space": {QUEUE: LOG_QUEUE}}, True),
    "a key more": ({"space": {RATE: choices(1e-3, 3e-3)}}, {"space": BOTH}, True),
    "a key fewer": ({"space": BOTH}, {"space": {RATE: choices(1e-3, 3e-3)}}, None),
    "another key": ({"space": {RATE: choices(1e-3, 3e-3)}}, {"space": {QUEUE: choices(16, 32)}}, None),
    "a switch more": (
        {"space": {RATE: choices(1e-3, 3e-3)}},
        {"space": {RATE: choices(1e-3, 3e-3), "objectives.imc": {"on_or_off": True}}},
        True,
    ),
    "the other direction": ({"objective": VAL}, {"objective": {**VAL, "direction": "minimize"}}, True),
    "another metric": ({"objective": VAL}, {"objective": LOSS}, True),
    "two metrics": ({"objective": VAL}, {"objective": [VAL, LOSS]}, True),
    "one metric of two": ({"objective": [VAL, LOSS]}, {"objective": LOSS}, True),
    "a constraint": ({}, {"constraints": [{"metric": "loss/total", "at_most": 0.1}]}, True),
    "fewer seeds": ({"seeds": [0, 1]}, {"seeds": [1]}, True),
    "more seeds": ({"seeds": [0]}, {"seeds": [0, 1]}, False),
    "another experiment": ({}, {"experiment": {"training": {**TRAINING, "steps": 3}}}, False),
    "another pruner beside it": ({"space": {RATE: choices(1e-3, 3e-3)}},
        {"space": {RATE: choices(1e-3, 3e-3, 1e-2)}, "pruner": {"name": "median"}, "sampler": {"name": "gp"}}, True),
    "a key beside shares": (
        {"simplex": SHARED},
        {"simplex": SHARED, "space": {QUEUE: choices(16, 32)}},
        None,
    ),
}  # fmt: skip


def reached(study: optuna.Study, sweep: Sweep, runs_dir: Path) -> dict[str, list[float] | None]:
    """What each complete trial should have been told, read from its runs by a loop of its own."""
    from tclx.track.jsonl import read

    wanted: dict[str, list[float] | None] = {}
    for one in study.get_trials():
        if one.state != TrialState.COMPLETE:
            continue
        values = []
        for aim in sweep.spec.objective:
            of_runs = []
            for run_id in one.user_attrs["runs"]:
                rows = [row[aim.metric] for row in read(RunFolder(runs_dir / run_id).metrics)]
                best = max if aim.direction == "maximize" else min
                of_runs.append(best(rows) if aim.metric.startswith("retrieval/") else rows[-1])
            values.append(sum(of_runs) / len(of_runs))
        wanted[str(one.number)] = values
    return wanted


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_sweep_goes_on_with_the_trials_that_count(tmp_path: Path, name: str) -> None:
    before, after, all_count = CHANGES[name]
    base = {"sampler": {"name": "random"}, "num_trials": 4}
    create_study(load(tmp_path, **base, **before), folder_of(tmp_path))
    old = work(folder_of(tmp_path)).get_trials()
    old_runs = {run for one in old for run in one.user_attrs["runs"]}
    changed = load(tmp_path, **{**base, "num_trials": 7, **after})
    with pytest.raises(InputError, match="--accept-changes"):
        create_study(changed, folder_of(tmp_path))
    said: list[str] = []
    study = create_study(changed, folder_of(tmp_path), accept_changes=True, say=said.append)
    taken = [one for one in study.get_trials() if one.state == TrialState.COMPLETE]
    assert f"{len(taken)} of its 4 trials" in said[-1]
    assert len(taken) == 4 if all_count else len(taken) < 4
    assert {run for one in taken for run in one.user_attrs["runs"]} <= old_runs
    assert {one.datetime_complete for one in taken} <= {one.datetime_complete for one in old}
    ended = work(folder_of(tmp_path))
    assert {one.state for one in ended.get_trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(ended.get_trials()) == 7
    first = ended.get_trials()[0]
    assert first.user_attrs["runs"] == [run.plan.run_id for run in changed.planned(first.params)]
    assert {str(one.number): one.values for one in ended.get_trials() if one.values} == {
        number: pytest.approx(values) for number, values in reached(ended, changed, tmp_path / "runs").items()
    }
    assert len(create_study(changed, folder_of(tmp_path)).get_trials()) == 7  # from now on it is the same
    kept = StudyFolder(folder_of(tmp_path).path.with_name("toy-sweep.old-1"))
    assert [one.values for one in open_study(kept, kept.read_sweep()).get_trials()] == [one.values for one in old]


def test_new_choices_are_tried(tmp_path: Path) -> None:
    """../shared/cases/12."""
    create_study(load(tmp_path, space={RATE: choices(1e-3, 3e-3)}, num_trials=1), folder_of(tmp_path))
    work(folder_of(tmp_path))
    changed = load(tmp_path, space={RATE: choices(1e-3, 3e-3, 1e-2)}, num_trials=12, sampler={"name": "random"})
    create_study(changed, folder_of(tmp_path), accept_changes=True)
    assert 1e-2 in {one.params[RATE] for one in work(folder_of(tmp_path)).get_trials()}


def test_shares_are_the_same_runs_although_they_are_rounded(tmp_path: Path) -> None:
    shared = SHARED
    create_study(load(tmp_path, simplex=shared, space=None, num_trials=6), folder_of(tmp_path))
    work(folder_of(tmp_path))
    said: list[str] = []
    changed = load(tmp_path, simplex=shared, space={RATE: log(1e-4, 1e-1)}, num_trials=6)
    create_study(changed, folder_of(tmp_path), accept_changes=True, say=said.append)
    assert "6 of its 6 trials" in said[-1]


def test_a_study_that_53ca314_left_without_a_way_on_has_one(tmp_path: Path) -> None:
    """There --accept-changes wrote the new choices over the old, and every worker then died of its first draw."""
    create_study(load(tmp_path, space={RATE: choices(1e-3, 3e-3)}, num_trials=2), folder_of(tmp_path))
    work(folder_of(tmp_path))
    changed = load(tmp_path, space={RATE: choices(1e-3, 3e-3, 1e-2)}, num_trials=4)
    study = open_study(folder_of(tmp_path), changed)
    study.set_user_attr(IDENTITY, _identity(changed))
    folder_of(tmp_path).write_sweeps([changed])
    study.ask()  # running, without a parameter and without a worker
    with pytest.raises(InputError, match="trials were drawn from CategoricalDistribution"):
        create_study(changed, folder_of(tmp_path))
    create_study(changed, folder_of(tmp_path), accept_changes=True)
    assert [one.state for one in work(folder_of(tmp_path)).get_trials()] == [TrialState.COMPLETE] * 4


def test_what_was_cut_off_goes_on_and_what_failed_or_was_pruned_stays_so(tmp_path: Path) -> None:
    space = {RATE: choices(1e-3, 3e-3, 4e-3, 5e-3, 6e-3)}
    points = [{RATE: rate} for rate in (3e-3, 4e-3, 5e-3)]
    sweep = load(tmp_path, space=space, points=points, num_trials=4)
    study = create_study(sweep, folder_of(tmp_path))
    working = Worker(Search(study, sweep, folder_of(tmp_path)), lambda line: None, lambda: False)
    for state in (TrialState.FAIL, TrialState.PRUNED, None):
        one = study.ask()
        (run,) = trial._planned(one, working)
        light.train(run, RunFolder(tmp_path / "runs" / run.plan.run_id), lambda: None, claims.Claim("x", "y"), working)
        if state is not None:
            one.set_user_attr("reason", "why")
            study.tell(one, state=state)
    changed = load(tmp_path, space={RATE: choices(1e-3, 3e-3, 4e-3, 5e-3)}, points=points, num_trials=4)
    now = create_study(changed, folder_of(tmp_path), accept_changes=True).get_trials()
    assert [one.state for one in now] == [TrialState.FAIL, TrialState.PRUNED, TrialState.WAITING, TrialState.WAITING]
    assert now[1].user_attrs["reason"] == "why"
    assert list(now[1].intermediate_values) == [1, 2, 3, 4]
    ended = work(folder_of(tmp_path)).get_trials()
    assert [one.state for one in ended][2:] == [TrialState.COMPLETE] * 2
    assert [one.params[RATE] for one in ended][2:] == [4e-3, 5e-3]


def test_a_database_keeps_both(tmp_path: Path, storage: str | None) -> None:
    create_study(load(tmp_path, space={RATE: choices(1e-3, 3e-3)}, num_trials=2, storage=storage), folder_of(tmp_path))
    old = work(folder_of(tmp_path)).get_trials()
    for number, more in enumerate((1e-2, 2e-2), 1):
        wider = load(tmp_path, space={RATE: choices(1e-3, 3e-3, more)}, num_trials=3, storage=storage)
        create_study(wider, folder_of(tmp_path), accept_changes=True)
        assert {one.state for one in work(folder_of(tmp_path)).get_trials()} == {TrialState.COMPLETE}
        kept = StudyFolder(folder_of(tmp_path).path.with_name("toy-sweep.old-1"))
        assert [one.values for one in open_study(kept, kept.read_sweep()).get_trials()] == [one.values for one in old]
        assert folder_of(tmp_path).path.with_name(f"toy-sweep.old-{number}").is_dir()


def test_a_study_at_work_is_not_set_aside(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    create_study(sweep, folder_of(tmp_path))
    with claims.living(folder_of(tmp_path), claims.new_worker()):
        with pytest.raises(InputError, match="workers of toy-sweep are at work"):
            set_aside(folder_of(tmp_path), sweep)
        with pytest.raises(InputError, match="tclx sweep cancel toy-sweep"):
            create_study(load(tmp_path, space={RATE: choices(1e-3, 2e-3)}), folder_of(tmp_path), accept_changes=True)
    assert len(open_study(folder_of(tmp_path), sweep).get_trials()) == 1


def test_a_bug_in_a_trial_leaves_no_trial_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tclx.sweep import worker

    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(trial, "_train", broken)
    monkeypatch.setattr("tclx.sweep.process.start_server", lambda: None)
    create_study(load(tmp_path), folder_of(tmp_path))
    with pytest.raises(ZeroDivisionError):
        worker.work(folder_of(tmp_path))
    (first, *_) = open_study(folder_of(tmp_path), load(tmp_path)).get_trials()
    assert first.state == TrialState.FAIL
    assert first.user_attrs["reason"] == "ZeroDivisionError: a bug"


def test_a_study_of_gpu_hours_is_one_of_the_hours_that_they_were_always(tmp_path: Path) -> None:
    """A metric's name changed, what it measures did not: the study goes on."""
    old = {"constraints": [{"metric": "cost/gpu_hours", "at_most": 1.0}]}
    create_study(load(tmp_path, **old), folder_of(tmp_path))
    study = create_study(load(tmp_path, constraints=[{"metric": "cost/process_hours", "at_most": 1.0}]), folder_of(tmp_path))
    assert study.user_attrs[IDENTITY]["constraints"][0]["metric"] == "cost/process_hours"
    with pytest.raises(InputError, match=r"constraints: was .*process_hours.* is .*peak_gib"):
        create_study(load(tmp_path, constraints=[{"metric": "memory/peak_gib", "at_most": 1.0}]), folder_of(tmp_path))
