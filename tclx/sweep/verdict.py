"""What a confirmation says, in words, rows and JSON."""

from __future__ import annotations

import math
import statistics
from typing import Any

from tclx.sweep.confirm import Arm, Candidate, Confirmation
from tclx.sweep.searched import Sweep
from tclx.sweep.sequential import FEWEST, findable

EXPERIMENT = "0 (the experiment)"
"""Trial 0, in tables."""


def conclusion(confirmation: Confirmation, sweep: Sweep) -> str:
    """Who has won, in a sentence, or what is still to be done."""
    if confirmation.baseline.failure is not None:
        return f"confirmation: trial 0 failed with a fresh seed, so nothing can be compared: {confirmation.baseline.failure}"
    if not confirmation.search_is_over:
        return "confirmation: begins when the search has ended"
    if not confirmation.is_over:
        return f"confirmation: {confirmation.num_ended} of at most {confirmation.most_runs} trainings"
    if (winner := confirmation.winner) is None:
        return f"no difference: with fresh seeds {_none_of(confirmation)} better than the experiment (trial 0)"
    how = f"{difference(winner)} (95 % interval {interval(winner)}; {winner.compared.num_seeds} seeds)"
    better = f"confirmed: trial {winner.arm.number} is better than the experiment (trial 0)"
    return f"{better}: {sweep.spec.objective[0].metric} {how}"


def _none_of(confirmation: Confirmation) -> str:
    count = len(confirmation.candidates)
    if count == 0:
        return "nothing was there to be confirmed as"
    if count == 1:
        return f"trial {confirmation.candidates[0].arm.number} is not shown to be"
    return f"none of the {count} best is shown to be"


def rows(confirmation: Confirmation, sweep: Sweep) -> list[list[str]]:
    """A table: trial 0, then the candidates in the order of the search."""
    metric = sweep.spec.objective[0].metric
    heading = ["confirmed", "seeds", metric, "against trial 0", "95 % interval", "verdict"]
    arm = confirmation.baseline
    first = [EXPERIMENT, str(len(arm.values)), spread(arm), "", "", _failed(arm)]
    return [heading, first, *(_row(one) for one in confirmation.candidates)]


def _row(one: Candidate) -> list[str]:
    arm, compared = one.arm, one.compared
    known = compared.num_seeds >= FEWEST
    against = [difference(one) if compared.num_seeds else "", interval(one) if known else ""]
    return [str(arm.number), str(len(arm.values)), spread(arm), *against, _failed(arm) or one.word]


def _failed(arm: Arm) -> str:
    return f"failed: {arm.failure}" if arm.failure is not None else ""


def spread(arm: Arm) -> str:
    """Mean and sample deviation over the seeds."""
    values = list(arm.values.values())
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{deviation}"


def difference(one: Candidate) -> str:
    """The candidate's mean minus trial 0's, over the seeds that both have."""
    return f"{one.compared.difference:+.3g}"


def interval(one: Candidate) -> str:
    return f"{one.compared.low:.3g} to {one.compared.high:.3g}"


def power(sweep: Sweep) -> str:
    """What the seeds suffice for."""
    confirm = sweep.spec.confirm
    if confirm is None:
        return ""
    return f"{findable(confirm.seeds, confirm.top):.2g} deviations of the paired differences"


def as_json(confirmation: Confirmation, sweep: Sweep) -> dict[str, Any]:
    """A confirmation for machines."""
    return {
        "conclusion": conclusion(confirmation, sweep),
        "is_over": confirmation.is_over,
        "winner": confirmation.winner.arm.number if confirmation.winner is not None else None,
        "seeds": list(confirmation.seeds),
        "num_runs": confirmation.num_runs,
        "baseline": _arm_json(confirmation.baseline),
        "candidates": [
            {
                **_arm_json(one.arm),
                "difference": _finite(one.compared.difference),
                "interval": [_finite(end) for end in (one.compared.low, one.compared.high)],
                "num_paired_seeds": one.compared.num_seeds,
                "verdict": one.word,
            }
            for one in confirmation.candidates
        ],
    }


def _arm_json(arm: Arm) -> dict[str, Any]:
    values = {str(seed): value for seed, value in sorted(arm.values.items())}
    runs = {str(seed): run for seed, run in sorted(arm.runs.items())}
    return {"trial": arm.number, "mean": arm.mean, "values": values, "runs": runs, "failure": arm.failure}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
