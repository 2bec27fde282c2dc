"""What did the runs reach? Run folders -> one row per experiment and variant: mean, deviation over seeds, 95 % interval.

Only small JSON files are read, so that a thousand runs take a moment; torch is never imported.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_as, write_atomically
from tclx.launch.watch import RunStatus, watch_runs
from tclx.metrics import chance_of, columns, of_one_split, task_of, without_split
from tclx.report.estimates import Estimates, read_estimates
from tclx.runs import RunFolder, RunState, TrialOf
from tclx.spec.difference import identity, told_apart, with_defaults

if TYPE_CHECKING:  # numpy is loaded where there are runs
    from tclx.report.bootstrap import Interval, Sample

SPLITS = ("test", "val")
"""In order of preference."""


class Selection(NamedTuple):
    """Which runs are shown."""

    folders: tuple[Path, ...]
    """Run folders, in the order asked for."""
    experiments: tuple[Path, ...] = ()
    """The experiment files among what was named."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it, in words."""
    trials: Mapping[Path, TrialOf] = {}
    """Of runs that were found through their study."""


class RunResult(NamedTuple):
    """One run folder, read."""

    run_id: str
    folder: Path
    name: str
    variant: str | None
    seed: int
    state: RunState
    identity: str
    """Equal for runs that differ by their seed alone."""
    evaluations: dict[str, dict[str, float]]
    """Metrics by names without their split (`tclx.metrics.without_split`), by split."""
    status: RunStatus
    """Where it stands, as every command says it."""
    trial: TrialOf | None = None
    """Where it is shown as a trial of a sweep."""


class Spread(NamedTuple):
    """One metric over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None for a single seed."""
    interval: Interval | None = None
    """95 %, over queries and seeds; None where nothing tells how sure the mean is."""


class Group(NamedTuple):
    """Runs whose specs differ by the seed alone."""

    label: str
    """No other group's of the table: where one name stands for several specs, with what they differ in."""
    runs: tuple[RunResult, ...]
    differs: dict[str, str]
    """The keys in which it differs from the others of its name, and their values; empty where there are none."""


class Row(NamedTuple):
    """One experiment and variant, or one trial."""

    label: str
    runs: tuple[RunResult, ...]
    differs: dict[str, str]
    metrics: dict[str, Spread]
    samples: dict[str, Sample]
    """What is known of each metric beside its spread, for comparisons."""
    chance: dict[str, float]
    """What guessing reaches, where that is known."""


class Results(NamedTuple):
    """What was found."""

    @property
    def tasks(self) -> str:
        """What the metrics are of, in words."""
        found = {task_of(metric): None for metric in self.metrics} or {"retrieval": None}
        return " and ".join(found)

    split: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    unfinished: tuple[RunResult, ...]
    notes: tuple[str, ...] = ()
    """Why there are intervals missing, in words."""


def apart(summary: Results) -> list[Results]:
    """As many tables as there are kinds of rows that have no metric in common, such as a pre-training's and a task's."""
    kinds: list[tuple[set[int], set[str]]] = []
    for number, row in enumerate(summary.rows):
        numbers, names = {number}, row.metrics.keys() & set(summary.metrics)
        others = []
        for kind in kinds:
            if kind[1] & names or not (kind[1] and names):  # a row of nothing is of every kind
                numbers, names = numbers | kind[0], names | kind[1]
            else:
                others.append(kind)
        kinds = [*others, (numbers, names)]
    if len(kinds) < 2:
        return [summary]
    return [
        summary._replace(
            rows=tuple(summary.rows[number] for number in sorted(numbers)),
            metrics=tuple(name for name in summary.metrics if name in names),
        )
        for numbers, names in sorted(kinds, key=lambda kind: min(kind[0]))
    ]


def read_runs(selection: Selection) -> list[RunResult]:
    """Read what run folders say of themselves; SLURM is asked where that is not enough.

    Raises:
        InputError: a file of one is not what tclx writes.
    """
    read = [_read(folder, selection.trials.get(folder)) for folder in selection.folders]
    open_ones = [run.folder for run in read if run.status.standing not in ("finished", "unknown")]
    statuses = dict(zip(open_ones, watch_runs(open_ones), strict=True))
    return [run._replace(status=statuses.get(run.folder, run.status)) for run in read]


def _read(folder: Path, trial: TrialOf | None) -> RunResult:
    """One run; one whose metrics cannot be read has none, and is `unknown` with the reason."""
    run = RunFolder(folder)
    shown = read_as(run.spec, _Shown)
    state, evaluations = run.read_state() or RunState("created"), dict[str, dict[str, float]]()
    try:
        for split, evaluated in run.read_evaluations().items():
            evaluations[split] = {without_split(name): value for name, value in evaluated.metrics.items()}
    except Unreadable as error:
        state = RunState("unknown", reason=str(error))
    status = RunStatus(run, state.status, state.step, state.total_steps, state.reason)
    named = (folder.name, folder, shown.name, shown.variant, shown.seed)
    return RunResult(*named, state, identity(run.read_json(run.spec)), evaluations, status, trial)


def read_spec(run: RunResult) -> dict[str, Any]:
    """The resolved spec, with keys that its version of tclx did not have."""
    folder = RunFolder(run.folder)
    return with_defaults(folder.read_json(folder.spec))


@dataclass(frozen=True)
class _Shown:
    """What of a spec is shown in results; the rest may be of another version of tclx."""

    name: str
    seed: int
    data: dict[str, Any]
    variant: str | None = None
    init: _ShownInit | None = None


@dataclass(frozen=True)
class _ShownInit:
    checkpoint: str | None = None


def summarise(
    runs: Iterable[RunResult], *, metrics: Sequence[str] = (), split: str | None = None, intervals: bool = True
) -> Results:
    """Group finished runs by experiment and variant.

    Runs whose specs differ by more than the seed never share a row, also under one name; nor do a sweep's trials.

    Args:
        runs: in the order in which rows should stand.
        metrics: names as in evaluation files, with or without their split; empty for the usual ones.
        split: `test` or `val`; None takes `test` where any run has it.
        intervals: read what each query reached; without it no row has an interval but one over seeds.

    Raises:
        InputError: a metric or split that no run has.
    """
    runs = list(runs)
    finished = [run for run in runs if run.status.standing == "finished"]
    split = _choose_split(finished, split)
    metrics = _choose_metrics(finished, metrics, split)
    notes: dict[str, list[str]] = {}
    rows = [_row(group, metrics, split, intervals, notes) for group in group_runs(finished)]
    unfinished = tuple(run for run in runs if run.status.standing != "finished")
    return Results(split, tuple(metrics), tuple(rows), unfinished, tuple(_in_words(notes, split)))


def group_runs(runs: Iterable[RunResult]) -> list[Group]:
    """Runs by experiment and variant, or by trial, in the order given.

    Where one name stands for several specs, the keys in which they differ tell them apart.
    """
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for run in runs:
        groups.setdefault((_title(run), run.identity), []).append(run)
    alike: dict[str, list[str]] = {}  # what is compared with each other: a study's trials, runs of one name
    for (title, spec), (first, *_) in groups.items():
        alike.setdefault(_family(title, first), []).append(spec)
    differs = {
        family: dict(zip(specs, told_apart([json.loads(one) for one in specs]), strict=True)) for family, specs in alike.items()
    }
    found = []
    for (title, spec), members in groups.items():
        different = differs[_family(title, members[0])][spec]
        found.append(Group(f"{title}{_shown(different)}", tuple(members), different))
    labels = Counter(group.label for group in found)
    return [group if labels[group.label] == 1 else group._replace(label=_with_hash(group)) for group in found]


MOST_KEYS = 6
"""Of a row's name: so many keys in which it differs are shown, and how many more there are."""


def _title(run: RunResult) -> str:
    if run.trial is not None:
        variant = f" {run.trial.variant}" if run.trial.variant else ""
        return f"{run.trial.study}{variant} {'confirms ' if run.trial.confirms else ''}trial {run.trial.number}"
    return " ".join(filter(None, (run.name, run.variant)))


def _family(title: str, run: RunResult) -> str:
    return f"trials of {run.trial.study} {run.trial.variant} {run.trial.confirms}" if run.trial is not None else title


def _shown(differs: Mapping[str, str]) -> str:
    shown = [f"{key}={value}" for key, value in list(differs.items())[:MOST_KEYS]]
    more = [f"and {len(differs) - MOST_KEYS} more"] if len(differs) > MOST_KEYS else []
    return f" ({', '.join([*shown, *more])})" if shown else ""


def _with_hash(group: Group) -> str:
    return f"{group.label} {group.runs[0].run_id.rsplit('-', 1)[-1]}"


def format_spread(spread: Spread | None, *, intervals: bool = False) -> str:
    """`38.2 ± 1.1`, for one seed `38.2 [36.0, 40.3]` where its interval is known, `-` for nothing.

    Args:
        spread: of one cell.
        intervals: of several seeds, too: `38.2 ± 1.1 [33.5, 42.9]`.
    """
    if spread is None:
        return "-"
    deviation = f" ± {spread.deviation:.1f}" if spread.deviation is not None else ""
    shown = spread.interval if intervals or spread.deviation is None else None
    return f"{spread.mean:.1f}{deviation}{format_interval(shown)}"


def format_interval(interval: Interval | None) -> str:
    """` [36.0, 40.3]`, and nothing for None."""
    return f" [{interval.low:.1f}, {interval.high:.1f}]" if interval is not None else ""


def format_chance(results: Results, metric: str) -> str:
    """`12.5`, `0.4 to 1.2` where rows differ, empty where it is unknown."""
    levels = [row.chance[metric] for row in results.rows if metric in row.chance]
    if not levels:
        return ""
    low, high = f"{min(levels):.1f}", f"{max(levels):.1f}"
    return low if low == high else f"{low} to {high}"


def column_title(metric: str) -> str:
    """`dual/text_to_image/r1` -> `dual T2I R@1`."""
    known = of_one_split().get(metric)
    return known.title if known is not None else metric


def leaders(results: Results) -> dict[str, int]:
    """Which row has the best mean, by metric, whether or not that means anything; where there is something to compare."""
    found = {}
    for metric in results.metrics:
        values = {index: row.metrics[metric].mean for index, row in enumerate(results.rows) if metric in row.metrics}
        if (better := direction_of(metric)) and len(values) > 1:
            found[metric] = max(values, key=lambda index: better * values[index])
    return found


def winners(results: Results) -> dict[str, int]:
    """Which row is best, by metric: beyond chance, and beyond noise of every other row, at 95 % each."""
    return {
        metric: index
        for metric, index in leaders(results).items()
        if is_beyond_chance(results.rows[index], metric)
        and all(
            is_better(row, results.rows[index], metric)
            for number, row in enumerate(results.rows)
            if number != index and metric in row.metrics
        )
    }


def is_beyond_chance(row: Row, metric: str) -> bool:
    """Whether guessing would not reach what these very models do; also where chance is not known."""
    from tclx.report.bootstrap import interval_over_queries

    if metric not in row.chance:
        return True
    interval = interval_over_queries(row.samples[metric]) or row.metrics[metric].interval
    return interval is not None and interval.low > row.chance[metric]


def is_better(first: Row, second: Row, metric: str) -> bool:
    """Whether the second is better than the first beyond noise; false where nothing tells."""
    from tclx.report.bootstrap import difference_of

    if not are_of_same_queries(first, second, metric):
        return False
    interval, better = difference_of(first.samples[metric], second.samples[metric]), direction_of(metric)
    return interval is not None and (interval.low > 0 if better > 0 else interval.high < 0)


def are_of_same_queries(first: Row, second: Row, metric: str) -> bool:
    """Whether nothing is known to the contrary: a row without outcomes does not say what it was asked."""
    ours, theirs = first.samples[metric].estimates, second.samples[metric].estimates
    return not ours or not theirs or (ours[0].queries, ours[0].num_clusters) == (theirs[0].queries, theirs[0].num_clusters)


def direction_of(metric: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where nobody can tell."""
    known = of_one_split().get(metric)
    return {"higher": 1, "lower": -1}.get(known.better or "", 0) if known is not None else 0


def write_csv(results: Results, path: Path) -> None:
    """`as_csv` into a file.

    Raises:
        MachineError: the file cannot be written.
    """
    write_atomically(path, as_csv(results))


def as_csv(results: Results) -> str:
    """One line a row; each metric with its `_deviation`, empty for a single seed, its interval's ends, and chance."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric}{end}" for metric in results.metrics for end in ("", "_deviation", "_low", "_high", "_chance")]
    writer.writerow(["experiment", "variant", "study", "trial", "differs", "num_seeds", "run_ids", "split", *columns])
    for row in results.rows:
        values: list[float | None] = []
        for metric in results.metrics:
            spread = row.metrics.get(metric)
            values += [spread.mean, spread.deviation, *(spread.interval or (None, None))] if spread else [None] * 4
            values.append(row.chance.get(metric))
        first, ids = row.runs[0], " ".join(run.run_id for run in row.runs)
        trial = [first.trial.study, first.trial.number] if first.trial is not None else ["", ""]
        differs = " ".join(f"{key}={value}" for key, value in row.differs.items())
        writer.writerow([first.name, first.variant or "", *trial, differs, len(row.runs), ids, results.split, *values])
    return text.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for machines: rows with mean, deviation, 95 % interval and each seed's own metrics; runs not finished."""
    best = winners(results)
    return {
        "split": results.split,
        "rows": [
            {
                "experiment": row.runs[0].name,
                "variant": row.runs[0].variant,
                "study": row.runs[0].trial and row.runs[0].trial.study,
                "trial": row.runs[0].trial and row.runs[0].trial.number,
                "differs": row.differs,
                "metrics": {
                    name: {**spread._asdict(), "chance": row.chance.get(name), "best": best.get(name) == number}
                    for name, spread in row.metrics.items()
                },
                "runs": [
                    {"run_id": run.run_id, "seed": run.seed, "metrics": run.evaluations.get(results.split, {})}
                    for run in row.runs
                ],
            }
            for number, row in enumerate(results.rows)
        ],
        "notes": list(results.notes),
        "unfinished": [
            {
                "run_id": run.run_id,
                "state": run.status.standing,
                "step": run.status.step,
                "total_steps": run.status.total_steps,
                "reason": run.status.reason,
            }
            for run in results.unfinished
        ],
    }


def _row(group: Group, metrics: Sequence[str], split: str, intervals: bool, notes: dict[str, list[str]]) -> Row:
    """The row of a group; `notes` gathers which runs lack what, by what they lack."""
    from tclx.report.bootstrap import Sample, interval_of

    estimates = dict[Path, Estimates]()
    for run in group.runs:
        evaluated = run.evaluations.get(split, {})
        estimates[run.folder] = read_estimates(run.folder, split, evaluated, metrics if intervals else ())
        for missing in estimates[run.folder].missing:
            notes.setdefault(missing, []).append(run.run_id)
    samples, chance = {}, {}
    for metric in metrics:
        runs = [run for run in group.runs if metric in run.evaluations.get(split, {})]
        if not runs:
            continue
        found = [estimates[run.folder].found.get(metric) for run in runs]
        known = tuple(one for one in found if one is not None)
        if len(known) == len(runs) and len({(one.queries, one.num_clusters) for one in known}) > 1:
            notes.setdefault("its seeds were not evaluated on the same queries", []).append(group.label)
            known = ()
        complete = known if len(known) == len(runs) else ()
        values = tuple(run.evaluations[split][metric] for run in runs)
        in_percent = (one := of_one_split().get(metric)) is not None and one.unit == "%"
        samples[metric] = Sample(tuple(run.seed for run in runs), values, complete, in_percent)
        if (level := chance_of(metric, runs[0].evaluations[split])) is not None:
            chance[metric] = level
    spreads = {
        metric: Spread(sample.mean, statistics.stdev(sample.values) if len(sample.values) > 1 else None, interval_of(sample))
        for metric, sample in samples.items()
    }
    return Row(*group, spreads, samples, chance)


def _in_words(notes: Mapping[str, Sequence[str]], split: str) -> Iterable[str]:
    for missing, names in notes.items():
        named = list(dict.fromkeys(names))
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
        advice = "" if "same queries" in missing else f"; `tclx eval RUN --split {split}` writes them"
        yield f"no interval over queries for {shown}: {missing}{advice}"


def _choose_split(runs: Sequence[RunResult], split: str | None) -> str:
    present = {name for run in runs for name in run.evaluations}
    if split is None:
        return next((name for name in SPLITS if name in present), SPLITS[0])
    if runs and split not in present:
        there = ", ".join(sorted(present)) or "none"
        raise InputError(Problem("--split", f"no finished run was evaluated on {split!r}", f"splits: {there}"))
    return split


def _choose_metrics(runs: Sequence[RunResult], wanted: Sequence[str], split: str) -> list[str]:
    present = sorted({name for run in runs for name in run.evaluations.get(split, {})})
    if not wanted:
        return [name for name in columns() if name in present]
    chosen = [without_split(name) for name in wanted]
    if unknown := [name for name in chosen if name not in present]:
        raise InputError(*(_unknown_metric(name, present) for name in unknown))
    return chosen


def _unknown_metric(name: str, present: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, present, n=1, cutoff=0.4)
    return Problem("--metric", f"no finished run has {name!r}", f"did you mean {near[0]}?" if near else None)
