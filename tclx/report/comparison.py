"""Is B better than A? Paired differences over the queries and seeds of two rows of results, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tclx.errors import InputError, Problem
from tclx.metrics import main_metrics, of_one_split
from tclx.report.bootstrap import Interval, Sample, are_paired, difference_of
from tclx.report.results import (
    SPLITS,
    Results,
    Row,
    RunResult,
    are_of_same_queries,
    column_title,
    direction_of,
    is_beyond_chance,
    summarise,
)
from tclx.report.results import as_json as results_as_json

Verdict = Literal["better", "worse", "no difference", "unknown"]
NUM_SENTENCES = 3
"""So many metrics are put into words where none is asked for."""


class Difference(NamedTuple):
    """One metric of two rows."""

    metric: str
    """By its name `without_split`."""
    first: float
    second: float
    interval: Interval | None
    """95 %, of the second minus the first; None where nothing tells how sure that is."""
    verdict: Verdict
    """Of the second: `no difference` where the interval holds 0."""
    basis: str
    """Over what, in words: `1,280 queries of 256 images, 3 paired seeds`."""

    @property
    def difference(self) -> float:
        """The second minus the first."""
        return self.second - self.first


class Side(NamedTuple):
    """One of the two."""

    name: str
    """As it was asked for."""
    row: Row


class Comparison(NamedTuple):
    """Two rows of results, metric by metric."""

    split: str
    first: Side
    second: Side
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What a reader must know, in words."""
    is_chosen: bool
    """Whether the metrics were asked for."""


class Asked(NamedTuple):
    """What one side stands for."""

    name: str
    runs: Sequence[RunResult]


def compare(first: Asked, second: Asked, *, metrics: Sequence[str] = (), split: str | None = None) -> Comparison:
    """Compare the finished runs of two names.

    Args:
        first, second: the runs of one experiment and variant each, or of one trial.
        metrics: names as in evaluation files; empty for the usual ones that both have.
        split: `test` or `val`; None takes `test` where both have it.

    Raises:
        InputError: a name stands for several rows or for no finished run, both stand for the same runs, there is no such metric
            or split, or the two were evaluated on different queries.
    """
    split = split or _shared_split(first, second)
    summaries = [summarise(asked.runs, metrics=metrics, split=split) for asked in (first, second)]
    ours, theirs = (Side(asked.name, _only_row(asked, found)) for asked, found in zip((first, second), summaries, strict=True))
    if _folders(ours.row) & _folders(theirs.row):
        raise InputError(Problem("", f"{first.name} and {second.name} have runs in common: nothing can differ in them"))
    names = [name for name in summaries[0].metrics if name in ours.row.metrics and name in theirs.row.metrics]
    names = [name for name in names if direction_of(name)]
    if not names:
        raise InputError(
            Problem("", f"{first.name} and {second.name} have no metric on {split} in common that has a direction")
        )
    for name in names:
        if not are_of_same_queries(ours.row, theirs.row, name):
            message = f"{first.name} and {second.name} were not evaluated on the same queries, so their {name} does not compare"
            raise InputError(Problem("", message, f"evaluate both with the same data.{split}: tclx eval RUN --spec SPEC"))
    differences = tuple(difference(ours.row, theirs.row, name) for name in names)
    notes = [note for found in summaries for note in found.notes]
    notes += [f"not compared: {run.run_id}, which is not finished" for found in summaries for run in found.unfinished]
    notes += _doubts(ours, theirs, differences)
    return Comparison(split, ours, theirs, differences, tuple(dict.fromkeys(notes)), bool(metrics))


def difference(first: Row, second: Row, metric: str) -> Difference:
    """One metric of two rows on the same queries."""
    before, after = first.samples[metric], second.samples[metric]
    interval = difference_of(before, after)
    return Difference(metric, before.mean, after.mean, interval, _verdict(interval, metric), _basis(before, after))


def side(asked: Asked, *, metrics: Sequence[str] = (), split: str | None = None) -> Side:
    """What differences are taken from.

    Raises:
        InputError: as `compare`, where the name is wrong.
    """
    return Side(asked.name, _only_row(asked, summarise(asked.runs, metrics=metrics, split=split)))


def differences_from(base: Side, results: Results) -> list[dict[str, Difference]]:
    """Of each row, what its metrics have more than the base's; without those that do not compare with it."""
    return [
        {
            metric: difference(base.row, row, metric)
            for metric in row.metrics
            if metric in base.row.metrics and direction_of(metric) and are_of_same_queries(base.row, row, metric)
        }
        if not _folders(base.row) & _folders(row)
        else {}
        for row in results.rows
    ]


def with_differences(results: Results, base: Side) -> dict[str, Any]:
    """Results for machines, each row with its differences from the base."""
    tree = results_as_json(results)
    for row, found in zip(tree["rows"], differences_from(base, results), strict=True):
        row["against"] = {metric: _numbers(one) for metric, one in found.items()}
    return {**tree, "against": {"name": base.name, "run_ids": [run.run_id for run in base.row.runs]}}


def _numbers(one: Difference) -> dict[str, Any]:
    return {"difference": one.difference, "interval": one.interval, "verdict": one.verdict, "basis": one.basis}


def _folders(row: Row) -> set[Path]:
    return {run.folder.resolve() for run in row.runs}


def sentences(comparison: Comparison) -> list[str]:
    """What a paper would print: of the metrics that were asked for, or of the first few that stand out."""
    by_name = {one.metric: one for one in comparison.differences}
    shown = list(by_name)
    if not comparison.is_chosen:
        shown = [name for name in main_metrics() if name in by_name][:NUM_SENTENCES] or shown[:NUM_SENTENCES]
    return [sentence(comparison, by_name[name]) for name in shown]


def sentence(comparison: Comparison, one: Difference) -> str:
    """`B is 2.1 points better than A in text-to-image R@1 on test (95 % interval 0.4 to 3.9; 1,280 queries of 256 images)`."""
    first, second, unit = comparison.first.name, comparison.second.name, _unit(one.metric)
    gain = direction_of(one.metric) * one.difference
    where = f"in {_spelled(one.metric)} on {comparison.split}"
    by = f"{abs(gain):.1f}{unit} {'better' if gain >= 0 else 'worse'} than {first}" if gain else f"the same as {first}"
    if one.interval is None:
        return f"{second} is {by} {where}, and nothing tells whether that is more than chance ({one.basis})."
    ends = sorted(direction_of(one.metric) * end for end in one.interval)
    if one.verdict == "no difference":
        return (
            f"No difference at 95 % {where}: {second} is {by} (interval {ends[0]:z.1f} to {ends[1]:z.1f}{unit}; {one.basis})."
        )
    low, high = sorted(map(abs, ends))
    return f"{second} is {by} {where} (95 % interval {low:.1f} to {high:.1f}; {one.basis})."


def format_difference(one: Difference) -> str:
    """`+2.1 [+0.4, +3.9]`, without the interval where nothing tells it."""
    return f"{one.difference:+z.1f}{f' {format_signed(one.interval)}' if one.interval is not None else ''}"


def format_signed(interval: Interval) -> str:
    """`[+0.4, +3.9]`"""
    return f"[{interval.low:+z.1f}, {interval.high:+z.1f}]"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "split": comparison.split,
        **{
            key: {"name": side.name, "label": side.row.label, "run_ids": [run.run_id for run in side.row.runs]}
            for key, side in (("a", comparison.first), ("b", comparison.second))
        },
        "metrics": {
            one.metric: {
                "a": one.first,
                "b": one.second,
                **_numbers(one),
                "chance": comparison.first.row.chance.get(one.metric),
                "sentence": sentence(comparison, one),
            }
            for one in comparison.differences
        },
        "notes": list(comparison.notes),
    }


def _verdict(interval: Interval | None, metric: str) -> Verdict:
    if interval is None:
        return "unknown"
    if interval.low <= 0 <= interval.high:
        return "no difference"
    return "better" if direction_of(metric) * interval.low > 0 else "worse"


def _basis(first: Sample, second: Sample) -> str:
    """Over which queries and seeds a difference is taken."""
    queries = "no outcomes of queries"
    if first.estimates and second.estimates:
        one = first.estimates[0]
        images = f"{one.num_clusters:,} image{'' if one.num_clusters == 1 else 's'}"
        queries = images if one.num_queries == one.num_clusters else f"{one.num_queries:,} queries of {images}"
    numbers = [len(first.values), len(second.values)]
    if are_paired(first, second):
        seeds = f"{numbers[0]} paired seeds"
    elif numbers == [1, 1]:
        seeds = "one seed each"
    else:
        seeds = f"{numbers[0]} and {numbers[1]} seeds"
    return f"{queries}, {seeds}"


def _only_row(asked: Asked, found: Results) -> Row:
    if len(found.rows) == 1:
        return found.rows[0]
    if not found.rows:
        raise InputError(Problem("", f"{asked.name} has no finished run", "tclx status says where its runs stand"))
    labels = ", ".join(row.label for row in found.rows[:5]) + (" and more" if len(found.rows) > 5 else "")
    hint = "name one of them, EXPERIMENT-VARIANT or a run"
    raise InputError(Problem("", f"{asked.name} stands for {len(found.rows)} rows of results: {labels}", hint))


def _shared_split(first: Asked, second: Asked) -> str:
    """The first of `SPLITS` that both have."""
    there = [{split for run in asked.runs for split in run.evaluations} for asked in (first, second)]
    shared = next((split for split in SPLITS if split in there[0] & there[1]), None)
    if shared is None:
        message = f"{first.name} and {second.name} have no evaluation on the same split"
        raise InputError(Problem("", message, "`tclx eval RUN --split test` evaluates a run that is finished"))
    return shared


def _doubts(first: Side, second: Side, differences: Sequence[Difference]) -> Iterator[str]:
    known = [side for side in (first, second) if all(sample.estimates for sample in side.row.samples.values())]
    if len(known) < 2:
        yield "whether both were asked the same queries is not known: one of them has no outcomes"
    if len(first.row.runs) == len(second.row.runs) == 1:
        yield "one seed each: the intervals are over queries alone, and another seed may turn them round"
    elif 1 in (len(first.row.runs), len(second.row.runs)):
        yield "one of them has a single seed: the other's deviation over seeds stands for both"
    if guessed := [
        column_title(one.metric)
        for one in differences
        if not is_beyond_chance(first.row, one.metric) and not is_beyond_chance(second.row, one.metric)
    ]:
        yield f"neither is beyond chance in {', '.join(guessed)}"


def _unit(metric: str) -> str:
    known = of_one_split()[metric]
    if known.unit == "%":
        return " points"
    return " ranks" if metric.endswith("median_rank") else f" {known.unit}".rstrip()


def _spelled(metric: str) -> str:
    """A metric's title in full words."""
    return column_title(metric).replace("T2I", "text-to-image").replace("I2T", "image-to-text").replace("median", "median rank")


def short_names(first: str, second: str) -> tuple[str, str]:
    """Names for sentences: of paths the last part, where that tells the two apart."""
    short = Path(first).name or first, Path(second).name or second
    return short if short[0] != short[1] else (first, second)
