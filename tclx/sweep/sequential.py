"""Is a candidate better than the baseline? Paired differences, a seed at a time, until the answer is known: a sequential test.

After every seed from the second on, Student's t of a candidate's paired differences is held against a limit. It is named better
once t is above; it is given up once what is left of the seeds would hardly bring it there. The limits are such that with no
candidate better than the baseline, one is named in 5 of 100 sweeps at most, however many candidates and looks there are:

- Looks: the p-value that look n of N asks for grows as (n / N) ** 2 (a power family, Kim and DeMets 1987,
  doi:10.1093/biomet/74.1.149). Its factor is found by playing the baseline against itself: `_NUM_PLAYED` sequences of normal
  differences, the same ones every time. Differences need no common variance, and a seed's own effect cancels in them.
- Candidates: each is given 1 - 0.95 ** (1 / candidates) (Sidak 1967, doi:10.1080/01621459.1967.10482935), which holds for
  independent candidates and is on the safe side for those that share a baseline.
- Giving up: the chance that the last seed finds it better, predicted from its differences so far (Spiegelhalter, Freedman and
  Blackburn 1986, doi:10.1016/0197-2456(86)90003-6), is below 5 %. Obeyed or not, it makes false alarms only fewer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

FALSE_ALARMS = 0.05
"""How often, at most, a candidate is named although none is better."""
HARDLY = 0.05
"""The chance of being named in the end below which a candidate is given up."""
FEWEST = 2
"""Seeds before the first look."""

_NUM_PLAYED = 200_000

Verdict = Literal["better", "not better", "open"]


class Compared(NamedTuple):
    """A candidate against the baseline, over the seeds that both have been trained with."""

    num_seeds: int
    difference: float
    """Mean of the candidate's value minus the baseline's, the sign such that more is better."""
    low: float
    high: float
    """The 95 % interval of that mean by Student's t, for this candidate and this number of seeds alone."""
    verdict: Verdict
    """`open` where another seed may decide; never after the last."""


def compare(differences: Sequence[float], *, num_candidates: int, num_seeds: int) -> Compared:
    """Look at a candidate after some of its seeds, and at every earlier look: a verdict once reached stands.

    Args:
        differences: [n], candidate minus baseline of each seed in order, more being better; at most `num_seeds`.
        num_candidates: held against the same baseline.
        num_seeds: at most so many seeds will there be.
    """
    if len(differences) < FEWEST:
        mean = statistics.fmean(differences) if differences else math.nan
        return Compared(len(differences), mean, -math.inf, math.inf, "open")
    verdict: Verdict = "open"
    looks = range(FEWEST, min(len(differences), num_seeds) + 1)
    seen = FEWEST
    for seen in looks:
        verdict = _verdict(differences[:seen], limits(num_seeds, num_candidates), num_seeds)
        if verdict != "open":
            break
    mean, error = _mean_and_error(differences[:seen])
    reach = float(stdtrit(seen - 1, 0.975)) * error
    return Compared(seen, mean, mean - reach, mean + reach, verdict)


def _verdict(differences: Sequence[float], limit: Sequence[float], num_seeds: int) -> Verdict:
    count = len(differences)
    mean, error = _mean_and_error(differences)
    # All alike, they have no spread to judge them by: coarse metrics on few queries are that.
    if error > 0 and mean / error > limit[count - FEWEST]:
        return "better"
    if count == num_seeds:
        return "not better"
    return "not better" if _chance(mean, error, count, limit[-1], num_seeds) < HARDLY else "open"


def _chance(mean: float, error: float, count: int, limit: float, num_seeds: int) -> float:
    """That the last look finds it better: the seeds to come drawn from what those so far say of them, the deviation kept."""
    if error == 0:
        return 1.0 if mean > 0 else 0.0
    left = num_seeds - count
    deviation = error * math.sqrt(count)
    needed = (limit * deviation * math.sqrt(num_seeds) - count * mean) / left
    return float(stdtr(count - 1, (mean - needed) / (deviation * math.sqrt(1 / count + 1 / left))))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Their mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


@cache
def limits(num_seeds: int, num_candidates: int) -> tuple[float, ...]:
    """Above what t must be, at the look after seed 2, 3, ... `num_seeds`."""
    counts = np.arange(FEWEST, num_seeds + 1)
    share = (counts / num_seeds) ** 2
    level = 1 - (1 - FALSE_ALARMS) ** (1 / num_candidates)
    asked = share * np.quantile((_played(num_seeds) / share).min(axis=1), level)
    return tuple(float(limit) for limit in stdtrit(counts - 1, 1 - asked))


@cache
def _played(num_seeds: int) -> np.ndarray:
    """[_NUM_PLAYED, num_seeds - 1] p-values of each look where nothing is better."""
    draws = np.random.default_rng(0).standard_normal((_NUM_PLAYED, num_seeds))
    counts = np.arange(1, num_seeds + 1)
    means = draws.cumsum(axis=1) / counts
    squares = np.square(draws).cumsum(axis=1) - counts * means**2
    counts, means, squares = counts[1:], means[:, 1:], squares[:, 1:]
    return np.asarray(stdtr(counts - 1, -means / np.sqrt(squares / (counts - 1) / counts)))


@cache
def findable(num_seeds: int, num_candidates: int) -> float:
    """The difference, in deviations of the paired differences, that is found in 80 of 100 sweeps by the last seed.

    The noncentral t of the last look alone, which is nearly all of it.
    """
    from scipy.stats import nct

    limit, low, high = limits(num_seeds, num_candidates)[-1], 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        found = float(nct.sf(limit, num_seeds - 1, middle * math.sqrt(num_seeds)))
        low, high = (low, middle) if found >= 0.8 else (middle, high)
    return high
