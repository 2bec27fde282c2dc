"""How sure is a metric, how sure is a difference? 95 % intervals over queries and seeds, from what each query reached.

Queries: images are drawn again with replacement, each with all its queries, since captions of one image succeed and fail
together (cluster bootstrap; Efron and Tibshirani 1993, Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). What is
ranked stays as it is: a rank is not computed again. The draws depend on nothing but the number of images, so two models on the
same queries are drawn alike, and the differences of their resampled metrics are paired.

Seeds: with several, the squared standard errors of both sources are added and Student's t takes the degrees of freedom of
Welch and Satterthwaite. What a seed and a query do only together is in both, so that such an interval is a little too wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tclx.tasks.metric import Mean, MeanOf, MeanOfClasses, MedianRank, Recall, Statistic
from tclx.tasks.outcomes import Outcome, Outcomes

LEVEL = 0.95
NUM_RESAMPLES = 2000
SEED = 0
MOST_VALUES = 2**22
"""Numbers of a matrix of weights at a time: 32 MB."""
KEPT_CLUSTERS = 1024
"""Up to so many images the weights are kept for the next run."""

Floats: TypeAlias = NDArray[np.float64]


class Interval(NamedTuple):
    """Where the true value lies, as far as 95 % go."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A metric of one run."""

    value: float
    resampled: Floats
    """[NUM_RESAMPLES] the same of queries that were drawn again."""
    num_queries: int
    num_clusters: int
    """Images that were drawn."""
    queries: tuple[str, ...]
    """Fingerprints of the queries: estimates are paired where these are equal."""


def estimate(
    outcomes: Outcomes, wanted: Mapping[str, Statistic], *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> dict[str, Estimate]:
    """Metrics and their resampled values, by the names of `wanted`; one whose outcomes are not there is left out.

    Args:
        outcomes: of one task: their clusters number the same images.
        wanted: how the metrics follow from the outcomes.
    """
    there = {name: one for name, one in wanted.items() if all(part in outcomes for part in _used(one))}
    if not there:
        return {}
    clusters = np.unique(np.concatenate([np.asarray(one.queries.clusters) for one in outcomes.values()]))
    reached = {name: _Reached.of(one, clusters) for name, one in outcomes.items()}
    largest = max(len(clusters), *(len(one.values) for one in reached.values()))
    parts: dict[str, list[Floats]] = {name: [] for name in there}
    for weights in _draws(len(clusters), num_resamples, seed, max(1, MOST_VALUES // largest)):
        done: dict[Statistic, Floats] = {}
        for name, one in there.items():
            parts[name].append(_computed(one, reached, weights, done))
    once = np.ones((1, len(clusters)), dtype=np.int32)
    found = {}
    for name, one in there.items():
        used = dict.fromkeys(_used(one))
        asked = {outcomes[part].queries.fingerprint: len(outcomes[part].values) for part in used}
        value = float(_computed(one, reached, once, {})[0])
        found[name] = Estimate(value, np.concatenate(parts[name]), sum(asked.values()), len(clusters), tuple(sorted(asked)))
    return found


class _Reached(NamedTuple):
    values: Floats
    """[Q]"""
    clusters: NDArray[np.int64]
    """[Q] from 0"""

    @classmethod
    def of(cls, outcome: Outcome, clusters: NDArray[np.int64]) -> _Reached:
        numbers = np.searchsorted(clusters, np.asarray(outcome.queries.clusters))
        return cls(np.asarray(outcome.values, dtype=np.float64), numbers)


def _used(statistic: Statistic) -> Iterator[str]:
    """The outcomes that a statistic is made of."""
    match statistic:
        case MeanOf(parts):
            for part in parts:
                yield from _used(part)
        case MeanOfClasses(outcome, classes):
            yield from (outcome, classes)
        case Recall(outcome) | MedianRank(outcome) | Mean(outcome):
            yield outcome


def _draws(num_clusters: int, num_resamples: int, seed: int, rows: int) -> Iterator[NDArray[np.int32]]:
    """[rows, C] at a time: how often each cluster was drawn."""
    if num_clusters <= KEPT_CLUSTERS:
        whole = _kept_draws(num_clusters, num_resamples, seed)
        yield from (whole[start : start + rows] for start in range(0, num_resamples, rows))
        return
    generator = np.random.default_rng(seed)
    for start in range(0, num_resamples, rows):
        yield _draw(generator, num_clusters, min(rows, num_resamples - start))


@lru_cache(maxsize=2)
def _kept_draws(num_clusters: int, num_resamples: int, seed: int) -> NDArray[np.int32]:
    return _draw(np.random.default_rng(seed), num_clusters, num_resamples)


def _draw(generator: np.random.Generator, num_clusters: int, rows: int) -> NDArray[np.int32]:
    drawn = generator.integers(num_clusters, size=(rows, num_clusters)) + num_clusters * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(np.int32)


def _computed(
    statistic: Statistic, reached: Mapping[str, _Reached], weights: NDArray[np.int32], done: dict[Statistic, Floats]
) -> Floats:
    """[rows] the statistic where each cluster counts as often as [rows, C] `weights` say; NaN where no query was drawn."""
    if statistic not in done:
        match statistic:
            case Recall(outcome, k):
                found = 100.0 * _mean(reached[outcome].values < k, reached[outcome].clusters, weights)
            case Mean(outcome):
                found = 100.0 * _mean(reached[outcome].values, reached[outcome].clusters, weights)
            case MedianRank(outcome):
                found = _median(*reached[outcome], weights) + 1.0
            case MeanOfClasses(outcome, classes):
                found = 100.0 * _mean_of_classes(*reached[outcome], reached[classes].values, weights)
            case MeanOf(parts):
                found = np.mean([_computed(part, reached, weights, done) for part in parts], axis=0)
        done[statistic] = found
    return done[statistic]


def _mean(values: NDArray[Any], clusters: NDArray[np.int64], weights: NDArray[np.int32]) -> Floats:
    num_clusters = weights.shape[1]
    sums = np.bincount(clusters, weights=values, minlength=num_clusters)
    counts = np.bincount(clusters, minlength=num_clusters).astype(np.float64)
    drawn = weights.astype(np.float64)
    return _divided(drawn @ sums, drawn @ counts)


def _divided(sums: Floats, counts: Floats) -> Floats:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _median(values: Floats, clusters: NDArray[np.int64], weights: NDArray[np.int32]) -> Floats:
    """Of an even number of values the mean of the middle two, as everywhere."""
    order = values.argsort(kind="stable")
    up_to = weights[:, clusters[order]].cumsum(axis=1)
    total = up_to[:, -1:]
    middles = [values[order][(up_to > place).argmax(axis=1)] for place in ((total - 1) // 2, total // 2)]
    return np.where(total[:, 0] > 0, (middles[0] + middles[1]) / 2, np.nan)


def _mean_of_classes(values: Floats, clusters: NDArray[np.int64], classes: Floats, weights: NDArray[np.int32]) -> Floats:
    """Classes of which nothing was drawn do not count."""
    order = classes.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1.0))
    drawn = weights[:, clusters[order]].astype(np.float64)
    own = _divided(np.add.reduceat(drawn * values[order], starts, axis=1), np.add.reduceat(drawn, starts, axis=1))
    there = np.isfinite(own)
    return _divided(np.where(there, own, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))


# ----------------------------------------------------------------------------------------------------------- runs and groups


class Sample(NamedTuple):
    """What is known of one metric of runs that differ by their seed alone."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    """One a seed."""
    estimates: tuple[Estimate, ...] = ()
    """One a seed; empty where the outcomes of one are not known, or not of the same queries."""
    in_percent: bool = False
    """Whether it lies between 0 and 100."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def resampled(self) -> Floats | None:
        """[NUM_RESAMPLES] the mean over seeds of queries that were drawn again, the same for all seeds."""
        return np.mean([one.resampled for one in self.estimates], axis=0) if self.estimates else None


def interval_of(sample: Sample) -> Interval | None:
    """The 95 % interval of the mean over seeds; None where nothing tells how sure it is: one seed, its outcomes not known.

    With one seed it says what other queries would give this very model; with several, what other queries and other seeds would,
    or other seeds alone where the outcomes are not known.
    """
    if len(sample.values) == 1 or _is_extreme(sample):
        return interval_over_queries(sample)
    num_clusters = sample.estimates[0].num_clusters if sample.estimates else 0
    found = _of_seeds(sample.mean, _variance_of_mean(sample.values), sample.resampled, num_clusters)
    return Interval(max(found.low, 0.0), min(found.high, 100.0)) if sample.in_percent else found


def interval_over_queries(sample: Sample) -> Interval | None:
    """The 95 % interval of what other queries would give these very models; None where the outcomes are not known."""
    if (resampled := sample.resampled) is None:
        return None
    return _of_extreme(sample.mean, sample.estimates[0].num_clusters) if _is_extreme(sample) else _percentiles(resampled)


def _is_extreme(sample: Sample) -> bool:
    """Whether nothing or everything is right, of each seed, and the queries are known."""
    return bool(sample.estimates) and sample.in_percent and set(sample.values) in ({0.0}, {100.0})


def difference_of(first: Sample, second: Sample) -> Interval | None:
    """The 95 % interval of how much larger the second's mean is; None where nothing tells how sure it is.

    Both on the same queries. Seeds are paired where both have the same ones. Where one has a single seed, the other's deviation
    stands for both; where both have, the interval is over queries alone. Where no outcomes are known, it is over seeds alone.
    """
    ours, theirs = second.resampled, first.resampled
    resampled = ours - theirs if ours is not None and theirs is not None else None
    difference = second.mean - first.mean
    num_clusters = second.estimates[0].num_clusters if resampled is not None else 0
    if len(first.values) == len(second.values) == 1:
        return _percentiles(resampled) if resampled is not None else None
    if are_paired(first, second):
        before = dict(zip(first.seeds, first.values, strict=True))
        differences = [value - before[seed] for seed, value in zip(second.seeds, second.values, strict=True)]
        return _of_seeds(difference, _variance_of_mean(differences), resampled, num_clusters)
    if len(first.values) == 1 or len(second.values) == 1:
        several = first.values if len(second.values) == 1 else second.values
        shared = statistics.variance(several) * (1 + 1 / len(several))
        return _of_seeds(difference, _Variance(shared, len(several) - 1), resampled, num_clusters)
    parts = [_variance_of_mean(first.values), _variance_of_mean(second.values)]
    return _of_seeds(difference, _added(parts), resampled, num_clusters)


def are_paired(first: Sample, second: Sample) -> bool:
    """Whether both have the same seeds, several of them, each once."""
    return len(first.seeds) > 1 and len(set(first.seeds)) == len(first.seeds) and sorted(first.seeds) == sorted(second.seeds)


class _Variance(NamedTuple):
    value: float
    degrees: float


def _variance_of_mean(values: Sequence[float]) -> _Variance:
    return _Variance(statistics.variance(values) / len(values), len(values) - 1)


def _added(parts: Sequence[_Variance]) -> _Variance:
    """With the degrees of freedom of Welch and Satterthwaite."""
    total = sum(part.value for part in parts)
    below = sum(part.value**2 / part.degrees for part in parts)
    return _Variance(total, total**2 / below if below > 0 else min(part.degrees for part in parts))


def _of_seeds(middle: float, over_seeds: _Variance, resampled: Floats | None, num_clusters: int) -> Interval:
    from scipy.special import stdtrit  # a third of a second, which one seed does not need

    variance = over_seeds
    if resampled is not None:
        variance = _added([over_seeds, _Variance(float(np.nanvar(resampled)), max(num_clusters - 1, 1))])
    reach = float(stdtrit(variance.degrees, (1 + LEVEL) / 2)) * math.sqrt(variance.value)
    return Interval(middle - reach, middle + reach)


def _percentiles(resampled: Floats) -> Interval:
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _of_extreme(value: float, num_clusters: int) -> Interval:
    """Where all or nothing is right every resample is the same: Clopper and Pearson's interval, an image being one query."""
    reach = 100.0 * (1 - ((1 - LEVEL) / 2) ** (1 / num_clusters))
    return Interval(0.0, reach) if value == 0.0 else Interval(100.0 - reach, 100.0)
