"""What did the runs reach? Run folders -> one row per experiment and variant, with mean and deviation over seeds.

Only small JSON files are read, so that a thousand runs take a moment; torch is never imported.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.runs import RunFolder, RunState, write_atomically

DEFAULT_METRICS = (
    "text_to_image/r1",
    "text_to_image/r5",
    "text_to_image/r10",
    "image_to_text/r1",
    "image_to_text/r5",
    "image_to_text/r10",
    "r_mean",
    "dual/text_to_image/r1",
    "dual/image_to_text/r1",
    "dual/r_mean",
)
SPLITS = ("test", "val")
"""In order of preference."""
_SET_ASIDE = re.compile(r"\.old-\d+$")
_SEED_AND_HASH = re.compile(r"-s\d+-[0-9a-f]{8}(?=/|$)")


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
    """Metrics without the `retrieval/<split>/` before them, by split."""


class Spread(NamedTuple):
    """One metric over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None for a single seed."""


class Group(NamedTuple):
    """Runs whose specs differ by the seed alone."""

    label: str
    runs: tuple[RunResult, ...]


class Row(NamedTuple):
    """One experiment and variant."""

    label: str
    runs: tuple[RunResult, ...]
    metrics: dict[str, Spread]


class Results(NamedTuple):
    """What was found."""

    split: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    unfinished: tuple[RunResult, ...]


def find_runs(selection: Sequence[str], *, runs_dir: Path) -> list[Path]:
    """Run folders in a stable order.

    Args:
        selection: run folders, folders of runs, or in `runs_dir` run ids, experiments and `experiment-variant`s; empty for all
            that are there. Runs that `--again` set aside are found only by their own name.
        runs_dir: where runs are kept.

    Raises:
        InputError: something selected is not there; names the nearest that is.
    """
    known = _runs_in(runs_dir)
    if not selection:
        return known
    found: dict[Path, None] = {}
    problems = []
    for item in selection:
        matches = _select(item, known, runs_dir)
        if not matches:
            near = difflib.get_close_matches(item, [run.name for run in known], n=1)
            hint = f"did you mean {near[0]}?" if near else f"runs are looked for in {runs_dir}; choose another with --runs-dir"
            problems.append(Problem("", f"no run at {item}", hint))
        found.update(dict.fromkeys(matches))
    if problems:
        raise InputError(*problems)
    return list(found)


def read_run(folder: Path) -> RunResult:
    """Read what a run folder says of itself.

    Raises:
        InputError: a file of it is not what tclx writes.
    """
    run = RunFolder(folder)
    try:
        spec = run.read_json(run.spec)
        evaluations = {path.stem: _metrics(run.read_json(path)) for path in sorted(run.evaluation.glob("*.json"))}
        state = run.read_state() or RunState("created")
        return RunResult(folder.name, folder, spec["name"], spec["variant"], spec["seed"], state, _identity(spec), evaluations)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(Problem("", f"{folder} is not a readable run folder: {error!r}")) from error


def summarise(runs: Iterable[RunResult], *, metrics: Sequence[str] = (), split: str | None = None) -> Results:
    """Group finished runs by experiment and variant.

    Runs whose specs differ by more than the seed never share a row, also under one name.

    Args:
        runs: in the order in which rows should stand.
        metrics: names as in evaluation files, with or without `retrieval/<split>/`; empty for the usual ones.
        split: `test` or `val`; None takes `test` where any run has it.

    Raises:
        InputError: a metric or split that no run has.
    """
    runs = list(runs)
    finished = [run for run in runs if run.state.status == "finished"]
    split = _choose_split(finished, split)
    metrics = _choose_metrics(finished, metrics, split)
    rows = [Row(label, group, _spreads(group, metrics, split)) for label, group in group_runs(finished)]
    return Results(split, tuple(metrics), tuple(rows), tuple(run for run in runs if run.state.status != "finished"))


def group_runs(runs: Iterable[RunResult]) -> list[Group]:
    """Runs by experiment and variant, in the order given.

    Where one name stands for several specs, the hash of a group's first run tells them apart.
    """
    groups: dict[tuple[str, str | None, str], list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.name, run.variant, run.identity), []).append(run)
    titles = {key: " ".join(filter(None, key[:2])) for key in groups}
    counts = {title: list(titles.values()).count(title) for title in titles.values()}
    return [
        Group(title if counts[title] == 1 else f"{title} ({groups[key][0].run_id.rsplit('-', 1)[-1]})", tuple(groups[key]))
        for key, title in titles.items()
    ]


def describe_state(run: RunResult) -> str:
    """`interrupted at step 120 of 600: ...`; tells a run that still trains from one whose process died."""
    state = run.state
    status = "died" if state.status == "running" and _is_dead(state) else state.status
    progress = f" at step {state.step} of {state.total_steps}" if state.total_steps else ""
    return f"{status}{progress}" + (f": {state.reason}" if state.reason else "")


def format_spread(spread: Spread | None) -> str:
    """`38.2 ± 1.1`, `38.2` for one seed, `-` for nothing."""
    if spread is None:
        return "-"
    return f"{spread.mean:.1f}" + (f" ± {spread.deviation:.1f}" if spread.deviation is not None else "")


def column_title(metric: str) -> str:
    """`dual/text_to_image/r1` -> `dual T2I R@1`."""
    short = {"text_to_image": "T2I", "image_to_text": "I2T", "median_rank": "median"}
    return " ".join(re.sub(r"^r(\d+)$", r"R@\1", short.get(word, word)) for word in metric.split("/"))


def best_rows(results: Results) -> dict[str, int]:
    """Which row is best, by metric; where there is something to compare."""
    best = {}
    for metric in results.metrics:
        values = {index: row.metrics[metric].mean for index, row in enumerate(results.rows) if metric in row.metrics}
        if len(values) > 1:
            choose = min if metric.endswith("median_rank") else max
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
    writer.writerow(["experiment", "variant", "num_seeds", "split", *columns])
    for row in results.rows:
        values: list[float | None] = []
        for metric in results.metrics:
            spread = row.metrics.get(metric)
            values += [spread.mean, spread.deviation] if spread else [None, None]
        writer.writerow([row.runs[0].name, row.runs[0].variant or "", len(row.runs), results.split, *values])
    return text.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for machines: rows with mean, deviation and each seed's own figures; runs that are not finished."""
    return {
        "split": results.split,
        "rows": [
            {
                "experiment": row.runs[0].name,
                "variant": row.runs[0].variant,
                "metrics": {name: {"mean": spread.mean, "deviation": spread.deviation} for name, spread in row.metrics.items()},
                "runs": [
                    {"run_id": run.run_id, "seed": run.seed, "metrics": run.evaluations.get(results.split, {})}
                    for run in row.runs
                ],
            }
            for row in results.rows
        ],
        "unfinished": [
            {"run_id": run.run_id, "status": run.state.status, "state": describe_state(run)} for run in results.unfinished
        ],
    }


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    runs = (path.parent for path in folder.glob("*/spec.json") if not _SET_ASIDE.search(path.parent.name))
    return sorted(runs, key=lambda run: (_SEED_AND_HASH.sub("", run.name), run.name))


def _select(item: str, known: Sequence[Path], runs_dir: Path) -> list[Path]:
    path = Path(item)
    for candidate in (path, runs_dir / item):
        if (candidate / "spec.json").is_file():
            return [candidate]
    if (inside := _runs_in(path)) and path.is_dir():
        return inside
    return [run for run in known if run.name.startswith(f"{item}-") and item in _names(run)]


def _names(run: Path) -> tuple[str, ...]:
    """The experiment's name, alone and with its variant; a folder's name does not tell where the one ends."""
    spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
    return spec["name"], f"{spec['name']}-{spec['variant']}"


def _metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    return {_short(name): float(value) for name, value in evaluation["metrics"].items()}


def _short(name: str) -> str:
    return re.sub(r"^retrieval/[^/]+/", "", name)


def _identity(spec: dict[str, Any]) -> str:
    """What runs of several seeds have in common: all but the seed, also that of the run they start from, and where they ran."""
    shared = {key: value for key, value in spec.items() if key not in ("seed", "launch", "tracking")}
    shared["data"] = {key: value for key, value in spec["data"].items() if key != "num_workers"}
    if spec.get("init"):
        checkpoint = spec["init"].get("checkpoint")
        shared["init"] = {**spec["init"], "checkpoint": checkpoint and _SEED_AND_HASH.sub("", checkpoint)}
    return json.dumps(shared, sort_keys=True)


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
        return [name for name in DEFAULT_METRICS if name in present]
    chosen = [_short(name) for name in wanted]
    if unknown := [name for name in chosen if name not in present]:
        raise InputError(*(_unknown_metric(name, present) for name in unknown))
    return chosen


def _unknown_metric(name: str, present: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, present, n=1, cutoff=0.4)
    return Problem("--metric", f"no finished run has {name!r}", f"did you mean {near[0]}?" if near else None)


def _is_dead(state: RunState) -> bool:
    """Whether the process that wrote the state is gone; only known on its own machine."""
    if state.pid is None or state.host != os.uname().nodename:
        return False
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
