"""Promises of `tclx report`: its numbers are the run folders', and what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tclx
from tclx.cli.app import app
from tclx.errors import InputError
from tclx.found import find
from tclx.metrics import chance_of
from tclx.plan import run_id
from tclx.report.material import Material
from tclx.report.page import styles
from tclx.report.results import group_runs, read_runs, summarise
from tclx.report.sections import comparison
from tclx.report.write import write_report
from tclx.runs import RunFolder, RunState
from tclx.spec.load import load_experiments, load_spec_json
from tclx.track.jsonl import read
from tests.report.conftest import SHORT, Trained, as_file, train
from tests.report.reading import Reader
from tests.report.test_results import RIGHT, WRONG, make_ranked
from tests.train.toy import toy_spec


def final(run: RunFolder) -> dict[str, float]:
    return dict(run.read_json(run.evaluated("retrieval", "test"))["metrics"])


def report(tmp_path: Path, *asked: object, runs_dir: Path | None = None, **options: Any) -> Reader:
    path = tmp_path / "report.html"
    write_report(find([str(one) for one in asked], runs_dir=runs_dir or tmp_path).selection, path, **options)
    return Reader.of(path)


def copy(run: RunFolder, place: Path) -> RunFolder:
    """A run that a test may spoil."""
    return RunFolder(Path(shutil.copytree(run.path, place / run.run_id)))


# ----------------------------------------------------------------------------------------------------------------- its numbers


def test_the_table_has_mean_deviation_and_interval_of_each_variant_and_chance(page: Path, trained: Trained) -> None:
    reader = Reader.of(page)
    head, *rows = reader.table("r_mean")
    chance = rows[-1]
    column = head.index("r_mean")
    means = {}
    for row, runs in zip(rows[:2], (trained.both, trained.without_imc), strict=True):
        values = [final(run)["retrieval/test/r_mean"] for run in runs]
        assert row[column].startswith(f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} [")
        assert row[1] == "2"
        means[row[column]] = statistics.fmean(values)
    assert [row[0] for row in rows] == ["both", "no-imc", "chance"]
    assert float(chance[column]) > 50  # of six images
    assert not reader.bold  # two seeds of four steps tell nothing


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Total loss", "loss/total"),
        ("IMC: two views of one modality", "loss/imc"),
        ("Gradient norm", "gradient_norm"),
        ("r_mean on val, %", "retrieval/val/r_mean"),
    ],
)
def test_curves_are_the_seeds_mean_and_their_band_the_extremes(page: Path, trained: Trained, title: str, metric: str) -> None:
    lines = Reader.of(page).lines(title)
    for label, runs in (("both", trained.both), ("no-imc", trained.without_imc)):
        logged = [{row["step"]: row[metric] for row in read(run.metrics) if metric in row} for run in runs]
        if not logged[0]:
            assert label not in lines
            continue
        line = lines[label]
        assert line["x"] == sorted(logged[0])
        for index, step in enumerate(line["x"]):
            values = [run[step] for run in logged]
            assert line["y"][index] == pytest.approx(statistics.fmean(values), rel=1e-4)
            assert line["customdata"][index] == pytest.approx([min(values), max(values)], rel=1e-3)


def test_a_metric_of_the_evaluation_is_drawn_with_what_guessing_reaches(page: Path, trained: Trained) -> None:
    figures = Reader.of(page).figures
    evaluated = [row for row in read(trained.both[0].metrics) if "retrieval/val/r_mean" in row][-1]
    expected = chance_of("r_mean", {name.removeprefix("retrieval/val/"): value for name, value in evaluated.items()})
    (line,) = figures["r_mean on val, %"]["layout"]["shapes"]
    assert line["y0"] == line["y1"] == pytest.approx(expected, abs=1e-3)
    assert figures["Total loss"]["layout"].get("shapes", []) == []


def test_the_end_of_what_a_run_printed_is_on_the_page(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained.both[0], tmp_path)
    run.log(0).parent.mkdir(exist_ok=True)
    run.log(0).write_text("opening words\n" + "between\n" * 30 + "the \x1b[31mlast\x1b[0m <line>\n")
    shown = report(tmp_path, run.path).text
    assert "the \\u001b[31mlast\\u001b[0m <line>" in shown
    assert "opening words" not in shown


def test_every_logged_metric_is_somewhere_on_the_page(page: Path, trained: Trained) -> None:
    text = Reader.of(page).text
    metrics = {name for run in trained.all for row in read(run.metrics) for name in row} - {"step", "epoch"}
    assert not [name for name in metrics if name not in text and not name.endswith(("num_images", "num_captions"))]


def test_only_the_keys_that_differ_are_listed_as_differing(page: Path) -> None:
    table = Reader.of(page).table("both")
    assert [row[0] for row in table[1:]] == ["seeds", "objectives.imc"]
    assert table[2][1:] == [f"{{weight: {1 / 3}}}", "null"]
    assert table[1][1:] == ["0, 1", "0, 1"]


def test_examples_show_the_queries_ranks_and_images_that_were_kept(page: Path, trained: Trained) -> None:
    reader = Reader.of(page)
    kept = trained.both[0].read_json(trained.both[0].examples("retrieval", "test"))
    for query in kept["text_to_image"]:
        assert query["text"] in reader.text
        assert f"right one at rank {query['rank']}" in reader.text
    sources = {attrs["src"] for tag, attrs in reader.tags if tag == "img"}
    assert {f"data:image/jpeg;base64,{image}" for image in kept["pictures"].values()} <= sources


def test_similarities_are_shares_of_the_pairs_that_were_counted(page: Path, trained: Trained) -> None:
    lines = Reader.of(page).figures["Similarity of pairs on test, % of pairs"]["data"]
    assert len(lines) == 4
    for run, pair in ((trained.both[0], lines[:2]), (trained.without_imc[0], lines[2:])):
        kept = run.read_json(run.examples("retrieval", "test"))["similarity"]
        for kind, line in zip(("matched", "unmatched"), pair, strict=True):
            shown = dict(zip(line["x"], line["y"], strict=True))
            assert sum(shown.values()) == pytest.approx(100, abs=0.1)
            most = max(range(len(kept[kind])), key=kept[kind].__getitem__)
            middle = float(f"{(kept['edges'][most] + kept['edges'][most + 1]) / 2:.5g}")
            assert shown[middle] == pytest.approx(100 * kept[kind][most] / sum(kept[kind]), rel=1e-3)


def test_every_words_map_is_shown_under_its_word(page: Path, trained: Trained) -> None:
    reader = Reader.of(page)
    descriptions = {attrs["src"]: attrs["alt"] for tag, attrs in reader.tags if tag == "img"}
    for run in (trained.both[0], trained.without_imc[0]):
        kept = run.read_json(run.examples("retrieval", "test"))["attention"]
        assert kept
        for word in (word for each in kept for word in each["words"]):
            assert f"data:image/jpeg;base64,{word['picture']}" in descriptions
        assert f"where {kept[0]['words'][0]['word']} looks" in descriptions.values()


def test_answers_of_other_tasks_stand_beside_their_images_and_what_is_right_is_marked(tmp_path: Path) -> None:
    scenes = {"source": "scenes", "attribute": "shape", "num_images": 12}
    runs = [
        train(tmp_path, toy_spec(variant=variant, seed=seed, **SHORT, **{"evaluation.classification": {"test": scenes}}))
        for variant, seed in (("one", 0), ("two", 1))
    ]
    page = report(tmp_path, runs_dir=tmp_path)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    marks = set()
    for run in runs:
        kept = run.read_json(run.examples("classification", "test"))
        for item in kept["items"]:
            assert f"data:image/jpeg;base64,{kept['pictures'][str(item['images'][0])]}" in sources
            for answer in item["answers"]:
                mark = " ✓" if answer["text"] in item["right"] else ""
                assert f"{answer['text']}{mark} cos {answer['score']:.2f}" in page.text
                marks.add(mark)
    assert len(marks) == 2


def test_examples_of_an_earlier_version_lack_nothing_else(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained.both[0], tmp_path)
    kept = run.read_json(run.examples("retrieval", "test"))
    run.write_json(
        run.examples("retrieval", "test"), {name: kept[name] for name in kept if name not in ("similarity", "attention")}
    )
    text = report(tmp_path, run.path).text
    assert "No similarities of pairs were kept" in text
    assert "No attention maps were kept" in text
    assert kept["text_to_image"][0]["text"] in text


def test_the_saved_spec_is_the_same_run(page: Path, trained: Trained, tmp_path: Path) -> None:
    import base64

    links = {attrs["download"]: attrs["href"] for tag, attrs in Reader.of(page).tags if tag == "a" and "download" in attrs}
    assert sorted(links) == sorted(f"{run.run_id}.yaml" for run in trained.all)
    for name, address in links.items():
        saved = tmp_path / str(name)
        saved.write_bytes(base64.b64decode(str(address).partition(",")[2]))
        (experiment,) = load_experiments(saved)
        assert f"{run_id(experiment.spec, 8)}.yaml" == name


def test_the_page_is_not_much_heavier_than_plotly(page: Path) -> None:
    assert page.stat().st_size < 2_600_000


# --------------------------------------------------------------------------------------------------------------- what is asked


def test_an_experiment_file_selects_its_runs_and_names_the_missing(trained: Trained, tmp_path: Path) -> None:
    spec = load_spec_json(trained.both[0].spec).model_dump(mode="json")
    path = tmp_path / "toy.yaml"
    plain = {key: value for key, value in spec.items() if key not in ("variant", "seed")}
    variants = {"no-imc": {"objectives": {"imc": None}}, "both": {}, "no-lmi": {"objectives": {"lmi": None}}}
    path.write_text(json.dumps({**plain, "variants": variants, "seeds": [0, 1]}))
    reader = report(tmp_path, path, runs_dir=trained.runs_dir)
    assert [row[0] for row in reader.table("r_mean")[1:]] == ["no-imc", "both", "chance"]
    assert "toy-no-lmi with seed 0 has not been run" in reader.text
    assert f"tclx run {path}" in reader.text


def test_a_run_of_the_same_name_from_another_spec_is_not_taken_for_it(trained: Trained, tmp_path: Path) -> None:
    changed = toy_spec(variant="both", seed=0, **SHORT, **{"optim.learning_rate": 0.5}).model_dump(mode="json")
    with pytest.raises(InputError, match="a run of that name was trained from another spec"):
        report(tmp_path, as_file(tmp_path / "toy.yaml", changed), runs_dir=trained.runs_dir)


def test_what_is_not_there_is_refused_with_the_nearest_and_nothing_is_written(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    arguments = ["report", "toy-both-s0-01234567", "--runs-dir", str(trained.runs_dir), "-o", str(output)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert "no run at toy-both-s0-01234567" in ended.stderr
    assert "did you mean" in ended.stderr
    assert not output.exists()


def test_a_page_that_cannot_be_written_is_a_matter_of_the_machine(trained: Trained, tmp_path: Path) -> None:
    arguments = ["report", str(trained.both[0].path), "-o", str(tmp_path / "nowhere" / "report.html")]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 3
    assert "could not write" in ended.stderr


def test_the_command_prints_the_file_and_never_imports_torch(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    code = (
        "import sys; from typer.testing import CliRunner; from tclx.cli.app import app\n"
        f"ended = CliRunner().invoke(app, ['report', {str(trained.runs_dir)!r}, '-o', {str(output)!r}])\n"
        "print(ended.stdout.strip(), ended.exit_code, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(output), "0", "False"]
    assert output.exists()


# -------------------------------------------------------------------------------------------------------------- what is missing


def test_one_run_alone_is_reported_with_its_whole_spec(trained: Trained, tmp_path: Path) -> None:
    reader = report(tmp_path, trained.both[0].path)
    assert "One spec, with seed 0." in reader.text
    assert ["objectives.imc.weight", str(1 / 3)] in reader.table("key")
    assert not [tag for tag, attrs in reader.tags if attrs.get("class") == "toggles"]


def test_a_folder_without_anything_but_its_spec_is_reported_as_such(trained: Trained, tmp_path: Path) -> None:
    bare = RunFolder(tmp_path / trained.both[0].run_id)
    bare.write_json(bare.spec, trained.both[0].read_json(trained.both[0].spec))
    reader = report(tmp_path, bare.path)
    for said in ("No run is finished", "No run has logged anything yet", "No examples were kept", "not recorded"):
        assert said in reader.text
    assert reader.figures == {}
    assert not [attrs for _, attrs in reader.tags if attrs.get("id") == "plotly"]


def test_a_run_that_failed_has_its_curves_and_is_not_in_the_table(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained.both[0], tmp_path)
    run.write_state(RunState("failed", step=6, total_steps=12, reason="loss is NaN"))
    shutil.rmtree(run.evaluation)
    reader = report(tmp_path, run.path, *(one.path for one in trained.without_imc))
    assert f"Not in the table: {run.run_id}, failed at step 6 of 12: loss is NaN" in reader.text
    assert [row[0] for row in reader.table("r_mean")[1:]] == ["no-imc", "chance"]
    assert set(reader.lines("Total loss")) == {"both", "no-imc"}


def test_numbers_that_are_not_finite_are_left_out_and_counted(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained.both[0], tmp_path)
    rows = read(run.metrics)
    rows[1] = {**rows[1], "loss/total": None, "nonfinite": ["loss/total"]}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = report(tmp_path, run.path)
    assert "1 logged rows hold a number that is not finite" in reader.text
    assert rows[1]["step"] not in reader.lines("Total loss")["both"]["x"]


def test_an_edited_metrics_file_names_its_line(trained: Trained, tmp_path: Path) -> None:
    run = copy(trained.both[0], tmp_path)
    run.metrics.write_text("something else\n" + run.metrics.read_text())
    with pytest.raises(InputError, match=r"line 1 of .* is not a row of metrics"):
        report(tmp_path, run.path)


def test_experiments_without_a_metric_in_common_and_on_other_data_are_not_silently_compared(
    trained: Trained, tmp_path: Path
) -> None:
    run = copy(trained.both[0], tmp_path)
    spec = run.read_json(run.spec)
    run.write_json(run.spec, {**spec, "name": "other", "data": {**spec["data"], "test": {**spec["data"]["test"], "seed": 7}}})
    run.write_json(run.evaluated("retrieval", "test"), {"metrics": {"retrieval/test/image_to_text/r5": 3.0}})
    ours = trained.without_imc[0]
    changed = copy(ours, tmp_path)
    changed.write_json(changed.evaluated("retrieval", "test"), {"metrics": {"retrieval/test/r_mean": 4.0}})
    reader = report(tmp_path, run.path, changed.path)
    assert "have no metric in common" in reader.text
    assert "data.test differs" in reader.text
    assert [row[0] for row in reader.table("r_mean")[1:]] == ["other both", "toy no-imc"]


def test_one_seed_each_is_called_what_it_is(trained: Trained, tmp_path: Path) -> None:
    reader = report(tmp_path, trained.both[0].path, trained.without_imc[0].path)
    assert "One seed each: intervals and bold are over queries alone" in reader.text


def test_what_is_best_beyond_noise_is_bold(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b")
    selection = find([], runs_dir=tmp_path).selection
    runs = read_runs(selection)
    groups = tuple(group_runs(runs))
    labels = styles([group.label for group in groups])
    blocks = comparison(Material(groups, labels, summarise(runs, metrics=["text_to_image/r1"]), {}, {}, selection))
    assert [text.split()[0] for text in Reader("".join(blocks)).bold] == ["90.0"]


def test_the_page_says_when_and_by_what_it_was_made(page: Path) -> None:
    assert re.search(rf"Made on \d{{4}}-\d\d-\d\d \d\d:\d\d \S+ by tclx {re.escape(tclx.__version__)}\.", Reader.of(page).text)
