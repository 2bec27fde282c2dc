"""What goes wrong without a number being wrong: said from rows of metrics, with what has helped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tclx.tasks.task import HealthWarning

if TYPE_CHECKING:
    from tclx.plan import Plan
    from tclx.spec.experiment import ExperimentSpec

SHORTEST_STEPS = 150
"""A warning speaks of what has held for so many steps, and for as many as the warm-up takes."""
COLLAPSED = -0.1
"""Uniformity above it: the mean squared distance of two embeddings is below 0.05, where 2 is that of random ones. All runs of
the quickstart pass through 0 in their first 75 steps."""
CROWDED = -0.5
"""Uniformity of images above it: a gap alone is no harm. The quickstart's lies above 1 for 350 steps, at uniformities below
-0.9, and it learns."""
UNDECIDED = 0.01
"""Nats: with a mean loss this near to the entropy of its labels, ITM knows how many pairs match, not which."""
TOLD_BY_AGE = 1.0
"""Temperatures between the batch's negatives and the queue's oldest: a factor e for every key."""


def warnings(rows: Sequence[Mapping[str, Any]], spec: ExperimentSpec, plan: Plan) -> Iterator[HealthWarning]:
    """What the rows of a pre-training show.

    Args:
        rows: of metrics.jsonl that steps have written, in order, the newest last.
        spec, plan: of the run.
    """
    step = rows[-1]["step"]
    yield from _undecided(rows, spec, plan)
    held = max(SHORTEST_STEPS, plan.warmup_steps)
    window = [row for row in rows if row["step"] >= step - held]
    if step - held < plan.warmup_steps or window[0]["step"] > step - held / 2 or len(window) < 3:
        return
    for side in ("image", "text"):
        name = f"health/uniformity_{side}"
        if all(row.get(name, COLLAPSED) > COLLAPSED for row in window):
            cures = ["fewer or no keys in the queue (model.queue_size)"] if spec.model.queue_size else []
            cures += ["a smaller learning rate", "a longer warm-up"]
            cures += ["objectives.imc beside it"] if spec.objectives.imc is None else []
            yield HealthWarning(
                f"collapse_{side}",
                f"all {side}s lie almost at one point: {name} has been above {COLLAPSED} for {held} steps. What helps: "
                f"{', '.join(cures)}",
            )
    gap = "health/queue_age_gap"
    crowded = all(row.get("health/uniformity_image", CROWDED) >= CROWDED for row in window)
    if crowded and all(row.get(gap, 0.0) > TOLD_BY_AGE for row in window):
        yield HealthWarning(
            "queue_age",
            f"keys of the queue are told from the batch's by their age: {gap} has been above {TOLD_BY_AGE:g} for {held} "
            "steps. The loss falls by it, and nothing is learned. What helps: objectives.centred_queue, fewer or no keys "
            "(model.queue_size), objectives.imc beside it, a smaller learning rate",
        )


def _undecided(rows: Sequence[Mapping[str, Any]], spec: ExperimentSpec, plan: Plan) -> Iterator[HealthWarning]:
    """ITM that has learned nothing in the second third of the run, or later; every run begins so."""
    step, held = rows[-1]["step"], max(SHORTEST_STEPS, plan.total_steps // 3)
    if spec.objectives.itm is None or step < 2 * held:
        return
    window = [row["loss/itm"] for row in rows if row["step"] > step - held and "loss/itm" in row]
    of_labels = -sum(share * math.log(share) for share in (1 / 3, 2 / 3))
    if len(window) >= 3 and abs(fmean(window) - of_labels) < UNDECIDED:
        yield HealthWarning(
            "itm_undecided",
            f"ITM tells no pair that matches from one that does not: loss/itm has stood at {of_labels:.4f}, the entropy of "
            f"its labels, for {held} steps. What helps: more steps, a larger objectives.itm.weight, trained encoders",
        )
