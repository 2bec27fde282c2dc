"""The page of a study: its numbers, what failed, and in a browser nothing out of place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tclx.sweep import space
from tclx.sweep.ablation_page import write_sweep_report
from tclx.sweep.begin import create_study
from tclx.sweep.report import build
from tclx.sweep.study import StudyFolder
from tests.report.browser import chromium
from tests.report.reading import Reader
from tests.sweep.toy import load, part_of

RANGES = {
    "optim.learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "objectives.imc": {"on_or_off": True},
    "objectives.imc.weight": {"uniform": [0.1, 3.0]},
    "model.queue_size": {"choices": [16, 32]},
}
HOSTILE = "<script>alert(1)</script>"


def _study(tmp_path: Path, *, num_trials: int = 12, **changes: Any) -> tuple[Any, optuna.Study, StudyFolder]:
    """A study whose value depends on the learning rate alone; one trial pruned, one failed."""
    sweep = load(tmp_path, space=RANGES, num_trials=num_trials + 2, sampler={"name": "random"}, **changes)
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    study = create_study(sweep, folder)
    several = len(sweep.spec.objective) > 1
    for number in range(num_trials):
        trial = study.ask()
        drawn = space.draw(trial, sweep.spec)
        trial.set_user_attr("values", space.shown(space.values_of(drawn, sweep.spec), sweep.spec))
        trial.set_user_attr("runs", [f"toy-s0-{number:08x}"])
        value = 50 - (math.log10(drawn["optim.learning_rate"]) + 2) ** 2
        if not several:
            trial.report(value, 1)
        study.tell(trial, [value, 1.0 + number] if several else value)
    for state, reason in ((TrialState.PRUNED, "after evaluation 1: too low"), (TrialState.FAIL, HOSTILE)):
        trial = study.ask()
        space.draw(trial, sweep.spec)
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=state)
    return sweep, study, folder


def test_the_page_says_what_won_and_what_mattered(tmp_path: Path) -> None:
    sweep, study, folder = _study(tmp_path)
    page = Reader(build(part_of(sweep, study, folder)).html())
    best, *_ = page.tables
    assert best[1][0].startswith(str(study.best_trial.number))
    assert best[1][1] == f"{study.best_value:.4g}"
    assert any(row[0] == "0 (the experiment)" for row in best)
    importance = page.figures["Share of the variance of retrieval/val/r_mean"]["data"][0]
    shares = dict(zip(importance["y"], importance["x"], strict=True))
    assert max(shares, key=lambda name: shares[name]) == "optim.learning_rate"
    assert "objectives.imc.weight" not in shares  # not every trial has it
    assert "after evaluation 1: too low" in page.text
    for heading in ("History", "All parameters", "Evaluations and pruning", "Failed trials"):
        assert heading in page.text


def test_trial_0_stands_out_in_every_figure_of_trials(tmp_path: Path) -> None:
    sweep, study, folder = _study(tmp_path)
    figures = Reader(build(part_of(sweep, study, folder)).html()).figures
    metric, own = "retrieval/val/r_mean", study.trials[0]
    stars = {
        title: (star["x"][0], star["y"][0])
        for title, figure in figures.items()
        for star in figure["data"]
        if star.get("marker", {}).get("symbol") == "star"
    }
    assert stars[f"{metric}, trial by trial"] == (0, own.value)
    assert stars[f"{metric} by optim.learning_rate"] == (own.params["optim.learning_rate"], own.value)
    assert stars[f"{metric} by objectives.imc"] == ("on", own.value)
    assert any(" and " in title for title in stars)
    lines = figures[f"Every trial a line, by {metric}"]["data"]
    (named,) = [line for line in lines if line["showlegend"]]
    assert (named["name"], named["line"]["width"], lines.index(named)) == ("trial 0 (the experiment)", 3, len(lines) - 1)
    places = [line["y"] for line in lines]
    assert all(0 <= place <= 1 for line in places for place in line if place is not None)
    assert any(None in line for line in places)  # of trials without a weight of IMC
    values = {line["y"][0]: line for line in lines}
    assert (min(values), max(values)) == (0, 1)
    curves = {line["name"] for line in figures[f"{metric} at every evaluation"]["data"]}
    assert curves == {"others", f"trial {study.best_trial.number}, the best", "trial 0 (the experiment)"}
    for title, figure in figures.items():
        axes = [figure["layout"][axis] for axis in ("xaxis", "yaxis") if axis in figure["layout"]]
        assert title.startswith(("Share of", "Every trial")) or all(axis["title"]["text"] for axis in axes), title


def test_where_less_is_better_the_best_so_far_falls(tmp_path: Path) -> None:
    objective = {"metric": "retrieval/val/text_to_image/median_rank", "direction": "minimize"}
    sweep, study, folder = _study(tmp_path, objective=objective)
    page = Reader(build(part_of(sweep, study, folder)).html())
    best = page.figures["retrieval/val/text_to_image/median_rank, trial by trial"]["data"][0]["y"]
    assert best == sorted(best, reverse=True)
    assert best[-1] == study.best_value


def test_nothing_of_a_study_becomes_markup(tmp_path: Path) -> None:
    sweep, study, folder = _study(tmp_path)
    html = build(part_of(sweep, study, folder)).html()
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_study_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    page = Reader(build(part_of(sweep, create_study(sweep, folder), folder)).html())
    assert "No trial is complete yet" in page.text
    assert "Importance needs" in page.text


def test_several_objectives_have_a_front_and_figures_of_their_own(tmp_path: Path) -> None:
    objective = [
        {"metric": "retrieval/val/r_mean", "direction": "maximize"},
        {"metric": "cost/gpu_hours", "direction": "minimize"},
    ]
    sweep, study, folder = _study(tmp_path, objective=objective)
    page = Reader(build(part_of(sweep, study, folder)).html())
    assert "What each objective costs the other" in page.figures
    assert f"on the Pareto front{len(study.best_trials)}" in page.text
    assert {"retrieval/val/r_mean, trial by trial", "cost/gpu_hours, trial by trial"} <= set(page.figures)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_every_figure_is_drawn_within_the_screen(tmp_path: Path, width: int) -> None:
    sweep, study, folder = _study(tmp_path)
    path = tmp_path / "page.html"
    write_sweep_report([part_of(sweep, study, folder)], path)
    with chromium(tmp_path / "profile") as browser:
        browser.open(path, width=width)
        assert browser.complaints == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
        assert browser.value("document.documentElement.scrollWidth") == width
        drawn = browser.value("[...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('.main-svg')).length")
        assert drawn == browser.value("document.querySelectorAll('.plot').length") > 8
