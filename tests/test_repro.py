"""A table is made from run folders, kept in a record, and says what is out of date."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError
from tclx.launch.order import plan_runs
from tclx.launch.prepare import prepare
from tclx.repro.made import make
from tclx.repro.record import read_record
from tclx.repro.table import load_table
from tclx.runs import RunFolder, RunState
from tclx.tasks.outcomes import Outcome, Queries, write_outcomes
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[1]
TABLES = sorted((PROJECT / "docs" / "tables").glob("*.yaml"))

VARIANTS = {"all": {}, "without": {"objectives": {"imc": None}}}
BEGIN, END = "<!-- tclx repro table.yaml -->", "<!-- end of table.yaml -->"


def write_table(folder: Path, **changes: Any) -> Path:
    """A table of the toy's two variants, three seeds each, and the page that holds it."""
    write_spec(folder, variants=VARIANTS, seeds=[0, 1, 2])
    (folder / "page.md").write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    content = {
        "title": "Toys",
        "rows": [{"experiment": "toy.yaml"}],
        "columns": ["text_to_image/r1", "r_mean"],
        "differences": {"against": "all", "metric": "r_mean"},
        "document": "page.md",
        **changes,
    }
    path = folder / "table.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({key: value for key, value in content.items() if value is not None}, file)
    return path


def train(folder: Path, *overrides: str, r1: float = 25.0) -> list[RunFolder]:
    """As if the toy's runs had been trained: each seed a little better, `all` by 50 points."""
    folders = []
    for run in plan_runs([folder / "toy.yaml"], overrides, runs_dir=folder / "runs"):
        made = RunFolder(folder / "runs" / run.plan.run_id)
        if made.spec.exists():
            continue
        prepare(run, made)
        made.write_state(RunState("finished", step=2, total_steps=2))
        right = r1 + (50 if run.spec.variant == "all" else 0) + run.spec.seed
        metrics = {
            "text_to_image/r1": right,
            "r_mean": right + 1,
            "image_to_text/r1": 1.0,
            "num_images": 100.0,
            "num_captions": 100.0,
        }
        whole = {f"retrieval/test/{name}": value for name, value in metrics.items()}
        made.write_json(made.evaluated("retrieval", "test"), {"metrics": whole})
        made.write_json(made.environment, {"commit": "0123456789abcdef", "packages": {"torch": "2.15.0"}, "cpu": "x86_64"})
        folders.append(made)
    return folders


def train_toys(folder: Path) -> list[RunFolder]:
    write_table(folder)
    return train(folder)


def repro(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["repro", str(path), "--runs-dir", str(path.parent / "runs"), *arguments])


def lines_of(page: Path) -> list[str]:
    return page.read_text().splitlines()


# ---------------------------------------------------------------------------------------------------------------------- made


def test_the_table_comes_from_run_folders_and_is_kept_with_its_document(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    ended = repro(path, "--write")
    assert ended.exit_code == 0, ended.output
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(
        f"# Before\n\n{BEGIN}\n\n|  | seeds | T2I R@1 | r_mean | r_mean against all |\n|---|---|---|---|---|\n"
    )
    assert text.endswith(f"\n\n{END}\n\nAfter.\n")
    assert "| without | 3 | 26.0 ± 1.0 | 27.0 ± 1.0 | **-50.0 [-50.0, -50.0]** |" in text
    assert "| all | 3 | **76.0 ± 1.0** | **77.0 ± 1.0** |  |" in text
    assert "| chance |  | 1.0 |" in text
    assert "6 runs: 6 at 0123456789ab; `table.json` has each seed's numbers." in text
    record = json.loads((tmp_path / "table.json").read_text())
    assert [[run["seed"] for run in row["runs"]] for row in record["rows"]] == [[0, 1, 2]] * 2
    assert record["rows"][1]["runs"][1]["metrics"] == {"text_to_image/r1": 26.0, "r_mean": 27.0}
    assert [row["spec"].get("objectives.imc") for row in record["rows"]] == ["{}", None]
    assert str(tmp_path) not in json.dumps(record)


def test_without_the_run_folders_the_record_gives_the_same_table(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    before = repro(path, "--write").stdout
    page = (tmp_path / "page.md").read_text()
    shutil.rmtree(tmp_path / "runs")
    again = repro(path, "--write")
    assert again.stdout == before
    assert "all: seeds 0, 1, 2 have not been run; its numbers are those of the record" in again.stderr
    assert "wrote" not in again.stderr
    assert (tmp_path / "page.md").read_text() == page
    assert repro(path, "--check").exit_code == 0


def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.*")}
    ended = repro(path)
    assert "--write keeps these numbers" in ended.stderr
    assert {file: file.read_bytes() for file in tmp_path.glob("*.*")} == before


def test_a_row_whose_runs_are_not_all_there_is_not_made_from_some_of_them(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    folders = train(tmp_path)
    shutil.rmtree(folders[3].path)
    folders[4].write_state(RunState("failed", step=1, total_steps=2, reason="no"))
    ended = repro(path)
    assert "without: seed 0 has not been run" in ended.stderr
    row = next(line for line in ended.stdout.splitlines() if line.startswith("without"))
    assert row.split() == ["without", "-", "-"]


def test_a_run_that_has_not_finished_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    folders = train(tmp_path)
    folders[1].write_state(RunState("failed", step=1, total_steps=2, reason="no"))
    assert f"all: {folders[1].run_id} is failed" in repro(path).stderr


def test_numbers_that_are_no_longer_those_of_the_record_are_said(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    folders = train(tmp_path)
    repro(path, "--write")
    metrics = {"retrieval/test/text_to_image/r1": 40.0, "retrieval/test/r_mean": 27.0, "retrieval/test/num_images": 100.0}
    folders[4].write_json(folders[4].evaluated("retrieval", "test"), {"metrics": metrics})
    ended = repro(path)
    assert "not as recorded: without: T2I R@1 26.0 ± 1.0 -> 30.7 ± 8.1" in ended.stderr
    assert repro(path, "--check").exit_code == 0  # the document is still what the record gives


# --------------------------------------------------------------------------------------------------------------------- stale


def change_experiment(folder: Path, old: str, new: str) -> None:
    path = folder / "toy.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_row_whose_spec_has_changed_is_marked_and_the_key_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    repro(path, "--write")
    change_experiment(tmp_path, "learning_rate: 0.001", "learning_rate: 0.002")
    ended = repro(path, "--check")
    assert ended.exit_code == 1  # the document does not say so yet
    assert "page.md does not hold this table" in ended.stderr
    assert "all † was measured with another spec: optim.learning_rate 0.001, now 0.002" in ended.stderr
    assert repro(path, "--write").exit_code == 0
    assert repro(path, "--check").exit_code == 0
    text = (tmp_path / "page.md").read_text()
    assert "| all † | 3 | **76.0 ± 1.0** |" in text
    assert "† all was measured with another spec: optim.learning_rate 0.001, now 0.002." in text
    train(tmp_path, r1=20.0)
    ended = repro(path, "--write")
    assert "not as recorded: all: T2I R@1 76.0 ± 1.0 -> 71.0 ± 1.0" in ended.stderr
    assert "†" not in (tmp_path / "page.md").read_text()


def test_what_changes_no_result_makes_no_row_stale(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    repro(path, "--write")
    change_experiment(tmp_path, "num_workers: 0", "num_workers: 1")
    assert repro(path, "--check").exit_code == 0


def test_other_seeds_make_a_row_stale(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    repro(path, "--write")
    change_experiment(tmp_path, "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]")
    ended = repro(path, "--check")
    assert ended.exit_code == 1
    assert "seeds 0, 1, 2, now 0, 1, 2, 3" in ended.stderr


def test_a_changed_beginning_makes_a_row_stale_and_its_old_runs_do_not_count(tmp_path: Path) -> None:
    write_table(tmp_path, rows=[{"experiment": "later.yaml"}], differences=None)
    write_spec(tmp_path, "first")
    write_spec(tmp_path, "later", init={"experiment": "first.yaml"})
    path = tmp_path / "table.yaml"
    for run in plan_runs([tmp_path / "later.yaml"], runs_dir=tmp_path / "runs"):
        made = RunFolder(tmp_path / "runs" / run.plan.run_id)
        prepare(run, made)
        made.write_state(RunState("finished", step=2, total_steps=2))
        metrics = {"retrieval/test/text_to_image/r1": 1.0, "retrieval/test/r_mean": 2.0}
        made.write_json(made.evaluated("retrieval", "test"), {"metrics": metrics})
    assert repro(path, "--write").exit_code == 0
    record = read_record(tmp_path / "table.json")
    assert record is not None
    assert record.rows[0].spec["init.optim.learning_rate"] == "0.001"
    first = tmp_path / "first.yaml"
    first.write_text(first.read_text().replace("learning_rate: 0.001", "learning_rate: 0.003"))
    ended = repro(path)
    assert "later † was measured with another spec: init.optim.learning_rate 0.001, now 0.003" in ended.stderr
    assert "later: seed 0 has not been run" in ended.stderr


def test_marks_that_compare_rows_go_when_one_of_them_is_another(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    repro(path, "--write")
    for folder in (tmp_path / "runs").glob("toy-all-*"):
        shutil.rmtree(folder)
    for folder in (tmp_path / "runs").glob("toy-without-*"):
        run = RunFolder(folder)
        metrics = {"retrieval/test/text_to_image/r1": 90.0, "retrieval/test/r_mean": 91.0}
        run.write_json(run.evaluated("retrieval", "test"), {"metrics": metrics})
    rows = json.loads(repro(path, "--json").stdout)["rows"]
    assert [row["from"] for row in rows] == ["record", "runs"]
    assert not any(cell["best"] for row in rows for cell in row["cells"].values())
    assert [row["difference"] for row in rows] == [None, None]


def test_intervals_over_queries_are_kept_in_the_record(tmp_path: Path) -> None:
    path = write_table(tmp_path, rows=[{"experiment": "toy.yaml", "variant": "all", "seeds": [1]}], differences=None)
    (folder,) = [one for one in train(tmp_path) if one.run_id.startswith("toy-all-s1-")]
    ranks = [0] * 76 + [5] * 24
    outcomes = {"text_to_image": Outcome(Queries("q", range(100)), ranks)}
    write_outcomes(folder.outcomes("retrieval", "test"), outcomes, origin={"step": 2})
    repro(path, "--write")
    record = read_record(tmp_path / "table.json")
    assert record is not None
    cell = record.rows[0].cells["text_to_image/r1"]
    assert cell.low is not None
    assert cell.high is not None
    assert 60 < cell.low < 76 < cell.high < 90
    assert f"[{cell.low:.1f}, {cell.high:.1f}]" in (tmp_path / "page.md").read_text()


# --------------------------------------------------------------------------------------------------------------------- asked


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_table(path)
    return "\n".join(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": ["r_men"]}, "columns[0]: no task has a metric `r_men` (did you mean `r_mean`?)"),
        ({"differences": {"against": "al", "metric": "r_mean"}}, "no row is called `al` (there are all, without)"),
        ({"differences": {"against": "all", "metric": "num_images"}}, "nobody can tell whether more or less of num_images"),
        ({"document": "no.md"}, "document: no such file"),
        ({"rows": [{"experiment": "toy.yaml", "variant": "al"}]}, "has no variant `al` (it has all, without)"),
        ({"rows": [{"experiment": "toy.yaml", "label": "x"}]}, "rows[0].label: toy.yaml has 2 variants"),
        ({"rows": [{"experiment": "toy.yaml"}, {"experiment": "toy.yaml"}]}, "2 rows are called `all`"),
        ({"rows": [{"experiment": "toy.yaml", "runs": ["x"]}]}, "give exactly one of `experiment` and `runs`"),
        ({"rows": [{"runs": ["x"], "seeds": [1]}]}, "`seeds` is of an experiment"),
        ({"rows": [{"experiment": "toy.yaml", "changes": {"optim.lr": 1}}]}, "optim.lr: unknown key"),
        ({"rows": [{"experiment": "toy.yaml", "changes": {"optim.learning_rate": 7}}]}, "must be less than 1, not 7"),
        ({"row": []}, "row: unknown key (did you mean `rows`?)"),
    ],
)
def test_a_mistake_in_the_file_is_said_at_its_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write_table(tmp_path, **changes)
    message = refused(path)
    assert said in message
    assert f"{path}:" in message


def test_a_document_without_a_place_for_the_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    (tmp_path / "page.md").write_text("nothing here\n")
    train(tmp_path)
    ended = repro(path, "--write")
    assert ended.exit_code == 2
    assert f"two lines, {BEGIN} and {END}" in ended.stderr
    assert not (tmp_path / "table.json").exists()


def test_rows_may_change_keys_and_name_runs(tmp_path: Path) -> None:
    first = train_toys(tmp_path)
    named = [run.run_id for run in first if run.run_id.startswith("toy-without-")]
    train(tmp_path, "optim.learning_rate=0.002", r1=10.0)
    changed = {"experiment": "toy.yaml", "variant": "all", "changes": {"optim.learning_rate": 0.002}, "seeds": [1]}
    rows = [{**changed, "label": "faster"}, {"runs": named, "label": "named"}]
    made = make(load_table(write_table(tmp_path, rows=rows, differences=None)), None, runs_dir=tmp_path / "runs")
    found = [one.row and ([run.seed for run in one.row.runs], one.row.cells["text_to_image/r1"].mean) for one in made.rows]
    assert found == [([1], 61.0), ([0, 1, 2], 26.0)]


def test_named_runs_that_are_gone_are_those_of_the_record(tmp_path: Path) -> None:
    path = write_table(tmp_path, rows=[{"runs": ["toy-all"], "label": "named"}], differences=None)
    train(tmp_path)
    before = repro(path, "--write").stdout
    shutil.rmtree(tmp_path / "runs")
    ended = repro(path)
    assert ended.stdout == before
    assert "named: no run at toy-all" in ended.stderr


def test_a_name_that_stands_for_several_specs_is_no_row(tmp_path: Path) -> None:
    path = write_table(tmp_path, rows=[{"runs": ["toy"], "label": "named"}], differences=None)
    train(tmp_path)
    ended = repro(path)
    assert ended.exit_code == 2
    assert "the row named stands for runs of 2 specs: toy all, toy without" in ended.stderr


def test_latex_and_json_show_the_same_numbers(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    train(tmp_path)
    assert r"all & 3 & \textbf{76.0 $\pm$ 1.0}" in repro(path, "--latex").stdout
    tree = json.loads(repro(path, "--json").stdout)
    assert tree["rows"][0]["cells"]["r_mean"]["mean"] == 77.0
    assert tree["rows"][1]["difference"]["verdict"] == "worse"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    (tmp_path / "table.json").write_text("{")
    ended = repro(path)
    assert ended.exit_code == 2
    assert "table.json cannot be read" in ended.stderr


@pytest.mark.slow
def test_what_is_missing_is_trained(tmp_path: Path) -> None:
    rows = [{"experiment": "toy.yaml", "variant": "all", "seeds": [0, 1]}]
    path = write_table(tmp_path, rows=rows, differences=None)
    ended = repro(path, "--run", "--write")
    assert ended.exit_code == 0, ended.output
    assert "| all | 2 |" in (tmp_path / "page.md").read_text()
    assert repro(path, "--run").exit_code == 0  # nothing is left to train


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_shipped_tables_are_what_their_records_give(path: Path) -> None:
    ended = CliRunner().invoke(app, ["repro", str(path), "--check"])
    assert ended.exit_code == 0, ended.output
