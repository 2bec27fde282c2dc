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
    from collections.abc import Sequence

    from tclx.data.sources.source import Description
    from tclx.launch.order import PlannedRun

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
    if not quick:
        add_costs(described, runs, has_to_fit=not without_data)
    if as_json:
        pairs = zip(described, runs, strict=True)
        print_json([{**one, "data": _data_tree(run.data), "warnings": list(run.warnings)} for one, run in pairs])
    elif len(runs) == 1:
        show(aligned([(_label(name), _text(value)) for name, value in _flat(described[0]).items()]))
    else:
        print_table(described)
    if not as_json:
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


def add_costs(described: list[dict[str, Any]], runs: Sequence[PlannedRun], *, has_to_fit: bool) -> None:
    """What each run costs; where that cannot be estimated one line says why.

    Raises:
        InputError, MachineError: a model cannot be built, or does not fit into memory.
    """
    from tclx.launch.costs import estimate_costs, refuse_what_does_not_fit, sections_of

    estimates, doubts = estimate_costs(runs), list[str]()
    for estimate, plan in zip(estimates, described, strict=True):
        plan["cost"] = estimate.cost
    different = {sections_of(run): (run, estimate) for run, estimate in zip(runs, estimates, strict=True)}
    for run, estimate in different.values() if has_to_fit else ():
        doubts += [str(problem) for problem in refuse_what_does_not_fit(run, estimate)]
    doubts += [f"cost: not known: {estimate.reason} (--quick leaves it out)" for estimate in estimates if estimate.reason]
    for doubt in dict.fromkeys(doubts):
        say(f"warning: {doubt}")


def print_table(described: list[dict[str, Any]]) -> None:
    """What differs most between runs, one line each."""
    costs: dict[str, Any] = next((run["cost"] for run in described if run.get("cost")), {})
    names = ["run_id", "global_batch_size", "steps_per_epoch", "total_steps", *costs]
    rows = [[_text(_flat(run).get(name, _flat(run).get(f"cost/{name}"))) for name in names] for run in described]
    show(aligned([[_label(name) for name in names], *rows]))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _label(name: str) -> str:
    """As it is printed: what is true of a GPU says so."""
    return f"{name} (on a GPU)" if name.endswith("peak_memory_gib") else name


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
