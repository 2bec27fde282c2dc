"""`tclx eval`: evaluate a run or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import AsJson, Overrides, print_json

EXAMPLE = "Example:  tclx eval runs/quickstart-s0-1a2b3c4d --split test"


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run folder, a checkpoint folder or an official .pth.")],
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="SPEC", help="What to evaluate and on which data; a run's own by default.")
    ] = None,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="test or val.")] = "test",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="WHICH", help="Of a run folder: best, last or a step.")
    ] = "best",
    as_json: AsJson = False,
) -> None:
    """Evaluate zero-shot image-text retrieval of a run, a checkpoint or official weights.

    A run's figures are also written to its evaluation folder, where `tclx results` finds them.
    """
    from tclx.eval.checkpoint import evaluate_target

    evaluation = evaluate_target(target, split=split, checkpoint=checkpoint, spec_path=spec, overrides=overrides or [])
    if as_json:
        print_json(evaluation)
        return
    for name, value in evaluation["metrics"].items():
        print(f"{name}  {value:.2f}")
