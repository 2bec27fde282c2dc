"""`tclx sweep plan`: what a sweep would try."""

from __future__ import annotations

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
    for number, (variant, plan) in enumerate(found.items()):
        if variant is not None:
            show(("\n" if number else "") + f"{variant}:")
        show(aligned([(name, str(value)) for name, value in plan.items() if name != "space"]))
        show()
        rows = [[row["key"], row["range"], row["baseline"]] for row in plan["space"]]
        show(aligned([["key", "range", "the experiment's"], *rows]))
