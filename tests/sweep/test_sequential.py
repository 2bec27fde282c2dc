"""The sequential test: false alarms, what it finds and what it costs, in simulated confirmations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.confirming import Simulated, simulate
from tclx.sweep.sequential import FEWEST, compare, findable, limits


def simulated(**asked: float) -> Simulated:
    return simulate(num_sweeps=1000, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_seeds", [3, 5, 24])
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_with_nothing_better_at_most_5_of_100_name_something(num_seeds: int, shared: float) -> None:
    assert simulated(num_seeds=num_seeds, shared=shared, effect=0.0).named <= 0.05 + 0.02


def test_an_effect_of_one_deviation_is_found_at_half_the_cost_of_all_seeds() -> None:
    found = simulated(num_seeds=24, shared=0.5, effect=1.0)
    assert found.right >= 0.95
    assert found.cost < 0.5 * found.fixed_cost


def test_unlike_variances_give_no_false_alarms_either() -> None:
    assert simulated(num_seeds=5, shared=0.5, effect=0.0, scale=8.0).named <= 0.05 + 0.02


def test_a_look_s_limit_is_that_of_one_t_test_where_there_is_one_look() -> None:
    (limit,) = limits(FEWEST, 1)
    assert limit == pytest.approx(stats.t.ppf(0.95, FEWEST - 1), rel=0.02)


def test_limits_fall_and_grow_with_the_candidates() -> None:
    one, three = limits(5, 1), limits(5, 3)
    assert list(one) == sorted(one, reverse=True)
    assert all(many > few for many, few in zip(three, one, strict=True))
    assert limits(5, 3) == three


def test_what_is_found_in_80_of_100_is_found_in_80_of_100() -> None:
    found = simulated(num_seeds=8, shared=0.5, effect=findable(8, 3))
    assert found.right == pytest.approx(0.8, abs=0.05)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    first, second = np.array([3.0, 4.0, 6.5, 5.0]), np.array([1.0, 2.5, 3.0, 4.0])
    compared = compare(list(first - second), num_candidates=1, num_seeds=5)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (compared.low, compared.high) == pytest.approx((expected.low, expected.high))
    assert compared.difference == pytest.approx(2.0)


def test_a_verdict_stands_whatever_comes_after_it() -> None:
    clear = [5.0, 5.1, 4.9, 5.0]
    early = next(count for count in range(2, 5) if compare(clear[:count], num_candidates=1, num_seeds=8).verdict != "open")
    late = compare([*clear, -50.0, -60.0], num_candidates=1, num_seeds=8)
    assert late == compare(clear[:early], num_candidates=1, num_seeds=8)
    assert late.verdict == "better"


def test_too_few_seeds_and_differences_without_a_spread_name_nothing() -> None:
    assert compare([], num_candidates=3, num_seeds=5).verdict == "open"
    assert compare([9.0], num_candidates=3, num_seeds=5).verdict == "open"
    assert compare([9.0] * 4, num_candidates=3, num_seeds=5).verdict == "open"
    assert compare([9.0] * 5, num_candidates=3, num_seeds=5).verdict == "not better"
    assert compare([0.0, 0.0], num_candidates=3, num_seeds=5).verdict == "not better"
