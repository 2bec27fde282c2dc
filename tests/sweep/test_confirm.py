"""What a search found is confirmed with fresh seeds: what is trained, what is said, what a changed sweep makes of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tclx.errors import InputError
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import prepare
from tclx.runs import RunFolder
from tclx.sweep import trial
from tclx.sweep.begin import create_study, set_aside
from tclx.sweep.confirm import Confirmation
from tclx.sweep.export import experiment_of
from tclx.sweep.parts import Part, num_left, open_parts
from tclx.sweep.report import build
from tclx.sweep.searched import Sweep
from tclx.sweep.showing import standing_of, tree_of
from tclx.sweep.study import StudyFolder, open_confirmation, trials_of
from tclx.sweep.verdict import conclusion, rows
from tests.report.reading import Reader
from tests.sweep import light
from tests.sweep.test_export import written
from tests.sweep.toy import TRAINING, load, run, status, work_through

RATE = "optim.learning_rate"
POINTS = [{RATE: rate} for rate in (1e-5, 2e-3, 5e-3)]
"""Beside trial 0, whose rate is 1e-3."""


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_train", train)  # of this process: commands train
    monkeypatch.setattr(light, "STEP_SECONDS", 0.0)


def train(planned: PlannedRun, folder: RunFolder, *others: Any) -> None:
    prepare(planned, folder)
    light.train(planned, folder, *others)


TEST = {"metric": "retrieval/test/r_mean", "direction": "maximize"}


def noisy(scale: float, worth: float = 1.0) -> Any:
    """A step's value: what the rate is worth, the seed's own luck, and noise of this rate and seed."""

    def value(learning_rate: float, seed: int) -> float:
        noise = random.Random(f"noise {learning_rate} {seed}").gauss(0, 1)
        luck = random.Random(seed).gauss(0, 5)
        return 50 + worth * 1000 * learning_rate + (luck + scale * noise if seed else 0)

    return value


def confirmed(tmp_path: Path, **changes: Any) -> tuple[Part, Confirmation]:
    whole = {"num_trials": 4, "points": POINTS, "confirm": {"top": 2, "seeds": 6}, **changes}
    sweep = load(tmp_path, **whole)
    folder = StudyFolder.of(sweep.spec.name, tmp_path / "runs")
    create_study(sweep, folder)
    folder.note_start()
    work_through(folder)
    return stands(folder)


def stands(folder: StudyFolder) -> tuple[Part, Confirmation]:
    (part,) = open_parts(folder)
    confirmation = part.confirmation()
    assert confirmation is not None
    return part, confirmation


def test_a_better_trial_is_named_after_as_few_seeds_as_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, confirmation = confirmed(tmp_path)
    assert confirmation.seeds == (1, 2, 3, 4, 5, 6)  # the search's own is 0
    assert [one.arm.number for one in confirmation.candidates] == [3, 2]
    assert confirmation.is_over
    assert confirmation.winner is not None
    assert confirmation.winner.arm.number == 3
    assert confirmation.winner.compared.difference == pytest.approx(4 * 4.0, abs=0.5)  # four steps of 1000 * (5e-3 - 1e-3)
    assert all(len(arm.values) < 6 for arm in confirmation.arms)
    words = conclusion(confirmation, part.sweep)
    assert words.startswith("confirmed: trial 3 is better than the experiment (trial 0): retrieval/val/r_mean +1")
    assert "95 % interval" in words
    assert num_left([part]) == 0


def test_luck_of_the_search_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(2.0, worth=0.05))
    part, confirmation = confirmed(tmp_path)
    assert confirmation.is_over
    assert confirmation.winner is None
    words = "no difference: with fresh seeds none of the 2 best is shown to be better than the experiment (trial 0)"
    assert conclusion(confirmation, part.sweep) == words
    assert [row[-1] for row in rows(confirmation, part.sweep)] == ["verdict", "", "not better", "not better"]
    (spec,) = written(tmp_path, experiment_of(part, beside=tmp_path))
    assert spec.optim.learning_rate == 1e-3  # so the experiment itself is what to use
    assert f"# N{words[1:]}." in experiment_of(part)
    assert "learning_rate: 0.005" in experiment_of(part, number=3)


def test_it_trains_at_the_experiment_s_own_length_with_seeds_the_search_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    short = {"changes": {"training.steps": 2, "launch.max_parallel_runs": 3}, "seeds": [1, 3]}
    part, confirmation = confirmed(tmp_path, **short)
    assert confirmation.seeds == (0, 2, 4, 5, 6, 7)
    for path, of in trials_of(part.folder).items():
        spec = json.loads((path / "spec.json").read_text())
        assert spec["training"]["steps"] == (4 if of.confirms else 2)
        assert spec["launch"]["max_parallel_runs"] == 3  # where it runs is the sweep's to say
        assert (spec["seed"] in (1, 3)) != of.confirms
    (tmp_path / "kept").mkdir()
    kept, _ = confirmed(tmp_path / "kept", **short, confirm={"top": 1, "keep_changes": True})
    steps = {json.loads((path / "spec.json").read_text())["training"]["steps"] for path in trials_of(kept.folder)}
    assert steps == {2}


def test_what_is_smaller_is_better_where_the_sweep_minimizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, confirmation = confirmed(tmp_path, objective={"metric": "retrieval/val/r_mean", "direction": "minimize"})
    assert confirmation.winner is not None
    assert confirmation.winner.arm.number == 1
    row = next(row for row in rows(confirmation, part.sweep) if row[0] == "1")
    low, _, high = row[4].partition(" to ")
    assert float(low) < float(row[3]) < float(high) < 0


def test_trials_of_the_search_and_runs_that_confirm_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, confirmation = confirmed(tmp_path)
    noted = {path: RunFolder(path).read_trial() for path in trials_of(part.folder)}
    found = Counter((of.number, of.confirms) for of in noted.values() if of is not None)
    expected = {(number, False): 1 for number in range(4)}
    assert found == expected | {(arm.number, True): len(arm.runs) for arm in confirmation.arms}
    tree = json.loads(json.dumps(tree_of([part])))
    assert tree["finished"] == 4
    assert tree["confirmation"]["winner"] == 3
    assert tree["confirmation"]["candidates"][0]["verdict"] == "better"
    assert tree["confirmation"]["num_runs"] == sum(len(arm.runs) for arm in confirmation.arms)


def test_nothing_is_confirmed_before_the_search_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    sweep = load(tmp_path, num_trials=4, points=POINTS, confirm={})
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    search = create_study(sweep, folder)
    search.ask()
    part, confirmation = stands(folder)
    assert list(confirmation.missing()) == []
    assert standing_of(part) == ["0/4 trials (1 lost)"]
    assert "begins when the search has ended" in conclusion(confirmation, sweep)
    assert num_left([part]) == 4


def test_a_trial_that_fails_with_a_fresh_seed_is_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))

    def failing(planned: Any, *others: Any) -> None:
        if planned.spec.optim.learning_rate == 5e-3 and planned.spec.seed == 2:
            raise trial._Failed("loss is not finite")
        train(planned, *others)

    monkeypatch.setattr(trial, "_train", failing)
    part, confirmation = confirmed(tmp_path)
    assert [(one.arm.number, one.word) for one in confirmation.candidates] == [(3, "failed"), (2, "better")]
    assert rows(confirmation, part.sweep)[2][-1] == "failed: loss is not finite"
    assert confirmation.winner is not None
    assert confirmation.winner.arm.number == 2


def test_where_trial_0_fails_nothing_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(planned: Any, *others: Any) -> None:
        if planned.spec.optim.learning_rate == 1e-3 and planned.spec.seed:
            raise trial._Failed("out of memory")
        train(planned, *others)

    monkeypatch.setattr(trial, "_train", failing)
    part, confirmation = confirmed(tmp_path)
    assert confirmation.is_over
    assert "trial 0 failed with a fresh seed, so nothing can be compared: out of memory" in conclusion(confirmation, part.sweep)


def test_what_breaks_a_constraint_with_fresh_seeds_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    reached = trial.metrics.reached

    def breaking(folders: Any, sweep: Sweep) -> Any:
        values, _ = reached(folders, sweep)
        fresh = json.loads(folders[0].spec.read_text())["seed"] != 0
        return values, {"loss/total": 1.0 if fresh else -1.0}

    monkeypatch.setattr(trial.metrics, "reached", breaking)
    _, confirmation = confirmed(tmp_path, constraints=[{"metric": "loss/total", "at_most": 9.0}])
    assert {one.word for one in confirmation.candidates} == {"breaks a constraint"}
    assert confirmation.winner is None


def test_a_study_goes_on_with_a_confirmation_more_seeds_and_more_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "value", noisy(2.0, worth=0.2))
    _, before = confirmed(tmp_path, num_trials=3, confirm={"top": 2, "seeds": 3})
    _, after = confirmed(tmp_path, num_trials=3, confirm={"top": 2, "seeds": 9})
    assert after.num_runs >= before.num_runs
    for old, new in zip(before.arms, after.arms, strict=True):
        assert new.number == old.number
        assert old.values.items() <= new.values.items()
    _, more = confirmed(tmp_path, num_trials=4, confirm={"top": 2, "seeds": 9})
    assert [one.arm.number for one in more.candidates] == [3, 2]
    assert more.baseline.values.items() >= after.baseline.values.items()


def test_a_study_that_was_set_aside_keeps_its_confirmation(
    tmp_path: Path, storage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, confirmation = confirmed(tmp_path, storage=storage)
    kept = StudyFolder(set_aside(part.folder, part.sweep))
    (again,) = open_parts(kept)
    assert again.confirmation() == confirmation
    fresh, _ = confirmed(tmp_path, storage=storage, confirm={"top": 1, "seeds": 3})
    assert len(fresh.search.trials) == 4
    assert open_parts(kept)[0].confirmation() == confirmation


def test_a_study_of_another_time_has_none(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    create_study(sweep, folder)
    assert open_confirmation(folder, sweep) is None
    content = json.loads(folder.sweep.read_text())
    del content["spec"]["confirm"], content["spec"]["variants"]
    folder.sweep.write_text(json.dumps(content))
    assert folder.read_sweep() == sweep


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"changes": {"evaluation.during_training": "test"}, "objective": TEST},
            "without the sweep's `changes` no run has `retrieval/test/r_mean`",
        ),
        ({"objective": [TEST, {"metric": "loss/total", "direction": "minimize"}]}, "a confirmation compares one value"),
        ({"confirm": {"seeds": 2}}, "3"),
        ({"confirm": {"tops": 2}}, "top"),
    ],
)  # fmt: skip
def test_what_cannot_be_confirmed_is_said_before_anything_is_tried(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="confirm") as caught:
        load(tmp_path, **{"confirm": {}, **changes})
    assert words in str(caught.value)


def test_the_page_shows_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, confirmation = confirmed(tmp_path)
    page = Reader(build(part).html())
    assert "Confirmed: trial 3 is better than the experiment" in page.text
    table = next(one for one in page.tables if one[0][0] == "confirmed")
    assert [row[0] for row in table] == ["confirmed", "0 (the experiment)", "3", "2"]
    by_seed = next(one for one in page.tables if one[0][0] == "seed")
    assert len(by_seed) == 1 + max(len(arm.values) for arm in confirmation.arms)


@pytest.mark.slow
def test_two_workers_that_train_confirm_together_and_a_second_command_trains_nothing(tmp_path: Path) -> None:
    load(tmp_path, num_trials=2, num_workers=2, confirm={"top": 1, "seeds": 3}, changes={"training.steps": 2})
    code, stdout, stderr = run(tmp_path / "sweep.yaml")
    assert code == 0, stderr
    assert "0 (the experiment)" in stdout
    assert "trial 1 with seed 1" in stderr
    tree = status(tmp_path / "sweep.yaml")
    confirmation = tree["confirmation"]
    assert confirmation["is_over"]
    assert stderr.count(confirmation["conclusion"]) >= 1
    paths = [
        tmp_path / "runs" / run
        for arm in (confirmation["baseline"], *confirmation["candidates"])
        for run in arm["runs"].values()
    ]
    assert len(paths) == len(set(paths)) == confirmation["num_runs"]
    assert {RunFolder(path).read_state().step for path in paths} == {TRAINING["steps"]}  # type: ignore[union-attr]
    before = {path: path.stat().st_mtime for path in (tmp_path / "runs").glob("*/metrics.jsonl")}
    code, _, _ = run(tmp_path / "sweep.yaml")
    assert code == 0
    assert {path: path.stat().st_mtime for path in (tmp_path / "runs").glob("*/metrics.jsonl")} == before
    assert status(tmp_path / "sweep.yaml")["confirmation"] == confirmation


def test_every_state_of_the_confirming_study_is_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "value", noisy(0.1))
    part, _ = confirmed(tmp_path)
    assert part.confirming is not None
    asked = Counter((one.user_attrs["of"], one.user_attrs["seed"]) for one in part.confirming.trials)
    assert set(asked.values()) == {1}
    assert {one.state for one in part.confirming.trials} == {TrialState.COMPLETE}
