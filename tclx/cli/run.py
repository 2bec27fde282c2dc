"""`tclx run`: train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, Overrides, RunsDir, say

EXAMPLE = "Example:  tclx run experiments/quickstart.yaml --set training.epochs=2"


def run(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Experiment files.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    again: Annotated[
        bool, typer.Option("--again", help="Train from scratch what is there already; the old run folder is kept beside.")
    ] = False,
) -> None:
    """Train and evaluate every run of the specs, one after the other, and print their results.

    Ctrl-C saves; the same command continues. A finished run is reported, never trained again unless you say --again.
    """
    from tclx.cli.results import print_results
    from tclx.eval.results import read_run, summarise
    from tclx.launch.local import launch
    from tclx.launch.order import plan_runs

    outcomes = launch(plan_runs(specs, overrides or [], runs_dir=runs_dir), runs_dir=runs_dir, again=again, say=say)
    made = [read_run(outcome.folder.path) for outcome in outcomes if outcome.folder.spec.exists()]
    print_results(summarise(made))
    code = next((outcome.exit_code for outcome in reversed(outcomes) if outcome.exit_code), 0)
    raise typer.Exit(code)
