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
    from tclx.sweep.load import load_sweep
    from tclx.sweep.planning import plan_of
    from tclx.sweep.working import say_doubts

    checked = load_sweep(sweep, overrides or [], runs_dir=runs_dir, backend=backend.value if backend else None)
    say_doubts(checked, say=say)
    found = plan_of(checked)
    if as_json:
        print_json({**found, "warnings": list(checked.warnings)})
        return
    show(aligned([(name, str(value)) for name, value in found.items() if name != "space"]))
    show()
    show(
        aligned(
            [["key", "range", "the experiment's"], *([row["key"], row["range"], row["baseline"]] for row in found["space"])]
        )
    )
