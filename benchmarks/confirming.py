"""What does a sweep's confirmation find, how often is it wrong, what does it cost? `python -m benchmarks.confirming`.

Nothing is trained: `num_sweeps` confirmations of three candidates each, of which one may be better by `effect`, in deviations
of its paired differences. What trial 0 and a candidate reach with a seed is that seed's effect, the same for both, and noise;
`shared` is how much of a difference's variance comes from trial 0, in which all candidates share.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from tclx.sweep.sequential import compare


class Simulated(NamedTuple):
    """Over all simulated sweeps."""

    right: float
    """Share in which the better candidate was named."""
    named: float
    """Share in which any was."""
    cost: float
    """Trainings of a confirmation in the mean."""
    fixed_cost: int
    """Trainings where every seed is used."""


def simulate(
    *,
    num_seeds: int,
    shared: float,
    effect: float,
    num_candidates: int = 3,
    num_sweeps: int = 1000,
    scale: float = 1.0,
    seed: int = 0,
) -> Simulated:
    """Confirm again and again.

    Args:
        num_seeds: at most.
        shared: of the variance of a difference, between 0 and 1.
        effect: by which the first candidate is better, in deviations of its paired differences.
        num_candidates: that are confirmed.
        num_sweeps: so many times.
        scale: the first candidate's own noise is so many times the others'.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    right = named = cost = 0
    for _ in range(num_sweeps):
        baseline = np.sqrt(shared) * generator.standard_normal(num_seeds)
        own = np.sqrt(1 - shared) * generator.standard_normal((num_candidates, num_seeds))
        own[0] *= scale
        differences = own - baseline
        differences[0] += effect
        ended = [compare(list(one), num_candidates=num_candidates, num_seeds=num_seeds) for one in differences]
        right += ended[0].verdict == "better"
        named += any(one.verdict == "better" for one in ended)
        used = [one.num_seeds for one in ended]
        cost += sum(used) + max(used)
    return Simulated(right / num_sweeps, named / num_sweeps, cost / num_sweeps, num_seeds * (num_candidates + 1))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=2000)
    num_sweeps = parser.parse_args().sweeps
    print("seeds  effect  named if none is better  found  trainings if none  if found  with all seeds")
    for num_seeds, effect in ((5, 1.0), (5, 2.2), (5, 3.0), (12, 1.0), (24, 1.0)):
        nothing = simulate(num_seeds=num_seeds, shared=0.5, effect=0.0, num_sweeps=num_sweeps)
        planted = simulate(num_seeds=num_seeds, shared=0.5, effect=effect, num_sweeps=num_sweeps)
        shares = f"{100 * nothing.named:22.1f} %  {100 * planted.right:5.1f} %"
        print(f"{num_seeds:5}  {effect:6.1f}  {shares}  {nothing.cost:15.1f}  {planted.cost:8.1f}  {planted.fixed_cost:14}")


if __name__ == "__main__":
    main()
