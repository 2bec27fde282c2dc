"""Promises of `tclx compare`: the difference and its interval, in a sentence that is true, or a refusal in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError
from tclx.found import find
from tclx.report.comparison import Asked, Comparison, as_json, compare, sentence, sentences, short_names
from tclx.report.results import read_runs
from tclx.runs import RunState
from tests.report.test_results import R1, RIGHT, WRONG, make_ranked, make_run

BETTER = [0] * 30 + WRONG[30:]
"""Ten more of 100 captions right than in WRONG, on five more images of 50."""


def compared(runs_dir: Path, first: str = "toy-a", second: str = "toy-b", **options: Any) -> Comparison:
    sides = [Asked(name, read_runs(find([name], runs_dir=runs_dir).selection)) for name in (first, second)]
    return compare(*sides, **{"metrics": R1, **options})


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        compared(*arguments, **options)
    return str(refused.value)


def test_a_difference_beyond_noise_is_a_sentence_that_a_paper_would_print(tmp_path: Path) -> None:
    make_ranked(tmp_path, WRONG, variant="a")
    make_ranked(tmp_path, BETTER, variant="b")
    found = compared(tmp_path)
    (one,) = found.differences
    assert (one.first, one.second, one.verdict) == (20.0, 30.0, "better")
    assert one.interval is not None
    gains = stats.binom.ppf([0.025, 0.975], 50, 0.1) * 2  # images of 50 that gain both captions
    assert tuple(one.interval) == pytest.approx(gains, abs=2.0)
    (said,) = sentences(found)
    assert said == (
        f"toy-b is 10.0 points better than toy-a in text-to-image R@1 on test (95 % interval {one.interval.low:.1f} to "
        f"{one.interval.high:.1f}; 100 queries of 50 images, one seed each)."
    )
    (back,) = compared(tmp_path, "toy-b", "toy-a").differences
    assert back.verdict == "worse"
    assert back.interval == pytest.approx((-one.interval.high, -one.interval.low))
    assert "toy-a is 10.0 points worse than toy-b" in sentences(compared(tmp_path, "toy-b", "toy-a"))[0]


def test_what_is_within_noise_is_no_difference(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, [*RIGHT[2:], 7, 7], variant="b")
    found = compared(tmp_path)
    assert found.differences[0].verdict == "no difference"
    (said,) = sentences(found)
    assert said.startswith(
        "No difference at 95 % in text-to-image R@1 on test: toy-b is 2.0 points worse than toy-a (interval -6"
    )
    assert " to 0.0 points; 100 queries" in said


def test_equal_runs_are_the_same(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, RIGHT, variant="b")
    (said,) = sentences(compared(tmp_path))
    assert "toy-b is the same as toy-a (interval 0.0 to 0.0 points" in said.replace(" in text-to-image R@1 on test", "")


def test_a_smaller_median_rank_is_better(tmp_path: Path) -> None:
    make_ranked(tmp_path, WRONG, variant="a")
    make_ranked(tmp_path, RIGHT, variant="b")
    found = compared(tmp_path, metrics=["text_to_image/median_rank"])
    (one,) = found.differences
    assert (one.difference, one.interval, one.verdict) == (-7.0, (-7.0, -7.0), "better")
    assert (
        "toy-b is 7.0 ranks better than toy-a in text-to-image median rank on test (95 % interval 7.0 to 7.0"
        in sentences(found)[0]
    )


def test_images_that_ask_once_each_are_named_once(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, WRONG, variant="b")
    assert compared(tmp_path, metrics=["image_to_text/r1"]).differences[0].basis == "50 images, one seed each"


def shaken(seed: int, ranks: Sequence[int]) -> list[int]:
    """The same with the answers of ten captions changed."""
    changed = np.random.default_rng(seed).choice(len(ranks), size=10, replace=False)
    return [7 - rank if number in changed else rank for number, rank in enumerate(ranks)]


def test_seeds_are_paired_where_both_have_the_same_and_both_sources_count(tmp_path: Path) -> None:
    for seed in range(4):
        make_ranked(tmp_path, shaken(seed, WRONG), variant="a", seed=seed)
        make_ranked(tmp_path, shaken(seed + 50, RIGHT), variant="b", seed=seed)
    found = compared(tmp_path)
    (one,) = found.differences
    assert one.basis == "100 queries of 50 images, 4 paired seeds"
    assert one.interval is not None
    samples = [side.row.samples["text_to_image/r1"] for side in (found.first, found.second)]
    seeds = stats.ttest_rel(samples[1].values, samples[0].values)
    of_seeds = seeds.confidence_interval()
    first, second = (sample.resampled for sample in samples)
    assert first is not None
    assert second is not None
    low, high = np.quantile(second - first, [0.025, 0.975])
    assert one.interval.high - one.interval.low > max(of_seeds.high - of_seeds.low, 0.9 * (high - low)) * 0.9
    standard_error = ((one.difference / seeds.statistic) ** 2 + np.var(second - first)) ** 0.5
    assert 1.96 < (one.interval.high - one.difference) / standard_error < 3.2  # t of 3 degrees of freedom at most
    make_ranked(tmp_path, shaken(99, RIGHT), variant="b", seed=9)
    assert compared(tmp_path).differences[0].basis == "100 queries of 50 images, 4 and 5 seeds"


def test_a_single_seed_borrows_the_others_deviation_and_says_so(tmp_path: Path) -> None:
    for seed in range(3):
        make_ranked(tmp_path, shaken(seed, WRONG), variant="a", seed=seed)
    make_ranked(tmp_path, RIGHT, variant="b")
    found = compared(tmp_path)
    assert found.differences[0].basis == "100 queries of 50 images, 3 and 1 seeds"
    assert "one of them has a single seed: the other's deviation over seeds stands for both" in found.notes


def test_without_outcomes_a_single_seed_tells_nothing_and_several_are_compared_over_seeds(tmp_path: Path) -> None:
    make_run(tmp_path, variant="a", seed=0, text_to_image__r1=30.0)
    make_ranked(tmp_path, RIGHT, variant="b", seed=0)
    found = compared(tmp_path)
    assert found.differences[0].verdict == "unknown"
    assert "nothing tells whether that is more than chance (no outcomes of queries, one seed each)" in sentences(found)[0]
    assert any("`tclx eval RUN --split test` writes them" in note for note in found.notes)
    assert "whether both were asked the same queries is not known: one of them has no outcomes" in found.notes
    for seed in (1, 2):
        make_run(tmp_path, variant="a", seed=seed, text_to_image__r1=30.0 + seed)
        make_ranked(tmp_path, shaken(seed, RIGHT), variant="b", seed=seed)
    (one,) = compared(tmp_path).differences
    assert (one.verdict, one.basis) == ("better", "no outcomes of queries, 3 paired seeds")


def test_metrics_within_chance_are_named(tmp_path: Path) -> None:
    make_ranked(tmp_path, [9] * 98 + [0] * 2, variant="a")
    make_ranked(tmp_path, [9] * 100, variant="b")
    assert "neither is beyond chance in T2I R@1" in compared(tmp_path).notes


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a")
    make_ranked(tmp_path, RIGHT, variant="b", asked="other")
    make_run(tmp_path, variant="c", state=RunState("failed", step=3, total_steps=10, reason="loss is NaN"))
    assert "toy-a and toy-b were not evaluated on the same queries" in refusal(tmp_path)
    assert "toy stands for 2 rows of results: toy a, toy b (name one of them" in refusal(tmp_path, "toy", "toy-b")
    assert "have runs in common" in refusal(tmp_path, "toy-a", "toy-a-s0-0123abcd")
    assert "have no evaluation on the same split" in refusal(tmp_path, "toy-a", "toy-c")
    assert "no finished run" in refusal(tmp_path, "toy-a", "toy-c", split="test", metrics=[])
    assert "'val'" in refusal(tmp_path, split="val")
    assert "did you mean" in refusal(tmp_path, metrics=["text_to_image/r2"])
    assert "have no metric on test in common that has a direction" in refusal(tmp_path, metrics=["num_images"])


def test_json_has_every_number_and_sentence(tmp_path: Path) -> None:
    make_ranked(tmp_path, WRONG, variant="a")
    make_ranked(tmp_path, BETTER, variant="b")
    found = compared(tmp_path, metrics=())
    tree = json.loads(json.dumps(as_json(found)))
    assert tree["a"]["run_ids"] == ["toy-a-s0-0123abcd"]
    assert tree["metrics"].keys() == {one.metric for one in found.differences}
    one = tree["metrics"]["text_to_image/r1"]
    assert one["difference"] == one["b"] - one["a"] == 10.0
    assert one["interval"] == list(found.differences[0].interval or ())
    assert one["sentence"] == sentence(found, found.differences[0])
    assert len(sentences(found)) == 3 < len(found.differences)


def test_names_in_sentences_are_short_where_that_tells_them_apart() -> None:
    assert short_names("runs/a-s0", "b") == ("a-s0", "b")
    assert short_names("here/a", "there/a") == ("here/a", "there/a")


def test_the_command_prints_table_and_sentence_and_never_imports_torch(tmp_path: Path) -> None:
    make_ranked(tmp_path, WRONG, variant="a")
    make_ranked(tmp_path, BETTER, variant="b")
    for command in (["compare", "toy-a", "toy-b"], ["results", "--intervals"]):
        code = (
            "import sys; from typer.testing import CliRunner; from tclx.cli.app import app\n"
            f"ended = CliRunner().invoke(app, {[*command, '--runs-dir', str(tmp_path)]!r})\n"
            "print(ended.stdout, ended.exit_code, 'torch' in sys.modules)"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.split()[-2:] == ["0", "False"]
    ended_here = CliRunner().invoke(app, ["compare", "toy-a", "toy-b", "--metric", R1[0], "--runs-dir", str(tmp_path)])
    first, second, _, head, row, _, said = ended_here.stdout.splitlines()
    assert (first, second) == ("A  toy-a: toy a, seed 0", "B  toy-b: toy b, seed 0")
    assert head.split() == ["on", "test", "A", "B", "B", "-", "A", "95", "%", "interval", "B", "is", "chance"]
    assert row.split()[:5] == ["T2I", "R@1", "20.0", "30.0", "+10.0"]
    assert said.startswith("toy-b is 10.0 points better than toy-a")
    assert "one seed each" in ended_here.stderr


def test_results_against_one_show_the_difference_of_every_row_from_it(tmp_path: Path) -> None:
    make_ranked(tmp_path, WRONG, variant="a")
    make_ranked(tmp_path, BETTER, variant="b")
    make_ranked(tmp_path, RIGHT, variant="c", asked="other")
    options = ["--metric", R1[0], "--runs-dir", str(tmp_path)]
    ended = CliRunner().invoke(app, ["results", "--against", "toy-a", *options])
    assert ended.exit_code == 0, ended.stderr
    title, _, *rows = ended.stdout.splitlines()
    assert title == "retrieval on test, differences from toy-a ([95 % interval]); * beyond noise"
    (one,) = compared(tmp_path).differences
    assert one.interval is not None
    assert rows[0].split() == ["toy", "b", "1", "+10.0", f"[+{one.interval.low:.1f},", f"+{one.interval.high:.1f}]*"]
    assert rows[1].split() == ["toy", "c", "1", "-"]  # asked something else
    assert rows[2].startswith("toy-a itself")
    tree = json.loads(CliRunner().invoke(app, ["results", "--against", "toy-a", "--json", *options]).stdout)
    assert tree["against"]["name"] == "toy-a"
    found = [row["against"].get(R1[0], {}).get("verdict") for row in tree["rows"]]
    assert found == [None, "better", None]
