"""`tclx export`: a trained model for elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say, show
from tclx.cli.weights import Form

EXAMPLE = "Example:  tclx export runs/quickstart-s0-68463135 --to safetensors -o quickstart-model"


class To(StrEnum):
    """What it is written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    OFFICIAL = "official"


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run (folder, id or unique name), or a checkpoint folder.", autocompletion=complete_runs
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder, new or empty.")],
    to: Annotated[To, typer.Option("--to", help="safetensors is what tclx.load reads; onnx both encoders.")] = To.SAFETENSORS,
    form: Annotated[Form | None, typer.Option("--form", help="Official script that will load it; by the task.")] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write a run's best weights with tokenizer, preprocessing and a model card into a folder of their own."""
    from tclx.use.export import export as write

    for path in write(run, output, to=to.value, form=None if form is None else form.value, runs_dir=runs_dir):
        say(path.name)
    show(str(output))
