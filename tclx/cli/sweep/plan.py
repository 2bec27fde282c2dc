"""`tclx sweep plan`: what a sweep would try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, say, show
from tclx.cli.plan import print_expected
from tclx.cli.run import BackendChoice
from tclx.cli.sweep.study import SweepFile

if TYPE_CHECKING:
    from tclx.report.expected import Expected

EXAMPLE = "Example:  tclx sweep plan sweeps/loss_weights.yaml"


def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip what it will take, which imports torch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a sweep and print what it would try, and what that will take; nothing is begun."""
    from tclx.sweep.load import load_sweeps
    from tclx.sweep.planning import plan_of, trial_0
    from tclx.sweep.working import say_doubts

    checked = load_sweeps(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    say_doubts(checked, say=say)
    found = {one.part: plan_of(one) for one in checked}
    warnings = list(dict.fromkeys(warning for one in checked for warning in one.warnings))
    runs = [run for one in checked for run in trial_0(one)]
    expected: list[Expected] = []
    if not quick:
        from tclx.launch.costs import estimate_costs
        from tclx.report.expected import expect

        expected = expect(runs, estimate_costs(runs), runs_dir=runs_dir)
    if as_json:
        plans = found[None] if None in found else {"name": checked[0].spec.name, "variants": found}
        known = (
            {"expected": {run.plan.run_id: one._asdict() for run, one in zip(runs, expected, strict=True)}} if expected else {}
        )
        print_json({**plans, **known, "warnings": warnings})
        return
    first, *others = found.values()
    shared = [name for name in first if name != "space" and all(plan[name] == first[name] for plan in others)]
    if others:
        show(f"each of {len(found)} variants:")
    show(aligned([(name, str(first[name])) for name in shared]))
    show()
    show(aligned(_space(first) if None in found else _spaces(found)))
    if expected:
        print_expected(runs, expected, repeats=checked[0].spec.num_trials)
        if any(one.spec.pruner or one.spec.stop or one.spec.max_gpu_hours for one in checked):
            show("less where trials are pruned or the search ends early")
        if any(one.spec.confirm for one in checked):
            show("the confirmation comes on top")


def _space(plan: dict[str, Any]) -> list[list[str]]:
    rows = [[row["key"], row["range"], row["baseline"]] for row in plan["space"]]
    return [["key", "range", "the experiment's"], *rows]


def _spaces(plans: dict[Any, dict[str, Any]]) -> list[list[str]]:
    """A row a key, a column a variant with its own value, where it has the key; trial 0 of each below."""
    ranges = {row["key"]: row["range"] for plan in plans.values() for row in plan["space"]}
    own = [{row["key"]: row["baseline"] for row in plan["space"]} for plan in plans.values()]
    heading = ["key", "range", *(str(variant) for variant in plans)]
    rows = [[key, shown, *(values.get(key, "-") for values in own)] for key, shown in ranges.items()]
    return [heading, *rows, ["run id of trial 0", "", *(plan["run id of trial 0"] for plan in plans.values())]]
