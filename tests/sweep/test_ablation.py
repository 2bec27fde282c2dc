"""A search and a confirmation for each of several variants, and the table in which each stands at its best."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError
from tclx.found import find
from tclx.runs import RunFolder, RunState
from tclx.sweep import trial
from tclx.sweep.ablation import ablation_of, settings
from tclx.sweep.ablation_page import build_ablation, write_sweep_report
from tclx.sweep.begin import create_studies
from tclx.sweep.load import load_sweeps
from tclx.sweep.parts import Part, open_parts
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder
from tests.cli.test_cli import Ended
from tests.report.browser import chromium
from tests.report.reading import Reader
from tests.sweep import light
from tests.sweep.test_confirm import train
from tests.sweep.toy import EVALUATION, run, status, work_through, write_sweep

RATE, WEIGHT = "optim.learning_rate", "objectives.lmi.weight"
VARIANTS = {
    "cma": {"objectives": {"imc": None, "lmi": None}},
    "cma+lmi": {"objectives": {"imc": None}},
    "tcl": {},
}
SPACE = {
    RATE: {"log_uniform": [1e-5, 1e-1]},
    WEIGHT: {"log_uniform": [0.03, 2.0]},
    "objectives.imc": {"on_or_off": True},
    "objectives.imc.weight": {"log_uniform": [0.1, 3.0]},
}
EXPERIMENT = {"variants": VARIANTS, "evaluation": {**EVALUATION, "at_end": "test"}}


def path_of(tmp_path: Path, **changes: Any) -> Path:
    whole = {"variants": "all", "space": SPACE, "num_trials": 2, "confirm": {"top": 1, "seeds": 4}, **changes}
    return write_sweep(tmp_path, **{"experiment": EXPERIMENT, **whole})


def loaded(tmp_path: Path, **changes: Any) -> dict[str | None, Sweep]:
    return {sweep.part: sweep for sweep in load_sweeps(path_of(tmp_path, **changes), runs_dir=tmp_path / "runs")}


def test_a_variant_is_searched_over_the_keys_that_it_has(tmp_path: Path) -> None:
    sweeps = loaded(tmp_path, points=[{RATE: 1e-2, WEIGHT: 0.5}])
    assert {variant: set(sweep.spec.space) for variant, sweep in sweeps.items()} == {
        "cma": {RATE},
        "cma+lmi": {RATE, WEIGHT},
        "tcl": set(SPACE),
    }
    assert sweeps["cma"].spec.points == ({RATE: 1e-2},)
    assert [sweep.base.variant for sweep in sweeps.values()] == list(VARIANTS)
    assert sweeps["cma"].title == "toy-sweep-cma"


def test_the_plan_says_once_what_all_share_and_each_variant_s_own_beside_it(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    shown = Ended("sweep", "plan", path, "--runs-dir", tmp_path / "runs")
    assert shown.code == 0, shown.err
    assert shown.out.count("trials  ") == 1
    (row,) = [line.split() for line in shown.out.splitlines() if line.startswith(WEIGHT)]
    assert row[-3:] == ["-", "0.3333", "0.3333"]
    tree = json.loads(Ended("sweep", "plan", path, "--runs-dir", tmp_path / "runs", "--json").out)
    assert tree["variants"]["tcl"]["its runs"] == "4 to 8"


def test_changes_bring_no_section_that_a_variant_has_not(tmp_path: Path) -> None:
    sweeps = loaded(tmp_path, changes={WEIGHT: 0.7, "training.steps": 3})
    assert {variant: sweep.base.objectives.lmi and sweep.base.objectives.lmi.weight for variant, sweep in sweeps.items()} == {
        "cma": None,
        "cma+lmi": 0.7,
        "tcl": 0.7,
    }
    assert {sweep.base.training.steps for sweep in sweeps.values()} == {3}


def test_weights_that_share_a_sum_share_what_a_variant_has_of_it(tmp_path: Path) -> None:
    keys = [f"objectives.{term}.weight" for term in ("cma", "imc", "lmi")]
    weights = dict.fromkeys(keys, 0.4)
    sweeps = loaded(tmp_path, space={RATE: SPACE[RATE]}, simplex=[{"keys": keys, "total": 1.2}], changes=weights)
    assert sweeps["cma"].spec.simplex == ()  # a share of one is no choice
    (two,) = sweeps["cma+lmi"].spec.simplex
    assert (two.keys, two.total) == ((keys[0], keys[2]), pytest.approx(0.8))
    assert sweeps["tcl"].spec.simplex[0].total == 1.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": ["cma", "tlc"]}, "toy.yaml has no variant `tlc`"),
        ({"variants": ["cma"]}, "must be `all` or a list of at least 2"),
        ({"variant": "cma"}, "give one of the two"),
        ({"space": {WEIGHT: SPACE[WEIGHT]}}, "variant cma: has none of its keys"),
        ({"space": {RATE: {"log_uniform": [0.5, 0.9]}}}, "variant cma: the experiment's own value 0.001 is outside"),
        ({"experiment": {"evaluation": EVALUATION}}, "toy.yaml has no several variants"),
        ({"variants": None}, "or give `variants: all`"),
    ],
)
def test_what_is_wrong_is_said_of_the_variant(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, **changes)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ what is trained


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a variant with more terms is better; a step of it is worth its rate."""

    def ended(planned: Any, folder: RunFolder, *others: Any) -> None:
        worth = len(planned.spec.objectives.terms)
        monkeypatch.setattr(light, "value", lambda rate, seed: 10 * worth + min(rate, 2e-3) * (1000 + seed % 3))
        train(planned, folder, *others)
        value = 10 * worth + min(planned.spec.optim.learning_rate, 2e-3) * 1000 + planned.spec.seed % 3
        folder.write_state(RunState("finished", step=4, total_steps=4))
        folder.write_json(folder.evaluated("retrieval", "test"), {"metrics": {"retrieval/test/r_mean": value}})

    monkeypatch.setattr(trial, "_train", ended)
    monkeypatch.setattr(light, "STEP_SECONDS", 0.0)


def worked(tmp_path: Path, **changes: Any) -> list[Part]:
    sweeps = list(loaded(tmp_path, points=[{RATE: 2e-3}], **changes).values())
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    create_studies(sweeps, folder)
    folder.note_start()
    work_through(folder)
    return open_parts(folder)


@pytest.mark.usefixtures("nothing_is_trained")
def test_each_stands_at_its_best_with_all_seeds_beside_the_full_model(tmp_path: Path) -> None:
    parts = worked(tmp_path)
    ablation = ablation_of(parts)
    assert [one.name for one in ablation.variants] == list(VARIANTS)
    assert {one.trial for one in ablation.variants} == {1}  # its rate is worth one point more
    assert {one.how for one in ablation.variants} == {"confirmed as better than trial 0"}
    assert {len(one.runs) for one in ablation.variants} == {4}
    assert [row.label for row in ablation.results.rows] == list(VARIANTS)
    assert ablation.notes == ()
    assert ablation.full is not None
    assert ablation.full.name == "tcl"
    assert settings(ablation)[RATE] == [2e-3] * 3
    assert settings(ablation)[WEIGHT][0] is None

    out = json.loads(Ended("sweep", "table", "toy-sweep", "--runs-dir", tmp_path / "runs", "--json").out)
    difference = out["rows"][0]["against"]["r_mean"]
    terms = {part.folder.variant: len(part.sweep.base.objectives.terms) for part in parts}
    assert difference["difference"] == pytest.approx(10 * (terms["cma"] - terms["tcl"]))
    assert difference["verdict"] == "worse"
    assert [one["variant"] for one in out["variants"]] == list(VARIANTS)
    shown = Ended("sweep", "table", "toy-sweep", "--runs-dir", tmp_path / "runs", "--csv", tmp_path / "t.csv")
    assert shown.code == 0
    assert "differences from tcl" in shown.out
    assert "confirmed as better than trial 0" in shown.out
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert [line["variant"] for line in csv.DictReader(lines)] == list(VARIANTS)
    latex = Ended("sweep", "table", "toy-sweep", "--runs-dir", tmp_path / "runs", "--latex")
    assert latex.out.count(r"\begin{tabular}") == 2


@pytest.mark.usefixtures("nothing_is_trained")
def test_without_a_confirmation_the_best_of_each_search_is_compared(tmp_path: Path) -> None:
    ablation = ablation_of(worked(tmp_path, confirm=None))
    assert {(one.trial, one.how, len(one.runs)) for one in ablation.variants} == {(1, "best of the search", 1)}


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_table_of_a_sweep_under_way_says_what_is_missing(tmp_path: Path) -> None:
    sweeps = list(loaded(tmp_path).values())
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    create_studies(sweeps, folder)
    for part in open_parts(folder):
        assert part.sweep.part == part.folder.variant
    ended = Ended("sweep", "table", "toy-sweep", "--runs-dir", tmp_path / "runs")
    assert ended.code == 2
    html = build_ablation(open_parts(folder)).html()
    assert "There is no table yet" in Reader(html).text


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_study_of_one_search_does_not_become_one_of_several(tmp_path: Path) -> None:
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    create_studies(list(loaded(tmp_path, variants=None, variant="tcl").values()), folder)
    sweeps = list(loaded(tmp_path).values())
    with pytest.raises(InputError, match="was one search, is a search for each variant"):
        create_studies(sweeps, folder)
    said: list[str] = []
    create_studies(sweeps, folder, accept_changes=True, say=said.append)
    assert said[0].endswith("toy-sweep.old-1")
    kept = open_parts(StudyFolder(folder.path.with_name("toy-sweep.old-1")))
    assert [part.folder.variant for part in kept] == [None]
    assert [part.folder.variant for part in open_parts(folder)] == list(VARIANTS)


@pytest.mark.usefixtures("nothing_is_trained")
def test_more_variants_go_on_with_what_is_there(tmp_path: Path) -> None:
    before = worked(tmp_path, variants=["cma", "tcl"])
    trained = {part.folder.variant: [one.value for one in part.search.trials] for part in before}
    after = worked(tmp_path)
    assert [part.folder.variant for part in after] == list(VARIANTS)
    assert {part.folder.variant: [one.value for one in part.search.trials] for part in after}.items() >= trained.items()


@pytest.mark.usefixtures("nothing_is_trained")
def test_the_name_stands_for_the_runs_of_all(tmp_path: Path) -> None:
    parts = worked(tmp_path)
    found = find(["toy-sweep"], runs_dir=tmp_path / "runs")
    assert {of.variant for of in found.trials.values()} == set(VARIANTS)
    confirming = sum(len(part.confirming.trials) for part in parts if part.confirming is not None)
    assert sum(of.confirms for of in found.trials.values()) == confirming
    out = Ended("results", "toy-sweep", "--runs-dir", tmp_path / "runs").out
    assert "toy-sweep cma confirms trial 1" in out
    assert "toy-sweep tcl trial 0" in out
    shown = Ended("status", "toy-sweep", "--runs-dir", tmp_path / "runs").out
    assert "toy-sweep cma confirms 1" in shown
    assert "toy-sweep cma+lmi 0 " in shown
    best = Ended("sweep", "best", "toy-sweep", "--runs-dir", tmp_path / "runs")
    assert (best.code, "name one of cma, cma+lmi, tcl" in best.err) == (2, True)
    best = Ended("sweep", "best", "toy-sweep", "--variant", "cma", "--runs-dir", tmp_path / "runs")
    assert "name: toy-sweep-cma-best" in best.out
    wrong = Ended("sweep", "best", "toy-sweep", "--variant", "imc", "--runs-dir", tmp_path / "runs")
    assert "the study has no search of `imc`" in wrong.err


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_trained")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_page_stays_within_the_screen(tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    write_sweep_report(worked(tmp_path), path)
    with chromium(tmp_path / "profile") as browser:
        browser.open(path, width=width)
        assert browser.complaints == []
        assert browser.value("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_the_command_trains_every_variant_and_a_second_one_nothing(tmp_path: Path) -> None:
    path = path_of(tmp_path, variants=["cma", "tcl"], num_workers=2, changes={"training.steps": 2})
    code, stdout, stderr = run(path)
    assert code == 0, stderr
    assert "cma: trial 0" in stderr
    tree = status(path)["variants"]
    assert all(one["finished"] == 2 and one["confirmation"]["is_over"] for one in tree.values())
    assert stdout.count("0 (the experiment)") == 4
    before = {file: file.stat().st_mtime for file in (tmp_path / "runs").glob("*/metrics.jsonl")}
    assert run(path)[0] == 0
    assert {file: file.stat().st_mtime for file in (tmp_path / "runs").glob("*/metrics.jsonl")} == before
    table = Ended("sweep", "table", "toy-sweep", "--runs-dir", tmp_path / "runs")
    assert table.code == 0, table.err
    assert "tcl itself" in table.out
