"""`tclx sweep plan`: what a sweep would try."""

from __future__ import annotations

from typing import Any

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, say, show
from tclx.cli.run import BackendChoice
from tclx.cli.sweep.study import SweepFile

EXAMPLE = "Example:  tclx sweep plan sweeps/loss_weights.yaml"


def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    backend: BackendChoice = None,
    as_json: AsJson = False,
) -> None:
    """Check a sweep and print what it would try; nothing is begun."""
    from tclx.sweep.load import load_sweeps
    from tclx.sweep.planning import plan_of
    from tclx.sweep.working import say_doubts

    checked = load_sweeps(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    say_doubts(checked, say=say)
    found = {one.part: plan_of(one) for one in checked}
    warnings = list(dict.fromkeys(warning for one in checked for warning in one.warnings))
    if as_json:
        plans = found[None] if None in found else {"name": checked[0].spec.name, "variants": found}
        print_json({**plans, "warnings": warnings})
        return
    first, *others = found.values()
    shared = [name for name in first if name != "space" and all(plan[name] == first[name] for plan in others)]
    if others:
        show(f"each of {len(found)} variants:")
    show(aligned([(name, str(first[name])) for name in shared]))
    show()
    show(aligned(_space(first) if None in found else _spaces(found)))


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
