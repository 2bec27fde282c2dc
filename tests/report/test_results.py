"""Promises of `tclx.report.results`: the right runs, in the right rows, with the right spread."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from tclx.cli.results import print_results
from tclx.cli.status import as_tree
from tclx.errors import InputError
from tclx.found import find
from tclx.launch.watch import describe, watch_runs
from tclx.report import results
from tclx.runs import RunFolder, RunState


def make_run(
    runs_dir: Path,
    *,
    name: str = "toy",
    variant: str | None = None,
    seed: int = 0,
    digest: str = "0123abcd",
    state: RunState | None = None,
    learning_rate: float = 1e-3,
    init: str | None = None,
    **metrics: float,
) -> RunFolder:
    """A run folder as the training loop leaves it."""
    label = f"{name}-{variant}" if variant else name
    folder = RunFolder(runs_dir / f"{label}-s{seed}-{digest}")
    folder.path.mkdir(parents=True)
    spec: dict[str, Any] = {
        "name": name,
        "variant": variant,
        "seed": seed,
        "data": {"num_workers": seed},
        "optim": {"learning_rate": learning_rate},
        "init": {"checkpoint": init} if init else None,
        "launch": {},
        "tracking": {},
    }
    folder.write_json(folder.spec, spec)
    folder.write_state(state or RunState("finished", step=10, total_steps=10))
    if metrics:
        values = {f"retrieval/test/{key.replace('__', '/')}": value for key, value in metrics.items()}
        folder.write_json(folder.evaluated("retrieval", "test"), {"metrics": values})
    return folder


def read(*folders: Path) -> list[results.RunResult]:
    return results.read_runs(results.Selection(folders))


def found(*names: str, runs_dir: Path) -> list[Path]:
    return list(find(names, runs_dir=runs_dir).folders)


def summary_of(runs_dir: Path, **options: Any) -> results.Results:
    return results.summarise(read(*find([], runs_dir=runs_dir).folders), **options)


def test_an_ablation_of_four_variants_and_three_seeds_is_four_rows(tmp_path: Path) -> None:
    values = {"cma": [1.0, 2.0, 6.0], "cma+imc": [4.0, 4.0, 4.0], "cma+lmi": [3.0, 5.0, 4.0], "tcl": [9.0, 8.0, 7.5]}
    for variant, seeds in values.items():
        for seed, value in enumerate(seeds):
            make_run(tmp_path, variant=variant, seed=seed, r_mean=value, text_to_image__r1=value / 2)
    summary = summary_of(tmp_path)
    assert [row.label for row in summary.rows] == ["toy cma", "toy cma+imc", "toy cma+lmi", "toy tcl"]
    for row in summary.rows:
        seeds = values[row.runs[0].variant or ""]
        assert row.metrics["r_mean"].mean == pytest.approx(statistics.fmean(seeds))
        assert row.metrics["r_mean"].deviation == pytest.approx(statistics.stdev(seeds))
    assert results.best_rows(summary) == {"r_mean": 3, "text_to_image/r1": 3}


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    make_run(tmp_path, r_mean=38.25)
    (row,) = summary_of(tmp_path).rows
    assert results.format_spread(row.metrics["r_mean"]) == "38.2"


def test_specs_that_differ_by_more_than_the_seed_never_share_a_row(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, digest="aaaaaaaa", r_mean=1.0)
    make_run(tmp_path, seed=1, digest="bbbbbbbb", r_mean=2.0)
    make_run(tmp_path, seed=0, digest="cccccccc", learning_rate=0.1, r_mean=3.0)
    rows = summary_of(tmp_path).rows
    assert [(row.label, len(row.runs)) for row in rows] == [("toy (learning_rate=0.001)", 2), ("toy (learning_rate=0.1)", 1)]


def test_seeds_that_start_from_seeds_of_one_pretraining_share_a_row(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, digest="aaaaaaaa", init="/r/pre-s0-0a0a0a0a", r_mean=1.0)
    make_run(tmp_path, seed=1, digest="bbbbbbbb", init="/r/pre-s1-1b1b1b1b", r_mean=2.0)
    assert [len(row.runs) for row in summary_of(tmp_path).rows] == [2]


def test_runs_that_are_not_finished_are_listed_and_not_counted(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, r_mean=1.0)
    make_run(tmp_path, seed=1, state=RunState("failed", step=3, total_steps=10, reason="loss is NaN"), r_mean=99.0)
    summary = summary_of(tmp_path)
    assert summary.rows[0].metrics["r_mean"].mean == 1.0
    assert [describe(run.status) for run in summary.unfinished] == ["failed at step 3 of 10: loss is NaN"]


def test_a_run_whose_process_is_gone_is_lost_in_the_same_word_everywhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path, state=RunState("running", step=3, total_steps=10))
    folder.heartbeat.touch()
    assert words(tmp_path) == {"running"}
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    folder.write_json(folder.state, {**folder.read_json(folder.state), "pid": gone.pid})
    assert words(tmp_path) == {"lost"}  # at once: its last heartbeat is fresh


def words(runs_dir: Path) -> set[str]:
    """For the one run that is there: what status, results and the page call its state, in words and in JSON."""
    (status,) = watch_runs(find([], runs_dir=runs_dir).folders)
    (run,) = (summary := summary_of(runs_dir)).unfinished
    (unfinished,) = results.as_json(summary)["unfinished"]
    with redirect_stderr(io.StringIO()) as said:
        print_results(summary)
    shown = said.getvalue().removeprefix(f"not in the table: {run.run_id} ").split()[0]
    return {status.standing, as_tree(status)["state"], run.status.standing, unfinished["state"], shown}


def test_smaller_median_ranks_are_better(tmp_path: Path) -> None:
    make_run(tmp_path, variant="a", text_to_image__median_rank=3.0)
    make_run(tmp_path, variant="b", text_to_image__median_rank=2.0)
    assert results.best_rows(summary_of(tmp_path, metrics=["text_to_image/median_rank"])) == {"text_to_image/median_rank": 1}


def test_csv_and_json_carry_the_same_figures(tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 3.0)):
        make_run(tmp_path, variant="a", seed=seed, r_mean=value)
    summary = summary_of(tmp_path)
    (line,) = csv.DictReader(io.StringIO(results.as_csv(summary)))
    (row,) = json.loads(json.dumps(results.as_json(summary)))["rows"]
    assert float(line["r_mean"]) == row["metrics"]["r_mean"]["mean"] == 2.0
    assert float(line["r_mean_deviation"]) == row["metrics"]["r_mean"]["deviation"] == pytest.approx(2**0.5)
    assert line["num_seeds"] == "2"
    assert line["run_ids"].split() == [run["run_id"] for run in row["runs"]] == ["toy-a-s0-0123abcd", "toy-a-s1-0123abcd"]
    assert [run["metrics"]["r_mean"] for run in row["runs"]] == [1.0, 3.0]


def test_runs_are_selected_by_folder_id_experiment_and_folder_of_runs(tmp_path: Path) -> None:
    one = make_run(tmp_path / "here", r_mean=1.0)
    two = make_run(tmp_path / "here", name="toy-large", r_mean=1.0)
    here = tmp_path / "here"
    assert found(str(one.path), runs_dir=tmp_path) == [one.path]
    assert found(one.run_id, runs_dir=here) == [one.path]
    assert found("toy-large", runs_dir=here) == [two.path]
    assert found("toy", runs_dir=here) == [one.path]
    assert found(str(here), runs_dir=tmp_path) == [one.path, two.path]


def test_a_run_set_aside_by_again_is_left_out(tmp_path: Path) -> None:
    kept = make_run(tmp_path, r_mean=1.0)
    make_run(tmp_path, seed=1).path.rename(tmp_path / f"{kept.run_id}.old-1")
    assert found(runs_dir=tmp_path) == [kept.path]
    assert found(f"{kept.run_id}.old-1", runs_dir=tmp_path) == [tmp_path / f"{kept.run_id}.old-1"]


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    make_run(tmp_path, r_mean=1.0)
    with pytest.raises(InputError, match="did you mean toy-s0-0123abcd"):
        found("toy-s0-0123abce", runs_dir=tmp_path)
    with pytest.raises(InputError, match="did you mean r_mean"):
        summary_of(tmp_path, metrics=["r_maen"])
    with pytest.raises(InputError, match="'val'"):
        summary_of(tmp_path, split="val")


def test_a_torn_file_names_its_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, r_mean=1.0)
    folder.spec.write_text('{"name": "t')
    with pytest.raises(InputError, match=folder.run_id):
        read(folder.path)


def test_a_thousand_runs_are_read_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # making them durable takes 10 s and is not what is measured
    for seed in range(1000):
        make_run(tmp_path, variant=f"v{seed % 10}", seed=seed, digest=f"{seed:08x}", r_mean=float(seed))
    started = time.process_time()
    summary = summary_of(tmp_path)
    assert time.process_time() - started < 1.0
    assert [len(row.runs) for row in summary.rows] == [100] * 10


@pytest.mark.parametrize(("count", "more"), [(0, ""), (1, ""), (6, ""), (7, ", and 1 more"), (9, ", and 3 more")])
def test_of_many_keys_a_rows_name_has_the_first_and_their_number(count: int, more: str) -> None:
    differs = {f"k{number}": str(number) for number in range(count)}
    named = ", ".join(f"k{number}={number}" for number in range(min(count, results.MOST_KEYS)))
    assert results._shown(differs) == (f" ({named}{more})" if count else "")
