"""Promises of `tclx.report.results`: the right runs, in the right rows, with the right spread."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
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
from tclx.report.bootstrap import estimate
from tclx.runs import RunFolder, RunState
from tclx.tasks.outcomes import Outcome, Queries, write_outcomes
from tclx.tasks.retrieval.task import RetrievalSpec


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


def make_ranked(
    runs_dir: Path, ranks: Sequence[int], *, captions_of_image: int = 2, asked: str = "q", **options: Any
) -> RunFolder:
    """A run whose captions stand at these ranks, with the metrics that follow, each image asking once for rank 0."""
    images = [number // captions_of_image for number in range(len(ranks))]
    num_images = images[-1] + 1
    outcomes = {
        "text_to_image": Outcome(Queries(asked, images), ranks),
        "image_to_text": Outcome(Queries(f"{asked} images", range(num_images)), [0] * num_images),
    }
    statistics_of = {metric.name: metric.statistic for metric in RetrievalSpec.metrics if metric.statistic is not None}
    metrics = {name.replace("/", "__"): one.value for name, one in estimate(outcomes, statistics_of).items()}
    folder = make_run(runs_dir, **options, **metrics, num_images=num_images, num_captions=len(ranks))
    write_outcomes(folder.outcomes("retrieval", "test"), outcomes, origin={"step": 10})
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
    assert results.leaders(summary) == {"r_mean": 3, "text_to_image/r1": 3}
    assert results.winners(summary) == {}  # cma's seeds reach from 1 to 6: three of them leave that open


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
    assert results.leaders(summary_of(tmp_path, metrics=["text_to_image/median_rank"])) == {"text_to_image/median_rank": 1}


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


# ------------------------------------------------------------------------------------------------------- intervals and winners

RIGHT, WRONG = [0] * 90 + [7] * 10, [0] * 20 + [7] * 80
"""Ranks of 100 captions of 50 images: R@1 of 90 and 20."""
R1 = ["text_to_image/r1"]


def test_one_seed_has_the_interval_over_its_queries(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT)
    spread = summary_of(tmp_path, metrics=R1).rows[0].metrics["text_to_image/r1"]
    assert spread.interval is not None
    # Five images of 50 with both captions wrong: as a share of 50 independent images.
    assert (spread.interval.low, spread.interval.high) == pytest.approx((90 - 8.3, 90 + 8.3), abs=2.0)  # whole images
    assert results.format_spread(spread) == f"90.0 [{spread.interval.low:.1f}, {spread.interval.high:.1f}]"
    assert summary_of(tmp_path, metrics=R1, intervals=False).rows[0].metrics["text_to_image/r1"].interval is None


def test_several_seeds_show_their_interval_where_it_is_asked_for(tmp_path: Path) -> None:
    for seed in range(3):
        make_ranked(tmp_path, RIGHT[seed:] + WRONG[100 - seed :], seed=seed)
    spread = summary_of(tmp_path, metrics=R1).rows[0].metrics["text_to_image/r1"]
    assert spread.interval is not None
    assert results.format_spread(spread) == "89.0 ± 1.0"
    assert results.format_spread(spread, intervals=True).startswith("89.0 ± 1.0 [")
    # Wider than the seeds alone have it: they share the images.
    assert spread.interval.high - spread.interval.low > 2 * 4.303 * 1.0 / 3**0.5


def test_csv_and_json_carry_the_interval_chance_and_the_mark(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b")
    summary = summary_of(tmp_path, metrics=R1)
    cells = [row["metrics"]["text_to_image/r1"] for row in json.loads(json.dumps(results.as_json(summary)))["rows"]]
    lines = list(csv.DictReader(io.StringIO(results.as_csv(summary))))
    for cell, line in zip(cells, lines, strict=True):
        low, high = cell["interval"]
        assert (float(line["text_to_image/r1_low"]), float(line["text_to_image/r1_high"])) == (low, high)
        assert low < cell["mean"] < high
        assert cell["chance"] == float(line["text_to_image/r1_chance"]) == pytest.approx(2.0)
    assert [cell["best"] for cell in cells] == [True, False]


def marked(runs_dir: Path, **options: Any) -> dict[str, str]:
    """The labels of the rows that are marked as best, by metric."""
    summary = summary_of(runs_dir, **options)
    return {metric: summary.rows[index].label for metric, index in results.winners(summary).items()}


def test_the_best_is_marked_where_it_is_beyond_noise_of_every_other(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b")
    assert marked(tmp_path, metrics=R1) == {"text_to_image/r1": "toy a"}
    assert marked(tmp_path, metrics=["text_to_image/median_rank"]) == {"text_to_image/median_rank": "toy a"}
    make_ranked(tmp_path, [*RIGHT[2:], 7, 7], variant="c")  # one image less: within noise of a, far from b
    assert results.leaders(summary_of(tmp_path, metrics=R1)) == {"text_to_image/r1": 0}
    assert marked(tmp_path, metrics=R1) == {}


def test_a_small_difference_is_beyond_noise_where_it_is_on_every_image(tmp_path: Path) -> None:
    """Queries are paired: R@1 of 50 and 60 of 40 captions are told apart where the second never loses."""
    ranks = [0, 9] * 20
    make_ranked(tmp_path, ranks, variant="a")
    make_ranked(tmp_path, [0 if number % 10 == 9 else rank for number, rank in enumerate(ranks)], variant="b")
    assert marked(tmp_path, metrics=R1) == {"text_to_image/r1": "toy b"}


def test_nothing_within_chance_is_marked(tmp_path: Path) -> None:
    make_ranked(tmp_path, [9] * 98 + [0] * 2, variant="a")  # 2 % of 50 images: as chance has it
    make_ranked(tmp_path, [9] * 100, variant="b")
    summary = summary_of(tmp_path, metrics=R1)
    assert results.leaders(summary) == {"text_to_image/r1": 0}
    assert results.winners(summary) == {}
    assert results.format_chance(summary, "text_to_image/r1") == "2.0"


def test_seeds_that_all_beat_chance_do_so_however_far_they_are_apart(tmp_path: Path) -> None:
    """Whether these models have learnt anything is a matter of queries; what another seed would give is not asked."""
    make_ranked(tmp_path, WRONG, seed=0)
    make_ranked(tmp_path, [0] * 96 + [7] * 4, seed=1)
    (row,) = summary_of(tmp_path, metrics=R1).rows
    assert row.metrics["text_to_image/r1"].interval == (0.0, 100.0)
    assert results.is_beyond_chance(row, "text_to_image/r1")


def test_runs_that_were_asked_something_else_are_not_ranked(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b", asked="other")
    assert marked(tmp_path, metrics=R1) == {}


def test_seeds_that_were_asked_different_things_have_no_interval_over_queries_and_say_so(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, seed=0)
    make_ranked(tmp_path, RIGHT, seed=1, asked="other")
    summary = summary_of(tmp_path, metrics=R1)
    assert not summary.rows[0].samples["text_to_image/r1"].estimates
    assert summary.notes == ("no interval over queries for toy: its seeds were not evaluated on the same queries",)


def test_a_run_without_outcomes_has_no_interval_and_its_note_says_what_writes_them(tmp_path: Path) -> None:
    old = make_run(tmp_path, variant="old", text_to_image__r1=99.0, num_images=50.0, num_captions=100.0)
    make_ranked(tmp_path, WRONG, variant="new")
    summary = summary_of(tmp_path, metrics=R1)
    assert [row.metrics["text_to_image/r1"].interval is None for row in summary.rows] == [False, True]
    assert marked(tmp_path, metrics=R1) == {}
    (note,) = summary.notes
    assert note.startswith(f"no interval over queries for {old.run_id}: no outcomes of its queries were kept; `tclx eval RUN")
    with redirect_stderr(io.StringIO()) as said:
        print_results(summary)
    assert note in said.getvalue()


def test_outcomes_of_another_evaluation_than_the_metrics_are_not_used(tmp_path: Path) -> None:
    folder = make_ranked(tmp_path, RIGHT)
    path = folder.evaluated("retrieval", "test")
    written = folder.read_json(path)
    folder.write_json(path, {"metrics": {**written["metrics"], "retrieval/test/text_to_image/r1": 91.0}})
    summary = summary_of(tmp_path, metrics=R1)
    assert summary.rows[0].metrics["text_to_image/r1"].interval is None
    assert "is of another evaluation than the metrics beside it" in summary.notes[0]


def test_damaged_outcomes_are_named_and_the_means_still_shown(tmp_path: Path) -> None:
    folder = make_ranked(tmp_path, RIGHT)
    folder.outcomes("retrieval", "test").write_text("{}")
    summary = summary_of(tmp_path, metrics=R1)
    assert results.format_spread(summary.rows[0].metrics["text_to_image/r1"]) == "90.0"
    assert f"{folder.outcomes('retrieval', 'test')} cannot be read" in summary.notes[0]


def test_the_table_has_chance_below_and_marks_what_is_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b")
    print_results(summary_of(tmp_path, metrics=[*R1, "text_to_image/median_rank"]))
    _, _, first, second, chance = capsys.readouterr().out.splitlines()
    assert first.count("*") == 2
    assert "*" not in second
    assert chance.split() == ["chance", "2.0"]


def rows_with(*names: str) -> results.Results:
    """A row for each word, which has the metrics of its letters."""
    spread = results.Spread(1.0, None)
    rows = tuple(results.Row(name, (), {}, dict.fromkeys(name.strip("-"), spread), {}, {}) for name in names)
    return results.Results("test", ("a", "b", "c", "d"), rows, ())


@pytest.mark.parametrize(
    ("names", "tables"),
    [
        (("ab", "b"), [(("ab", "b"), "abcd")]),
        (("ab", "c", "b"), [(("ab", "b"), "ab"), (("c",), "c")]),
        (("d", "ab", "cd", "a"), [(("d", "cd"), "cd"), (("ab", "a"), "ab")]),
        (("a", "b", "c", "abc"), [(("a", "b", "c", "abc"), "abcd")]),
        (("a", "-", "b"), [(("a", "-"), "a"), (("b",), "b")]),
        (("-", "a", "b"), [(("-", "a"), "a"), (("b",), "b")]),
        ((), [((), "abcd")]),
    ],
)
def test_rows_that_share_no_metric_are_tables_apart(names: tuple[str, ...], tables: list[tuple[tuple[str, ...], str]]) -> None:
    found = results.apart(rows_with(*names))
    assert [(tuple(row.label for row in one.rows), "".join(one.metrics)) for one in found] == tables


def test_chance_that_differs_between_rows_is_shown_from_the_least_to_the_most(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, RIGHT, captions_of_image=5, variant="b")
    assert results.format_chance(summary_of(tmp_path, metrics=R1), "text_to_image/r1") == "2.0 to 5.0"
