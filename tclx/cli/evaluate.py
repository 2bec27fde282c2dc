"""`tclx eval`: evaluate a run or a checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, Overrides, RunsDir, aligned, print_json, show

EXAMPLE = "Example:  tclx eval runs/quickstart-s0-68463135 --split test"


class Split(StrEnum):
    """What can be evaluated on."""

    TEST = "test"
    VAL = "val"


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run (folder, id or unique name), a checkpoint folder, or an official .pth.",
            autocompletion=complete_runs,
        ),
    ],
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="SPEC", help="Spec with model and data; the run's own by default.")
    ] = None,
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option("--split", help="Split to evaluate.")] = Split.TEST,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="WHICH", help="Checkpoint of a run: best, last or a step.")
    ] = "best",
    as_json: AsJson = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Evaluate a run, a checkpoint or official weights.

    Every task of the spec's evaluation; retrieval where it names none. What a run's best weights reach on its own spec is also
    written to the run folder, where `tclx results` finds it.
    """
    from tclx.found import saved_or_run
    from tclx.use.saved import evaluate_saved

    found = saved_or_run(target, runs_dir=runs_dir)
    evaluation = evaluate_saved(found, split=split.value, which=checkpoint, spec_path=spec, overrides=overrides or [])
    if as_json:
        print_json(evaluation)
        return
    show(aligned([(name, f"{value:.2f}") for name, value in evaluation["metrics"].items()]))
