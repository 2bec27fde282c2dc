"""`tclx plan`: what would run, and what it would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, say, show
from tclx.cli.run import BackendChoice, say_warnings, with_backend
from tclx.errors import InputError, Problem
from tclx.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tclx.data.sources.source import Description
    from tclx.launch.costs import Estimate
    from tclx.launch.order import PlannedRun
    from tclx.report.expected import Expected

MAX_SHOWN = 80
"""Characters of a caption."""

EXAMPLE = "Example:  tclx plan experiments/quickstart.yaml --json"


def plan(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Experiment files.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the cost estimate, which imports torch.")] = False,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Count from `approximate_rows` where the data is not on this machine.")
    ] = False,
    backend: BackendChoice = None,
    script: Annotated[bool, typer.Option("--script", help="Print the sbatch script instead.")] = False,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the whole spec instead, with where each value came from.")
    ] = False,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="With --resolved: this variant alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what would run: steps, sizes, run ids, cost.

    Nothing is started and no GPU is needed. What is wrong with the specs is printed at once, all of it.
    """
    if resolved:
        print_resolved(specs, with_backend(overrides, backend), variant, as_json=as_json)
        return
    if variant is not None:
        raise InputError(Problem("--variant", "goes with --resolved"))
    from tclx.launch.costs import sections_of
    from tclx.launch.local.slots import check_fits
    from tclx.launch.order import plan_runs

    runs = plan_runs(specs, with_backend(overrides, backend), runs_dir=runs_dir, without_data=without_data)
    if script:
        from tclx.launch.backend import by_backend

        show("\n".join(backend.script(own, runs_dir=runs_dir) for backend, own in by_backend(runs)), end="")
        return
    say_warnings(runs)
    if not without_data:  # which plans for another machine, with another cache
        from tclx.launch.downloads import check_downloads

        for line in check_downloads([run.spec for run in runs], with_image=not quick):
            say(f"warning: {line}")
    described = [{**run.plan.to_json(), "starts_from": run.needs} for run in runs]
    if not without_data:  # otherwise this is not the machine that will train
        for run in {sections_of(run): run for run in runs}.values():
            check_fits(run)
    expected: list[Expected] = []
    if not quick:
        from tclx.report.expected import expect

        estimates = add_costs(described, runs, elsewhere=without_data)
        expected = expect(runs, estimates, runs_dir=runs_dir, elsewhere=without_data)
    if as_json:
        known = [{"expected": one._asdict()} for one in expected] or [{}] * len(runs)
        print_json(
            [
                {**one, **its, "data": _data_tree(run.data), "warnings": list(run.warnings)}
                for one, its, run in zip(described, known, runs, strict=True)
            ]
        )
        return
    if len(runs) == 1:
        show(aligned([(_label(name, described[0]), _text(value)) for name, value in _flat(described[0]).items()]))
    else:
        print_table(described)
    if expected:
        print_expected(runs, expected)
    for data in dict.fromkeys(run.data for run in runs):
        print_data(data)


def print_data(data: Sequence[tuple[str, Description]]) -> None:
    """What each source of files was taken for: how much it holds, its first rows."""
    for key, (what, size, rows) in data:
        if not rows:
            continue
        images, captions = size.num_images or 0, size.num_captions
        each = f", {captions:,} captions ({captions / images:.3g} an image)" if captions and images else ""
        show(f"{one_line(f'{key}  {what}')}; {images:,} images{each}")
        for name, caption in rows:
            show(f"  {one_line(name)}  {one_line(json.dumps(caption[:MAX_SHOWN], ensure_ascii=False))}")


def _data_tree(data: Sequence[tuple[str, Description]]) -> dict[str, Any]:
    return {
        key: {"what": what, **size._asdict(), "first_rows": [{"image": name, "caption": text} for name, text in rows]}
        for key, (what, size, rows) in data
    }


def print_resolved(specs: Sequence[Path], overrides: Sequence[str], variant: str | None, *, as_json: bool) -> None:
    """A YAML document for every variant, each an experiment file of its own; its seeds stand in it together."""
    from tclx.spec.resolved import resolve

    found = [one for spec in specs for one in resolve(spec, overrides, variant=variant)]
    if as_json:
        print_json([{"variant": one.variant, "seeds": one.seeds, "spec": one.tree, "sources": one.sources} for one in found])
    else:
        show("---\n".join(one.text for one in found), end="")


def add_costs(described: list[dict[str, Any]], runs: Sequence[PlannedRun], *, elsewhere: bool) -> list[Estimate]:
    """What each run costs, which is added to its description; where that cannot be estimated one line says why.

    Args:
        described: a dictionary for each.
        runs: as they were planned.
        elsewhere: another machine will train them, so whether they fit here is not asked.

    Raises:
        InputError, MachineError: a model cannot be built, or does not fit into memory.
    """
    from tclx.launch.costs import estimate_costs, refuse_what_does_not_fit, sections_of

    estimates, doubts = estimate_costs(runs, elsewhere=elsewhere), list[str]()
    for estimate, plan in zip(estimates, described, strict=True):
        plan["cost"] = estimate.cost
    different = {sections_of(run): (run, estimate) for run, estimate in zip(runs, estimates, strict=True)}
    for run, estimate in () if elsewhere else different.values():
        doubts += [str(problem) for problem in refuse_what_does_not_fit(run, estimate)]
    doubts += [f"cost: not known: {estimate.reason} (--quick leaves it out)" for estimate in estimates if estimate.reason]
    for doubt in dict.fromkeys(doubts):
        say(f"warning: {doubt}")
    return estimates


def print_expected(runs: Sequence[PlannedRun], expected: Sequence[Expected], *, repeats: int = 1) -> None:
    """What the runs will take, each and together, and where that is known from.

    Args:
        runs, expected: one for each.
        repeats: so many times, as the trials of a sweep.
    """
    from tclx.report.expected import total
    from tclx.report.page import duration

    together, number = total(runs, expected, repeats=repeats), repeats * len(runs)
    how = "one after the other" if together.at_once == 1 else f"{together.at_once} at a time"
    first = expected[0]
    rows = [
        ("time", _range(expected, "seconds", duration), duration(together.seconds) + f", {how}" if together.seconds else "-"),
        (first.hours_name, _range(expected, "process_hours", _few), _few(together.process_hours)),
        ("jobs with this time limit", _range(expected, "jobs", str), ""),
        ("disk, GiB", _range(expected, "disk_gib", _few), _few(together.disk_gib)),
        (f"{first.memory_of} memory of a process, GiB", _range(expected, "memory_gib", _few), ""),
    ]
    shown = [row for row in rows if row[1] != "-"]
    show()
    if number == 1:
        show(aligned([("expected", ""), *((name, each) for name, each, _ in shown)]))
    else:
        show(aligned([("expected", "each", f"all {number:,}"), *shown]))
    for basis in dict.fromkeys(one.basis for one in expected):
        show(f"time from {one_line(basis)}")


def _range(expected: Sequence[Expected], name: str, text: Callable[[Any], str]) -> str:
    """Of all runs from the least to the most."""
    known = [value for one in expected if (value := getattr(one, name)) is not None]
    if not known:
        return "-"
    ends = dict.fromkeys((text(min(known)), text(max(known))))
    return " to ".join(ends)


def _few(value: float | None) -> str:
    """With two digits that count."""
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def print_table(described: list[dict[str, Any]]) -> None:
    """What differs most between runs, one line each."""
    costs: dict[str, Any] = next((run["cost"] for run in described if run.get("cost")), {})
    names = ["global_batch_size", "steps_per_epoch", "total_steps", *(f"cost/{name}" for name in costs)]
    flat = [_flat(run) for run in described]
    same = [name for name in names if len({str(run.get(name)) for run in flat}) == 1]
    if same:
        show(aligned([(_label(name, described[0]), _text(flat[0].get(name))) for name in same]))
        show()
    others = [name for name in names if name not in same]
    heads = [_label(name, described[0]).removeprefix("cost/") for name in others]
    show(aligned([["run_id", *heads], *([run["run_id"], *(_text(run.get(name)) for name in others)] for run in flat)]))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _label(name: str, run: dict[str, Any]) -> str:
    """As it is printed: what is true of one kind of device says so."""
    device = (run.get("cost") or {}).get("device", "gpu").upper()
    return f"{name} (on a {device})" if name.endswith("peak_memory_gib") else name


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
