"""What does a report say? Each function is one section: material in, markup out; nothing where there is nothing to say."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tclx.launch.ending import last_lines
from tclx.launch.watch import describe
from tclx.metrics import chance_of, find_metric, is_evaluated, main_metrics, without_split
from tclx.report import figures
from tclx.report.cost import Cost
from tclx.report.history import Curve
from tclx.report.markup import Html, code, details, download, facts, figure, grid, table, text
from tclx.report.material import Material
from tclx.report.page import duration
from tclx.report.results import (
    Group,
    RunResult,
    column_title,
    format_spread,
    leaders,
    read_spec,
    winners,
)
from tclx.report.side_by_side import metrics_table, seed_dots
from tclx.runs import Environment, RunFolder
from tclx.spec.difference import differences, flat
from tclx.spec.objectives import TERMS
from tclx.terminal import printable

HEALTH = (
    *("temperature/", "balance/", "accuracy/", "gradient_", "mi_bound/", "health/"),
    *("learning_rate", "soft_labels/", "data/"),
)
SPEED = ("speed/", "memory/")


def summary(material: Material) -> list[Html]:
    """A few metrics that stand out, and what is missing."""
    results, runs = material.results, material.runs
    cards = [("runs", f"{len(runs)}, {len(runs) - len(results.unfinished)} finished")]
    if best := _best(material):
        cards.append(best)
    costs = list(material.costs.values())
    walls = [cost.wall_seconds for cost in costs if cost.wall_seconds is not None]
    cards += [("time in all", duration(sum(walls)))] if walls else []
    cards += list(_hours(costs).items())
    devices = sorted({f"{cost.device} GPU" if cost.has_gpu else "CPU" for cost in costs if cost.device})
    cards += [("trained on", ", ".join(devices))] if devices else []
    return [facts(cards)]


def comparison(material: Material) -> list[Html]:
    """The table of final metrics, and each seed beside its group's mean."""
    results = material.results
    blocks = [text(note, kind="note") for note in _doubts(material)]
    if results.rows and results.metrics:
        labels = [material.label_of(row.runs[0]) for row in results.rows]
        blocks += metrics_table(results, labels)
        blocks.append(grid(seed_dots(results, labels, material.styles)))
    blocks += [text(f"Not in the table: {run.run_id}, {describe(run.status)}", kind="note") for run in results.unfinished]
    blocks += [text(gap, kind="note") for gap in material.selection.notes]
    return blocks


def what_was_run(material: Material) -> list[Html]:
    """Seeds of each group, the keys in which their specs differ, and what they share."""
    labels = [group.label for group in material.groups]
    specs = [read_spec(group.runs[0]) for group in material.groups]
    blocks = []
    if found := differences(specs):
        first = ["seeds", *(", ".join(str(run.seed) for run in group.runs) for group in material.groups)]
        rows = [first, *([difference.key, *difference.values] for difference in found)]
        blocks.append(text("The keys of the spec that are not the same everywhere."))
        blocks.append(table(["", *labels], rows, numbers=False))
    else:
        numbers = sorted({run.seed for run in material.runs})
        said = f"seed {numbers[0]}" if len(numbers) == 1 else f"the seeds {', '.join(map(str, numbers))}"
        blocks.append(text(f"One spec, with {said}."))
    different = {difference.key for difference in found}
    shared = [
        [key, value]
        for key, value in flat(specs[0]).items()
        if key not in ("name", "variant", "seed") and not any(key == one or key.startswith(f"{one}.") for one in different)
    ]
    summary_line = f"The {len(shared)} keys that all share" if found else f"The whole spec, {len(shared)} keys"
    blocks.append(details(summary_line, table(["key", "value"], shared, numbers=False)))
    return blocks


def losses(material: Material) -> list[Html]:
    """Every term of the loss, the directions of each folded away."""
    names = [name for name in material.metrics() if name.startswith("loss/")]
    main = [f"loss/{term}" for term in ("total", *TERMS) if f"loss/{term}" in names]
    if not names:
        return [text("No run has logged anything yet.", kind="note")]
    band = "A line is the mean over seeds, its band reaches from the smallest to the largest. "
    bands = band if any(len(group.runs) > 1 for group in material.groups) else ""
    buttons = ", the buttons at the top hide a group everywhere" if len(material.groups) > 1 else ""
    used = text(f"{bands}With a mouse, dragging zooms and a double click shows all again{buttons}.", kind="small")
    return [used, *_curve_blocks(material, main, [name for name in names if name not in main], "Each direction by itself")]


def evaluations(material: Material) -> list[Html]:
    """What was evaluated while training."""
    evaluated = [name for name in material.metrics() if is_evaluated(name)]
    names = [name for name in evaluated if (metric := find_metric(name)) is None or metric.better is not None]
    main = [name for short in main_metrics() for name in names if without_split(name) == short]
    return _curve_blocks(material, main, [name for name in names if name not in main], "All other metrics")


def health(material: Material) -> list[Html]:
    """Temperatures, gradients, bounds, the geometry of the embeddings."""
    names = [name for prefix in HEALTH for name in material.metrics() if name.startswith(prefix)]
    not_finite = sum(history.num_not_finite for history in material.histories.values())
    warning = [text(f"{not_finite} logged rows hold a number that is not finite; the curves leave it out.", kind="note")]
    compared = [text(_GRADIENTS, kind="small")] if any(name.startswith("gradient_cosine/") for name in names) else []
    return [*(warning if not_finite else []), *compared, *_curve_blocks(material, list(dict.fromkeys(names)), [], "")]


_GRADIENTS = (
    "Gradients of the weighted terms are compared at the last parameters of each encoder, which all terms share: a cosine "
    "near -1 says that one term undoes what the other does, near 0 that they do not meet. Shares of the update sum to 1: a "
    "share near 0 is a weight that might as well be 0, a negative one a term that is overruled."
)


def other_measures(material: Material) -> list[Html]:
    """Whatever else was logged."""
    known = ("loss/", *HEALTH, *SPEED)
    others = [name for name in material.metrics() if not name.startswith(known) and not is_evaluated(name)]
    return _curve_blocks(material, others, [], "")


def cost(material: Material) -> list[Html]:
    """Time, processor-hours, throughput and memory of each group, and the throughput over time."""
    if not any(cost.wall_seconds for cost in material.costs.values()):
        return []
    head = ["", "runs", "time a run", "hours x processes in all", "images/s", "waiting for data", "peak memory", "device"]
    speeds = [name for name in material.metrics() if name.startswith(SPEED)]
    said = (
        "Time is that of all attempts, from start to the last sign of life. GPU-hours, or CPU-hours, are the time in training "
        "steps times the processes, as in a sweep's cost/process_hours: evaluation, saving and waiting are left out, as they "
        "are of images a second, of which the first row of each attempt does not count."
    )
    return [
        table(head, [_cost_row(material, group) for group in material.groups]),
        text(said, kind="small"),
        *_curve_blocks(material, speeds, [], ""),
    ]


def printed(material: Material) -> list[Html]:
    """The last lines of every run's first process, those of runs that have not finished unfolded."""
    blocks = []
    for run in material.runs:
        lines = last_lines(RunFolder(run.folder).log(0))
        if not lines:
            continue
        shown = code("\n".join(printable(line) for line in lines))
        blocks += [details(run.run_id, shown)] if run.status.standing == "finished" else [text(f"{run.run_id}:"), shown]
    return blocks


def reproduction(material: Material) -> list[Html]:
    """How to get each row again: command, run id, code."""
    blocks = []
    if material.selection.experiments:
        files = " ".join(str(path) for path in material.selection.experiments)
        blocks += [text("All of them:"), code(f"tclx run {files}")]
    blocks.append(
        text("One of them: its name in the table saves its spec, which is run like any other. The run id is made of the spec.")
    )
    blocks.append(code(f"tclx run {_spec_file(material.runs[0])}"))
    rows = [_reproduction_row(material, run) for run in material.runs]
    return [*blocks, table(["run", "seed", "state", "commit", "packages"], rows, numbers=False)]


# ------------------------------------------------------------------------------------------------------------------ comparison


def _best(material: Material) -> tuple[str, str] | None:
    results = material.results
    metric = next((name for name in main_metrics(1) if name in results.metrics), next(iter(results.metrics), None))
    if metric is None or not results.rows:
        return None
    row = results.rows[leaders(results).get(metric, 0)]
    title = f"{metric} on {results.split}"
    if len(results.rows) > 1:
        said = "best" if metric in winners(results) else "highest, within noise or chance,"
        title = f"{said} {column_title(metric)} on {results.split}"
    named = f"{format_spread(row.metrics.get(metric))} · {material.label_of(row.runs[0])}"
    return (title, named) if metric in row.metrics else None


def _doubts(material: Material) -> Iterator[str]:
    """What a reader must know before comparing."""
    results = material.results
    if not results.rows:
        yield "No run is finished, so there are no final metrics yet."
        return
    if not results.metrics:
        yield f"No finished run was evaluated on {results.split}; evaluation.at_end or `tclx eval RUN` gives them."
        return
    without = [material.label_of(row.runs[0]) for row in results.rows if not row.metrics]
    if without:
        yield f"No metrics on {results.split} for {', '.join(without)}."
    shared = set.intersection(*(set(row.metrics) for row in results.rows if row.metrics))
    if not shared:
        yield "These experiments have no metric in common: the table shows them side by side, and nothing in it compares."
    data = {json.dumps(read_spec(row.runs[0])["data"].get(results.split), sort_keys=True) for row in results.rows}
    if len(data) > 1:
        yield f"Not all were evaluated on the same data: data.{results.split} differs, and so its metrics do not compare."
    yield from (f"{note[:1].upper()}{note[1:]}." for note in results.notes)
    for row in results.rows:
        for run in row.runs:
            yield from (f"{run.run_id}: {message}." for message in RunFolder(run.folder).read_warnings())
    num_seeds = {len(row.runs) for row in results.rows}
    if len(results.rows) > 1 and max(num_seeds) < 2:
        yield "One seed each: intervals and bold are over queries alone, and another seed may turn them round."


# -------------------------------------------------------------------------------------------------------------------- curves


def _curve_blocks(material: Material, shown: Sequence[str], folded: Sequence[str], summary_line: str) -> list[Html]:
    """Figures of metrics; what never changes is one line of text."""
    drawn = {name: material.curves(name) for name in [*shown, *folded]}
    constant = {name: next(iter(curves.values())).mean[0] for name, curves in drawn.items() if _is_constant(curves)}
    blocks = []
    if first := [_curve_figure(material, name, drawn[name]) for name in shown if name not in constant]:
        blocks.append(grid(first))
    if more := [_curve_figure(material, name, drawn[name]) for name in folded if name not in constant]:
        blocks.append(details(f"{summary_line} ({len(more)})", grid(more)))
    if constant:
        said = ", ".join(f"{name} {value:g}" for name, value in constant.items())
        blocks.append(text(f"The same in every row of every run: {said}.", kind="small"))
    return blocks


def _is_constant(curves: Mapping[str, Curve]) -> bool:
    values = {value for curve in curves.values() for value in (*curve.low, *curve.high)}
    return len(values) == 1 and any(len(curve.steps) > 1 for curve in curves.values())


def _curve_figure(material: Material, name: str, curves: Mapping[str, Curve]) -> Html:
    width = max(curve.rows_per_point for curve in curves.values())
    known, title = find_metric(name), _title(name)
    averaged = f"Each point averages {width} logged rows." if width > 1 else ""
    caption = " ".join(filter(None, (known.about if known is not None else "", averaged)))
    plot = figures.curves(curves, material.styles, chance=_chance(material, name))
    return figure(plot, title=title, name=name if title != name else "", caption=caption, height=240)


def _chance(material: Material, name: str) -> float | None:
    """What guessing reaches in a metric that was evaluated while training, by a run that says among how many was chosen."""
    if not is_evaluated(name):
        return None
    split = name.split("/")[1]
    for history in material.histories.values():
        last = {other: one.values[-1] for other, one in history.series.items() if is_evaluated(other)}
        own = {without_split(other): value for other, value in last.items() if other.split("/")[1] == split}
        if name in last and (found := chance_of(without_split(name), own)) is not None:
            return found
    return None


def _title(name: str) -> str:
    if (metric := find_metric(name)) is None:
        return name
    if not is_evaluated(name):
        return metric.title
    return f"{metric.title} on {name.split('/')[1]}" + (f", {metric.unit}" if metric.unit else "")


# ---------------------------------------------------------------------------------------------------------------------- cost


def _cost_row(material: Material, group: Group) -> list[str]:
    costs = [material.costs[run.run_id] for run in group.runs]
    walls = [cost.wall_seconds for cost in costs if cost.wall_seconds is not None]
    speeds = [cost.images_per_second for cost in costs if cost.images_per_second is not None]
    waits = [cost.share_waiting for cost in costs if cost.share_waiting is not None]
    peaks = [cost.peak_memory_gib for cost in costs if cost.peak_memory_gib is not None]
    devices = {f"{cost.num_processes or '?'} x {'' if cost.has_gpu else 'CPU '}{cost.device or '?'}" for cost in costs}
    return [
        group.label,
        str(len(costs)),
        duration(statistics.fmean(walls)) if walls else "-",
        ", ".join(f"{hours} {name}" for name, hours in _hours(costs).items()) or "-",
        _spread_of(speeds),
        f"{100 * statistics.fmean(waits):.1f} %" if waits else "-",
        f"{max(peaks):.2f} GiB" if peaks else "not recorded",
        ", ".join(sorted(devices)),
    ]


def _hours(costs: Sequence[Cost]) -> dict[str, str]:
    """`GPU-hours` and `CPU-hours`, those that there are."""
    found: dict[str, float] = {}
    for cost in costs:
        if cost.process_hours is not None:
            found[cost.hours_name] = found.get(cost.hours_name, 0.0) + cost.process_hours
    return {name: f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}" for name, hours in found.items()}


def _spread_of(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.0f}" + (f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else "")


# -------------------------------------------------------------------------------------------------------------- reproduction


def _reproduction_row(material: Material, run: RunResult) -> list[str]:
    folder = RunFolder(run.folder)
    environment = folder.read_environment()
    packages = environment.packages
    named = ", ".join(f"{name} {packages[name]}" for name in ("tclx", "torch", "timm", "transformers") if packages.get(name))
    content = json.dumps(runnable(read_spec(run)), indent=1, ensure_ascii=False)
    return [
        download(_spec_file(run), content),
        str(run.seed),
        "finished" if run.status.standing == "finished" else describe(run.status),
        _commit(environment),
        named or "not recorded",
    ]


def _commit(environment: Environment) -> str:
    if environment == Environment():
        return "not recorded"
    if not environment.commit:
        return "not known (installed package)"
    changed = environment.diff_sha256 if environment.diff else None
    return f"{environment.commit[:12]} with changes (sha256 {changed[:12]})" if changed else environment.commit[:12]


def _spec_file(run: RunResult) -> str:
    return f"{run.run_id}.yaml"


def runnable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved spec as a file that `tclx run` reads: a variant is named under `variants`."""
    plain = {key: value for key, value in spec.items() if key != "variant"}
    return {**plain, "variants": {spec["variant"]: {}}} if spec.get("variant") else plain
