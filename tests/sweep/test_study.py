"""The same sweep is the same study; another one of that name is refused."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tclx.errors import InputError, MachineError
from tclx.runs import RunFolder, RunState
from tclx.sweep import claims
from tclx.sweep.begin import create_study, set_aside
from tclx.sweep.export import experiment_of
from tclx.sweep.ranking import best_trials, counted_complete
from tclx.sweep.searched import Sweep
from tclx.sweep.stage import MOST_FAILURES, Search
from tclx.sweep.study import (
    StudyFolder,
    build_pruner,
    build_sampler,
    find_study,
    num_evaluations,
    open_study,
)
from tclx.sweep.summary import as_tree, summarise
from tclx.sweep.trial import Worker
from tclx.sweep.worker import Chosen, _next
from tests.sweep.toy import load, part_of

SAMPLERS: list[dict[str, Any]] = [
    {"name": "tpe", "startup_trials": 2},
    {"name": "gp", "startup_trials": 2},
    {"name": "cmaes"},
    {"name": "qmc"},
    {"name": "random"},
    {"name": "grid", "points": 3},
    {"name": "nsga2", "population_size": 4},
]


def _folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder.of("toy-sweep", tmp_path / "runs")


def _create(tmp_path: Path, **changes: Any) -> tuple[Sweep, optuna.Study]:
    sweep = load(tmp_path, **changes)
    return sweep, create_study(sweep, _folder(tmp_path))


def test_trial_0_is_the_experiment_and_the_listed_points_follow(tmp_path: Path) -> None:
    points = [{"optim.learning_rate": 0.01}, {"optim.learning_rate": 0.02}]
    sweep, study = _create(tmp_path, points=points)
    rates = [study.ask({"optim.learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)}) for _ in range(3)]
    assert [trial.params["optim.learning_rate"] for trial in rates] == [sweep.base.optim.learning_rate, 0.01, 0.02]


def test_the_same_sweep_continues_with_more_trials_or_another_sampler(tmp_path: Path) -> None:
    _, study = _create(tmp_path)
    study.tell(study.ask(), 1.0)
    again, continued = _create(tmp_path, num_trials=50, sampler={"name": "random"}, num_workers=4)
    assert len(continued.trials) == 1
    assert summarise(continued, again, _folder(tmp_path)).num_trials == 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"optim.learning_rate": {"log_uniform": [1e-4, 1e-1]}}}, "log_uniform: was [1e-05, 0.1], is"),
        ({"seeds": [0, 1]}, "seeds: was null, is [0, 1]"),
        ({"experiment": {"optim": {"learning_rate": 2e-3}}}, "experiment.optim.learning_rate: was 0.001, is 0.002"),
        ({"objective": {"metric": "loss/total", "direction": "maximize"}}, "objective"),
    ],
)  # fmt: skip
def test_another_sweep_of_that_name_is_refused_with_the_difference(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    _create(tmp_path)
    before = _folder(tmp_path).sweep.read_text()
    with pytest.raises(InputError, match="is made of something else") as caught:
        _create(tmp_path, **changes)
    assert words in str(caught.value)
    assert "--again" in str(caught.value)
    assert _folder(tmp_path).sweep.read_text() == before


def test_an_old_study_is_kept_when_it_begins_anew(tmp_path: Path) -> None:
    sweep, study = _create(tmp_path)
    study.tell(study.ask(), 1.0)
    kept = set_aside(_folder(tmp_path), sweep)
    assert StudyFolder(kept).journal.exists()
    _, fresh = _create(tmp_path)
    assert [trial.state for trial in fresh.trials] == [TrialState.WAITING]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler["name"])
def test_every_sampler_gives_trials_within_the_space(tmp_path: Path, sampler: dict[str, Any]) -> None:
    from tclx.sweep import space

    ranges = {
        "optim.learning_rate": {"log_uniform": [1e-5, 1e-1]},
        "model.queue_size": {"integer": [16, 64]},
        "objectives.imc": {"on_or_off": True},
    }
    sweep, _ = _create(tmp_path, space=ranges, sampler=sampler)
    study = open_study(_folder(tmp_path), sweep, seed=1)
    seen = []
    for number in range(8):
        trial = study.ask()
        drawn = space.draw(trial, sweep.spec)
        sweep.planned(drawn)
        study.tell(trial, float(number))
        seen.append(tuple(sorted(drawn.items())))
    assert len(set(seen)) == len(seen) or sampler["name"] == "nsga2"  # children may be their parents; their runs are there


def test_workers_with_other_seeds_draw_other_trials(tmp_path: Path) -> None:
    sweep = load(tmp_path, sampler={"name": "random"})
    draws = []
    for seed in (1, 2, 1):
        study = optuna.create_study(sampler=build_sampler(sweep, seed=seed))
        draws.append(study.ask().suggest_float("x", 0, 1))
    assert draws[0] == draws[2] != draws[1]


def test_workers_share_one_scrambled_sobol_sequence(tmp_path: Path) -> None:
    """Each takes the next point of it, whatever its own seed: several sequences would cover the space as unevenly as chance."""
    sweep, _ = _create(tmp_path, sampler={"name": "qmc"}, num_trials=20)

    def points(seeds: list[int]) -> list[float]:
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=storage, study_name="x", direction="maximize")
        rates = []
        for seed in seeds:
            worker = optuna.load_study(study_name="x", storage=storage, sampler=build_sampler(sweep, seed=seed))
            trial = worker.ask()
            rates.append(trial.suggest_float("optim.learning_rate", 1e-5, 1e-1, log=True))
            worker.tell(trial, 1.0)
        return rates[1:]  # before its first trial the sampler does not know the space, and draws at random

    alone = points([1] * 9)
    assert points([1, 2, 3, 4, 5, 6, 7, 8, 9]) == alone
    assert sorted(int(8 * (math.log10(rate) + 5) / 4) for rate in alone) == list(range(8))  # one in each eighth of the range


def _told(study: optuna.Study, runs: list[RunFolder], *, seconds: float | None) -> None:
    """A trial whose runs have trained so long, and which is complete; with None it is a quarter through."""
    trial = study.ask()
    trial.set_user_attr("runs", [run.run_id for run in runs])
    for run in runs:
        run.path.mkdir(parents=True)
        if seconds is None:
            run.write_state(RunState("running", step=1, total_steps=4))
            continue
        run.events.write_text(json.dumps({"time": 1000.0, "event": "started"}) + "\n")
        run.write_json(run.state, asdict(RunState("finished", step=4, total_steps=4, updated_at=1000.0 + seconds)))
    if seconds is not None:
        study.tell(trial, 1.0)


def test_a_sweeps_eta_counts_what_is_left_for_each_worker_at_the_speed_of_what_has_ended(tmp_path: Path) -> None:
    sweep, study = _create(tmp_path, num_trials=8, num_workers=3)

    def eta() -> float | None:
        return summarise(study, sweep, _folder(tmp_path)).eta_seconds

    def runs(*names: str) -> list[RunFolder]:
        return [RunFolder(tmp_path / "runs" / name) for name in names]

    assert eta() is None
    _told(study, runs("a0", "a1"), seconds=50.0)  # two seeds: 100 s, told within a moment, as one that was there already
    assert eta() == pytest.approx(300.0)  # 7 trials, 3 workers: one of them has 3
    _told(study, runs("b"), seconds=60.0)
    assert eta() == pytest.approx(160.0)  # 6 trials of 80 s
    _told(study, runs("c"), seconds=None)
    assert eta() == pytest.approx(160.0)  # 5 to begin, and three quarters of one
    for name in "defg":
        _told(study, runs(name), seconds=80.0)
    assert eta() == pytest.approx(80.0)  # the last one takes as long as it takes, however many workers are free
    _told(study, runs("h"), seconds=80.0)
    assert eta() == pytest.approx(60.0)


def test_after_a_night_between_two_commands_the_eta_is_that_of_the_work(tmp_path: Path) -> None:
    sweep, study = _create(tmp_path, num_trials=2)
    trial = study.ask()
    run = RunFolder(tmp_path / "runs" / "a")
    run.path.mkdir(parents=True)
    events = [(0.0, "started"), (30.0, "interrupted"), (40_000.0, "resumed")]
    run.events.write_text("".join(json.dumps({"time": time, "event": name}) + "\n" for time, name in events))
    run.write_json(run.state, asdict(RunState("finished", step=4, total_steps=4, updated_at=40_070.0)))
    trial.set_user_attr("runs", ["a"])
    study.tell(trial, 1.0)
    assert summarise(study, sweep, _folder(tmp_path)).eta_seconds == pytest.approx(100.0)


def test_a_trial_nobody_works_on_is_not_called_running(tmp_path: Path) -> None:
    sweep, study = _create(tmp_path)
    folder = _folder(tmp_path)
    trial, worker = study.ask(), claims.new_worker()

    def words() -> tuple[str, dict[str, int]]:
        tree = as_tree(study, sweep, folder)
        return tree["trials"][trial.number]["state"], {
            word: tree[word] for word in ("running", "interrupted", "lost") if tree[word]
        }

    assert words() == ("lost", {"lost": 1})
    with claims.living(folder, worker):
        claims.take(folder, trial.number, worker, step=0)
        assert words() == ("running", {"running": 1})
    assert words() == ("lost", {"lost": 1})
    claims.release(folder, trial.number)
    assert words() == ("interrupted", {"interrupted": 1})
    study.tell(trial, 1.0)
    assert words() == ("finished", {})


@pytest.mark.parametrize("pruner", [{"name": "hyperband"}, {"name": "asha"}, {"name": "median", "startup_trials": 1}])
def test_pruners_end_a_trial_that_is_far_behind(tmp_path: Path, pruner: dict[str, Any]) -> None:
    sweep = load(tmp_path, pruner=pruner, num_trials=30)
    assert num_evaluations(sweep) == 4
    study = optuna.create_study(direction="maximize", pruner=build_pruner(sweep), sampler=build_sampler(sweep, seed=0))
    pruned = []
    for number in range(20):
        trial = study.ask()
        value = 0.0 if number > 8 else 10.0 + number
        for step in range(1, 5):
            trial.report(value, step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                pruned.append(number)
                break
        else:
            study.tell(trial, value)
    assert any(number > 8 for number in pruned)


def test_of_several_objectives_the_front_is_best_and_one_must_be_named(tmp_path: Path) -> None:
    objective = [
        {"metric": "retrieval/val/r_mean", "direction": "maximize"},
        {"metric": "cost/gpu_hours", "direction": "minimize"},
    ]
    sweep, study = _create(tmp_path, objective=objective)
    for values in ([10.0, 1.0], [20.0, 2.0], [5.0, 3.0]):
        trial = study.ask()
        trial.suggest_float("optim.learning_rate", 1e-5, 1e-1, log=True)
        study.tell(trial, values)
    assert [trial.number for trial in best_trials(study, counted_complete(study))] == [0, 1]
    with pytest.raises(InputError, match="name one of 0, 1"):
        experiment_of(part_of(sweep, study))
    assert "name: toy-sweep-trial1" in experiment_of(part_of(sweep, study), number=1)
    with pytest.raises(InputError, match="complete are 0, 1, 2"):
        experiment_of(part_of(sweep, study), number=9)


def test_a_trial_that_breaks_a_constraint_is_not_the_best(tmp_path: Path) -> None:
    sweep, study = _create(tmp_path, constraints=[{"metric": "cost/gpu_hours", "at_most": 1.0}])
    for value, margin in ((1.0, -0.5), (9.0, 0.5)):
        trial = study.ask()
        trial.set_constraint("cost/gpu_hours", margin)
        study.tell(trial, value)
    assert [trial.number for trial in summarise(study, sweep, _folder(tmp_path)).best] == [0]


def test_a_study_is_found_by_its_file_or_name(tmp_path: Path) -> None:
    _create(tmp_path)
    assert find_study(str(tmp_path / "sweep.yaml"), tmp_path / "runs") == _folder(tmp_path)
    assert find_study("toy-sweep", tmp_path / "runs") == _folder(tmp_path)
    with pytest.raises(InputError, match="did you mean `toy-sweep`"):
        find_study("toy-sweeps", tmp_path / "runs")


def test_a_worker_is_known_to_live_exactly_while_it_does(tmp_path: Path) -> None:
    _create(tmp_path)
    folder, worker = _folder(tmp_path), claims.new_worker()
    with folder.lock():
        claim = claims.take(folder, 0, worker, step=0)
    assert not claims.is_alive(folder, claim)
    with claims.living(folder, worker):
        assert claims.is_alive(folder, claim)
        assert claims.living_workers(folder) == [worker]
        claims.release(folder, 0)
        released = claims.read_claim(folder, 0)
        assert released is not None
        assert not claims.is_alive(folder, released)
    assert claims.living_workers(folder) == []


def test_deaths_are_counted_only_where_a_trial_does_not_get_on(tmp_path: Path) -> None:
    _create(tmp_path)
    folder = _folder(tmp_path)
    deaths = []
    for step, released in ((0, False), (0, False), (0, True), (0, False), (4, False)):
        deaths.append(claims.take(folder, 0, claims.new_worker(), step=step).deaths)
        if released:
            claims.release(folder, 0)
    assert deaths == [0, 1, 2, 0, 0]


def _worker(tmp_path: Path, **changes: Any) -> Worker:
    sweep, _ = _create(tmp_path, num_trials=50, **changes)
    folder = _folder(tmp_path)
    folder.note_start()
    return Worker(Search(open_study(folder, sweep), sweep, folder), print, lambda: False)


def test_a_sweep_whose_first_trials_all_fail_stops_and_says_why(tmp_path: Path) -> None:
    worker = _worker(tmp_path)
    for number in range(MOST_FAILURES):
        found = _next([worker.stage], worker.folder, "somebody@here")
        assert isinstance(found, Chosen)
        found.trial.set_user_attr("reason", f"reason {number}")
        worker.study.tell(found.trial, state=TrialState.FAIL)
    with pytest.raises(MachineError, match=f"the first {MOST_FAILURES} trials have failed.*reason {MOST_FAILURES - 1}"):
        _next([worker.stage], worker.folder, "somebody@here")


def test_no_trial_begins_when_the_time_is_up_but_a_begun_one_goes_on(tmp_path: Path) -> None:
    worker = _worker(tmp_path, max_hours=1.0)
    begun = _next([worker.stage], worker.folder, "gone@here")
    assert isinstance(begun, Chosen)
    worker.folder.started.write_text(json.dumps({"time": time.time() - 3700}))
    taken_over = _next([worker.stage], worker.folder, "next@here")
    assert isinstance(taken_over, Chosen)
    assert (taken_over.trial.number, taken_over.claim.starts) == (begun.trial.number, 2)
    worker.study.tell(taken_over.trial, 1.0)
    assert _next([worker.stage], worker.folder, "next@here") is None
