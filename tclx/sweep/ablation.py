"""What is each term worth? Every variant of a sweep at its best, over the same seeds, and what it lacks to the full model.

Each variant had the same trials in the same space and the same confirmation; it is represented by what is best by its fresh
seeds, trained with all of them. The full model is the variant with the most terms. Which trial represents a variant was chosen
on the validation split by the same seeds, of every variant alike, so that all are a little too good on it, and the table is of
the test split where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.report.comparison import Asked, Side, side
from tclx.report.results import Results, RunResult, Selection, read_runs, summarise
from tclx.sweep.confirm import drawn_of
from tclx.sweep.parts import Part
from tclx.sweep.ranking import best_trials, counted_complete


class Represented(NamedTuple):
    """A variant, and the trial that stands for it."""

    name: str
    part: Part
    trial: int
    how: str
    """Why this one."""
    values: dict[str, Any]
    """What it puts into the experiment, of all keys of the space."""
    runs: tuple[str, ...]
    """Run ids, one a seed."""


class Ablation(NamedTuple):
    """Variants side by side."""

    variants: tuple[Represented, ...]
    results: Results
    """A row each, called after the variant."""
    full: Side | None
    """The full model; None where it has no row."""
    notes: tuple[str, ...]
    """What is missing, in words."""


def ablation_of(parts: Sequence[Part], *, metrics: Sequence[str] = (), split: str | None = None) -> Ablation:
    """Compare the variants of a sweep, as far as they have got.

    Args:
        parts: one a variant.
        metrics: names as in evaluation files; empty for the usual ones.
        split: `test` or `val`; None takes `test` where any run has it.

    Raises:
        InputError: it is no sweep over several variants, nothing is trained yet, or there is no such metric or split.
    """
    if parts[0].folder.variant is None:
        name = parts[0].sweep.spec.name
        raise InputError(Problem("variants", f"{name} searches a single experiment", "`variants: all` searches several"))
    found = {str(part.folder.variant): _represented(part) for part in parts}
    variants = tuple(one for one in found.values() if one is not None)
    if not variants:
        name = parts[0].sweep.spec.name
        raise InputError(Problem("", f"nothing of {name} is trained yet", f"tclx sweep status {name} shows how it stands"))
    notes = [f"of the variant {name} nothing is trained yet" for name, one in found.items() if one is None]
    undecided = [one.name for one in variants if not _is_over(one)]
    notes += [f"what stands for the variant {name} is not decided yet, and may be another trial" for name in undecided]
    runs = {one.name: _read(one) for one in variants}
    results = summarise([run for some in runs.values() for run in some], metrics=metrics, split=split)
    full = max(parts, key=lambda part: (len(part.sweep.base.objectives.terms), parts.index(part)))
    named = str(full.folder.variant)
    base = side(Asked(named, runs[named]), metrics=metrics, split=results.split) if runs.get(named) else None
    called = {run.folder: one.name for one in variants for run in runs[one.name]}
    rows = tuple(row._replace(label=called[row.runs[0].folder]) for row in results.rows)
    return Ablation(variants, results._replace(rows=rows), base, tuple(notes))


def _read(one: Represented) -> list[RunResult]:
    """Its runs that are there."""
    folders = (one.part.folder.runs_dir / run_id for run_id in one.runs)
    return read_runs(Selection(tuple(folder for folder in folders if (folder / "spec.json").is_file())))


def _is_over(one: Represented) -> bool:
    confirmation = one.part.confirmation()
    return confirmation is None or confirmation.is_over


def _represented(part: Part) -> Represented | None:
    """None where nothing of the variant is complete."""
    confirmation = part.confirmation()
    if confirmation is None or not confirmation.best.values:
        best = best_trials(part.search, counted_complete(part.search))
        return _of(part, best[0].number, "best of the search", best[0].user_attrs["runs"]) if best else None
    arm = confirmation.best
    seeds = [seed for seed in confirmation.seeds if seed in arm.values]
    if confirmation.winner is not None:
        how = "confirmed as better than trial 0"
    else:
        how = "best with fresh seeds" if arm.number else "best with fresh seeds: the variant as it is"
    return _of(part, arm.number, how, [arm.runs[seed] for seed in seeds])


def _of(part: Part, number: int, how: str, runs: Sequence[str]) -> Represented:
    values = part.sweep.values(drawn_of(part.search, part.sweep, number))
    return Represented(str(part.folder.variant), part, number, how, values, tuple(runs))


def settings(ablation: Ablation) -> dict[str, list[Any]]:
    """What each variant has at every key of the sweep's space, in the order of the variants; None where it has no such key."""
    keys = dict.fromkeys(key for one in ablation.variants for key in one.part.sweep.spec.varied)
    return {key: [one.values.get(key) for one in ablation.variants] for key in keys}
