"""What did the runs reach? Run folders -> one row per experiment and variant, with mean and deviation over seeds.

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
from typing import Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_as, write_atomically
from tclx.launch.watch import RunStatus, watch_runs
from tclx.metrics import columns, of_one_split, task_of, without_split
from tclx.runs import RunFolder, RunState, TrialOf
from tclx.spec.difference import identity, told_apart

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


def summarise(runs: Iterable[RunResult], *, metrics: Sequence[str] = (), split: str | None = None) -> Results:
    """Group finished runs by experiment and variant.

    Runs whose specs differ by more than the seed never share a row, also under one name; nor do a sweep's trials.

    Args:
        runs: in the order in which rows should stand.
        metrics: names as in evaluation files, with or without their split; empty for the usual ones.
        split: `test` or `val`; None takes `test` where any run has it.

    Raises:
        InputError: a metric or split that no run has.
    """
    runs = list(runs)
    finished = [run for run in runs if run.status.standing == "finished"]
    split = _choose_split(finished, split)
    metrics = _choose_metrics(finished, metrics, split)
    rows = [Row(*group, _spreads(group.runs, metrics, split)) for group in group_runs(finished)]
    return Results(split, tuple(metrics), tuple(rows), tuple(run for run in runs if run.status.standing != "finished"))


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
        return f"{run.trial.study} trial {run.trial.number}"
    return " ".join(filter(None, (run.name, run.variant)))


def _family(title: str, run: RunResult) -> str:
    return f"trials of {run.trial.study}" if run.trial is not None else title


def _shown(differs: Mapping[str, str]) -> str:
    shown = [f"{key}={value}" for key, value in list(differs.items())[:MOST_KEYS]]
    more = [f"and {len(differs) - MOST_KEYS} more"] if len(differs) > MOST_KEYS else []
    return f" ({', '.join([*shown, *more])})" if shown else ""


def _with_hash(group: Group) -> str:
    return f"{group.label} {group.runs[0].run_id.rsplit('-', 1)[-1]}"


def format_spread(spread: Spread | None) -> str:
    """`38.2 ± 1.1`, `38.2` for one seed, `-` for nothing."""
    if spread is None:
        return "-"
    return f"{spread.mean:.1f}" + (f" ± {spread.deviation:.1f}" if spread.deviation is not None else "")


def column_title(metric: str) -> str:
    """`dual/text_to_image/r1` -> `dual T2I R@1`."""
    known = of_one_split().get(metric)
    return known.title if known is not None else metric


def best_rows(results: Results) -> dict[str, int]:
    """Which row is best, by metric; where there is something to compare."""
    best, known = {}, of_one_split()
    for metric in results.metrics:
        values = {index: row.metrics[metric].mean for index, row in enumerate(results.rows) if metric in row.metrics}
        if len(values) > 1:
            choose = min if metric in known and known[metric].better == "lower" else max
            best[metric] = choose(values, key=values.__getitem__)
    return best


def write_csv(results: Results, path: Path) -> None:
    """`as_csv` into a file.

    Raises:
        MachineError: the file cannot be written.
    """
    write_atomically(path, as_csv(results))


def as_csv(results: Results) -> str:
    """One line a row; each metric with its `_deviation`, empty for a single seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [column for metric in results.metrics for column in (metric, f"{metric}_deviation")]
    writer.writerow(["experiment", "variant", "study", "trial", "differs", "num_seeds", "run_ids", "split", *columns])
    for row in results.rows:
        values: list[float | None] = []
        for metric in results.metrics:
            spread = row.metrics.get(metric)
            values += [spread.mean, spread.deviation] if spread else [None, None]
        first, ids = row.runs[0], " ".join(run.run_id for run in row.runs)
        trial = [first.trial.study, first.trial.number] if first.trial is not None else ["", ""]
        differs = " ".join(f"{key}={value}" for key, value in row.differs.items())
        writer.writerow([first.name, first.variant or "", *trial, differs, len(row.runs), ids, results.split, *values])
    return text.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for machines: rows with mean, deviation and each seed's own metrics; runs that are not finished."""
    return {
        "split": results.split,
        "rows": [
            {
                "experiment": row.runs[0].name,
                "variant": row.runs[0].variant,
                "study": row.runs[0].trial and row.runs[0].trial.study,
                "trial": row.runs[0].trial and row.runs[0].trial.number,
                "differs": row.differs,
                "metrics": {name: {"mean": spread.mean, "deviation": spread.deviation} for name, spread in row.metrics.items()},
                "runs": [
                    {"run_id": run.run_id, "seed": run.seed, "metrics": run.evaluations.get(results.split, {})}
                    for run in row.runs
                ],
            }
            for row in results.rows
        ],
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


def _spreads(runs: Sequence[RunResult], metrics: Sequence[str], split: str) -> dict[str, Spread]:
    spreads = {}
    for metric in metrics:
        values = [run.evaluations[split][metric] for run in runs if metric in run.evaluations.get(split, {})]
        if values:
            spreads[metric] = Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
    return spreads


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
