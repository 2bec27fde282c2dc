"""A search ends before all of its trials where it was told to, says why, and its confirmation goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tclx.errors import InputError
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import prepare
from tclx.runs import RunFolder
from tclx.sweep import trial
from tclx.sweep.begin import create_study
from tclx.sweep.parts import Part, num_left, open_parts
from tclx.sweep.showing import standing_of, tree_of
from tclx.sweep.study import StudyFolder
from tests.sweep import light
from tests.sweep.toy import load, work_through

RATE = "optim.learning_rate"


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rate is 1e-3, the experiment's own."""

    def train(planned: PlannedRun, folder: RunFolder, *others: Any) -> None:
        prepare(planned, folder)
        light.train(planned, folder, *others)

    monkeypatch.setattr(trial, "_train", train)
    monkeypatch.setattr(light, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(light, "value", lambda rate, seed: 1 / (1 + abs(rate - 1e-3)))


def worked(tmp_path: Path, **changes: Any) -> Part:
    sweep = load(tmp_path, **changes)
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    create_study(sweep, folder)
    folder.note_start()
    work_through(folder)
    (part,) = open_parts(folder)
    return part


def test_a_search_that_finds_nothing_better_ends(tmp_path: Path) -> None:
    part = worked(tmp_path, num_trials=20, stop={"name": "stagnation", "trials": 4})
    assert [one.state for one in part.search.trials] == [TrialState.COMPLETE] * 5  # trial 0 is the best
    (line,) = standing_of(part)
    assert line.startswith("5/20 trials")
    assert line.endswith(", ended: nothing better in 4 trials")
    assert tree_of([part])["stopped"] == "nothing better in 4 trials"
    assert num_left([part]) == 0
    assert len(worked(tmp_path, num_trials=20, stop={"name": "stagnation", "trials": 4}).search.trials) == 5
    assert len(worked(tmp_path, num_trials=20, stop={"name": "stagnation", "trials": 6}).search.trials) == 7
    assert len(worked(tmp_path, num_trials=9).search.trials) == 9


def test_a_confirmation_follows_a_search_that_was_stopped(tmp_path: Path) -> None:
    part = worked(tmp_path, num_trials=20, stop={"name": "stagnation", "trials": 3}, confirm={"top": 1, "seeds": 3})
    confirmation = part.confirmation()
    assert confirmation is not None
    assert confirmation.is_over
    assert len(part.search.trials) == 4


def test_the_hours_of_all_trials_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tclx.sweep.stopping.hours_of", lambda folder: 0.5)
    part = worked(tmp_path, num_trials=20, max_gpu_hours=1.4)
    assert len(part.search.trials) == 3
    assert "ended: its trials have trained for 1.5 of max_gpu_hours: 1.4" in standing_of(part)[0]
    assert len(worked(tmp_path, num_trials=20, max_gpu_hours=2.0).search.trials) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stop": {"trials": 0}}, "at least 1"),
        ({"stop": {"name": "patience"}}, "stagnation"),
        ({"max_gpu_hours": 0}, "max_gpu_hours"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **changes)
    assert words in str(caught.value)
