"""`tclx plan`: what would run, and what it would cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, say, show
from tclx.cli.run import BackendChoice, say_warnings, with_backend

if TYPE_CHECKING:
    from tclx.launch.order import PlannedRun
    from tclx.spec.data import TokenizerSpec

EXAMPLE = "Example:  tclx plan experiments/pretrain/tcl_4m.yaml --without-data --json"


def plan(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Experiment files.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the cost, whose estimate has to import torch.")] = False,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="Count from `approximate_rows` where the data is not on this machine.")
    ] = False,
    backend: BackendChoice = None,
    script: Annotated[bool, typer.Option("--script", help="Print the sbatch script instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what would run: steps, sizes, run ids, cost.

    Nothing is started and no GPU is needed. What is wrong with the specs is printed at once, all of it.
    """
    from tclx.launch.order import plan_runs

    runs = plan_runs(specs, with_backend(overrides, backend), runs_dir=runs_dir, without_data=without_data)
    if script:
        from tclx.launch.submit import script_of

        show(script_of(runs, runs_dir=runs_dir), end="")
        return
    say_warnings(runs)
    if not without_data:  # which plans for another machine, with another cache
        from tclx.launch.downloads import check_downloads

        for line in check_downloads([run.spec for run in runs], with_image=not quick):
            say(f"warning: {line}")
    described = [describe(run, with_cost=not quick) for run in runs]
    if as_json:
        print_json([{**one, "warnings": list(run.warnings)} for one, run in zip(described, runs, strict=True)])
    elif len(runs) == 1:
        show(aligned([(name, _text(value)) for name, value in _flat(described[0]).items()]))
    else:
        print_table(described)


def describe(run: PlannedRun, *, with_cost: bool) -> dict[str, Any]:
    """A run's plan, the run it starts from and, if asked for, its cost."""
    from tclx.launch.order import without_first_weights

    described = {**run.plan.to_json(), "starts_from": run.needs}
    if with_cost:
        from tclx.model.cost import estimate_cost

        spec = without_first_weights(run.spec)
        described["cost"] = asdict(estimate_cost(spec, run.plan, vocab_size=_vocab_size(run.spec.data.tokenizer)))
    return described


def _vocab_size(tokenizer: TokenizerSpec) -> int:
    """Words of the tokenizer: the upper bound for one that is yet to be trained; known names need no download."""
    from tclx.data.tokenizer import build_tokenizer
    from tclx.model.text import KNOWN_SIZES
    from tclx.spec.data import TrainedTokenizer

    if isinstance(tokenizer, TrainedTokenizer):
        return tokenizer.vocab_size
    if tokenizer.name in KNOWN_SIZES:
        return 28996 if tokenizer.name.endswith("-cased") else 30522
    return build_tokenizer(tokenizer, ()).vocab_size


def print_table(described: list[dict[str, Any]]) -> None:
    """What differs most between runs, one line each."""
    names = ["run_id", "global_batch_size", "steps_per_epoch", "total_steps", *described[0].get("cost", {})]
    rows = [[_text(_flat(run).get(name, _flat(run).get(f"cost/{name}"))) for name in names] for run in described]
    show(aligned([names, *rows]))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
