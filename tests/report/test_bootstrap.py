"""Promises of intervals: resampled values are those of data drawn again, and 95 % of intervals hold the truth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tclx.report import bootstrap
from tclx.report.bootstrap import Sample, are_paired, difference_of, estimate, interval_of
from tclx.tasks.metric import Mean, MeanOf, MeanOfClasses, MedianRank, Recall, Statistic
from tclx.tasks.outcomes import Outcome, Queries
from tclx.tasks.retrieval.task import RetrievalSpec

FEW = 400
"""Resamples where hundreds of intervals are made."""


def outcome(values: Sequence[float] | NDArray[np.float64], clusters: Sequence[int] | NDArray[np.int64]) -> Outcome:
    return Outcome(Queries("q", [int(one) for one in clusters]), [float(one) for one in values])


def slow(statistic: Statistic, values: NDArray[np.float64], classes: NDArray[np.float64]) -> float:
    """The statistic of a list of queries, as its definition has it."""
    match statistic:
        case Recall(_, k):
            return 100 * statistics.fmean(value < k for value in values)
        case Mean():
            return 100 * statistics.fmean(values)
        case MedianRank():
            return statistics.median(values) + 1
        case MeanOfClasses():
            return 100 * statistics.fmean(statistics.fmean(values[classes == one]) for one in set(classes))
        case MeanOf(parts):
            return statistics.fmean(slow(part, values, classes) for part in parts)


@pytest.mark.parametrize(
    ("statistic", "largest"),
    [
        (Recall("x", 3), 8),
        (MedianRank("x"), 8),
        (Mean("x"), 2),
        (MeanOfClasses("x", "class"), 2),
        (MeanOf((Recall("x", 1), Recall("x", 5))), 8),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_a_resampled_value_is_that_of_the_queries_of_the_images_drawn(
    statistic: Statistic, largest: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "MOST_VALUES", chunk)
    rng = np.random.default_rng(3)
    images = np.array([7, 2, 2, 9, 7, 7, 11, 2, 30, 9])
    values = rng.integers(largest, size=len(images)).astype(float)
    classes = rng.integers(3, size=len(images)).astype(float)
    outcomes = {"x": outcome(values, images), "class": outcome(classes, images)}
    found = estimate(outcomes, {"m": statistic}, num_resamples=20, seed=5)["m"]
    assert found.value == pytest.approx(slow(statistic, values, classes))
    drawn = np.random.default_rng(5).integers(5, size=(20, 5))
    for picked, value in zip(drawn, found.resampled, strict=True):
        rows = np.concatenate([np.flatnonzero(images == np.unique(images)[one]) for one in picked])
        assert value == pytest.approx(slow(statistic, values[rows], classes[rows]))


def test_chunks_and_kept_weights_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    outcomes = {"x": outcome(rng.integers(9, size=600), np.arange(600) // 3)}
    whole = estimate(outcomes, {"m": MedianRank("x")}, num_resamples=50)["m"].resampled
    monkeypatch.setattr(bootstrap, "KEPT_CLUSTERS", 0)
    monkeypatch.setattr(bootstrap, "MOST_VALUES", 600 * 7)
    np.testing.assert_array_equal(estimate(outcomes, {"m": MedianRank("x")}, num_resamples=50)["m"].resampled, whole)


def test_a_metric_whose_outcomes_are_not_there_is_left_out() -> None:
    wanted: dict[str, Statistic] = {"a": Mean("x"), "b": Mean("y"), "c": MeanOf((Mean("x"), Mean("y")))}
    assert set(estimate({"x": outcome([0, 1], [0, 1])}, wanted, num_resamples=5)) == {"a"}


# -------------------------------------------------------------------------------------------------------------------- coverage


def single(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> Sample:
    found = estimate({"x": outcome(values, clusters)}, {"m": Mean("x")}, num_resamples=FEW)["m"]
    return Sample((0,), (found.value,), (found,), in_percent=True)


def covered(intervals: Sequence[bootstrap.Interval | None], truth: float) -> float:
    inside = [one is not None and one.low <= truth <= one.high for one in intervals]
    return 100 * statistics.fmean(inside)


def width(interval: bootstrap.Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def test_the_interval_of_a_binomial_share_covers_it_and_is_as_wide_as_theory_says() -> None:
    rng, images = np.random.default_rng(0), np.arange(250)
    samples = [single((rng.random(250) < 0.3).astype(float), images) for _ in range(600)]
    intervals = [interval_of(sample) for sample in samples]
    assert 92 <= covered(intervals, 30.0) <= 98
    assert statistics.fmean(map(width, intervals)) == pytest.approx(2 * 1.96 * 100 * (0.3 * 0.7 / 250) ** 0.5, rel=0.05)


def clustered(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Five queries of each of 120 images, which differ in how hard they are; the mean share is 40 %."""
    hard = rng.beta(0.8, 1.2, size=120)
    images = np.repeat(np.arange(120), 5)
    return (rng.random(600) < hard[images]).astype(float), images


def test_the_interval_of_clustered_queries_covers_their_mean_where_one_of_single_queries_does_not() -> None:
    rng = np.random.default_rng(1)
    drawn = [clustered(rng) for _ in range(500)]
    assert 92 <= covered([interval_of(single(values, images)) for values, images in drawn], 40.0) <= 98
    as_if_single = [interval_of(single(values, np.arange(len(values)))) for values, _ in drawn[:200]]
    assert covered(as_if_single, 40.0) < 85


def test_the_interval_of_a_difference_is_paired() -> None:
    """Two models that fail on the same images: the interval of their difference covers it and is narrower than unpaired."""
    rng, differences, paired, unpaired = np.random.default_rng(2), [], [], []
    for _ in range(400):
        hard, images = rng.random(150), np.repeat(np.arange(150), 3)
        draws = [(rng.random(450) < np.clip(hard[images] + more, 0, 1)).astype(float) for more in (0.0, 0.1)]
        first, second = (single(values, images) for values in draws)
        differences.append(difference_of(first, second))
        paired.append(width(differences[-1]))
        unpaired.append((width(interval_of(first)) ** 2 + width(interval_of(second)) ** 2) ** 0.5)
    assert 92 <= covered(differences, 100 * (0.1 - 0.1**2 / 2)) <= 98
    assert statistics.fmean(paired) < 0.8 * statistics.fmean(unpaired)


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.06, 0.15), (0.01, 0.3), (0.0, 0.3), (0.1, 0.02)])
def test_the_interval_over_seeds_covers_what_other_seeds_and_other_queries_would_give(
    of_seeds: float, of_images: float
) -> None:
    """Whichever of the two matters more. Where a seed's luck with an image counts twice it is too wide, never too narrow."""
    rng, images, intervals = np.random.default_rng(4), np.arange(150), []
    for _ in range(300):
        luck = rng.normal(scale=of_images, size=150)
        seeds = rng.normal(scale=of_seeds, size=3)
        values = [np.clip(0.5 + luck + seed, 0, 1) for seed in seeds]
        runs = [single((rng.random(150) < chance).astype(float), images) for chance in values]
        sample = Sample((0, 1, 2), tuple(run.values[0] for run in runs), tuple(run.estimates[0] for run in runs), True)
        intervals.append(interval_of(sample))
    assert covered(intervals, 50.0) >= 93


# ------------------------------------------------------------------------------------------------------------- seeds and edges


def seeds_only(*values: float, seeds: Sequence[int] = ()) -> Sample:
    return Sample(tuple(seeds) or tuple(range(len(values))), values)


def test_without_outcomes_the_interval_is_students_over_seeds() -> None:
    values = [3.0, 5.0, 4.5]
    expected = stats.t.interval(0.95, 2, loc=statistics.fmean(values), scale=stats.sem(values))
    assert interval_of(seeds_only(*values)) == pytest.approx(expected)
    assert interval_of(seeds_only(3.0)) is None


def test_differences_over_seeds_are_those_of_paired_welchs_and_pooled_t_tests() -> None:
    first, second = [1.0, 2.0, 6.0], [4.0, 4.0, 9.0]
    paired = stats.ttest_rel(second, first).confidence_interval()
    assert difference_of(seeds_only(*first), seeds_only(*second)) == pytest.approx((paired.low, paired.high))
    swapped = Sample((2, 1, 0), (9.0, 4.0, 4.0))  # by seed, not by place
    assert difference_of(seeds_only(*first), swapped) == pytest.approx((paired.low, paired.high))
    welch = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    others = seeds_only(*second, seeds=[5, 6, 7])
    assert not are_paired(seeds_only(*first), others)
    assert difference_of(seeds_only(*first), others) == pytest.approx((welch.low, welch.high))
    pooled = stats.ttest_ind([7.0], first).confidence_interval()
    assert difference_of(seeds_only(*first), seeds_only(7.0)) == pytest.approx((pooled.low, pooled.high))
    assert difference_of(seeds_only(1.0), seeds_only(7.0)) is None


def test_seeds_that_agree_exactly_leave_no_width() -> None:
    assert interval_of(seeds_only(3.0, 3.0)) == (3.0, 3.0)
    assert difference_of(seeds_only(3.0, 3.0), seeds_only(5.0, 5.0)) == (2.0, 2.0)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_nothing_or_everything_right_is_not_taken_for_certain(right: float) -> None:
    """All resamples are alike; the interval is Clopper and Pearson's of one query an image."""
    sample = single(np.full(60, right), np.repeat(np.arange(20), 3))
    expected = stats.binomtest(int(20 * right), 20).proportion_ci(0.95, "exact")
    assert interval_of(sample) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_an_interval_in_percent_stays_between_0_and_100() -> None:
    found = interval_of(Sample((0, 1), (1.0, 99.0), in_percent=True))
    assert found == (0.0, 100.0)


def test_the_size_of_coco_takes_seconds() -> None:
    """All 18 metrics of 5,000 images and 25,000 captions, of both orders."""
    rng, images = np.random.default_rng(0), np.repeat(np.arange(5000), 5)
    asked = {"text_to_image": images, "image_to_text": np.arange(5000)}
    ranks = {
        f"{order}{name}": outcome(rng.geometric(0.2, size=len(of)), of) for order in ("", "dual/") for name, of in asked.items()
    }
    wanted = {metric.name: metric.statistic for metric in RetrievalSpec.metrics if metric.statistic is not None}
    started = time.process_time()
    assert len(estimate(ranks, wanted)) == 18
    assert time.process_time() - started < 10
