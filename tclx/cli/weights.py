"""`tclx weights`: official TCL and ALBEF checkpoints in, and out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say

EXAMPLE = "Example:  tclx weights import TCL_4M.pth tcl-4m.safetensors"

app = typer.Typer(no_args_is_help=True, help="Read and write official TCL and ALBEF checkpoints.", epilog=EXAMPLE)


class Form(StrEnum):
    """Which official script reads it."""

    PRETRAIN = "pretrain"
    RETRIEVAL = "retrieval"
    ENTAILMENT = "entailment"
    NLVR = "nlvr"
    VQA = "vqa"


@app.command("import", epilog=EXAMPLE)
def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="An official checkpoint; nothing in it is executed.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Output file, for init.checkpoint.")],
) -> None:
    """Translate an official checkpoint into tclx's names, as safetensors."""
    from tclx.model.weights import import_official, write_tensors

    tensors = import_official(file, key="FILE.pth")
    write_tensors(output, tensors)
    say(f"wrote {len(tensors)} tensors to {output}")
    if not any(name.startswith("momentum.") for name in tensors):
        say("it has no momentum encoders: what starts from it begins them as the online ones")


@app.command("export", epilog="Example:  tclx weights export runs/quickstart-s0-68463135 tcl.pth --form pretrain")
def export_weights(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run (folder, id or unique name) or a checkpoint folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.pth", help="Output file.")],
    form: Annotated[Form, typer.Option("--form", help="Official script that will load it.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write a run's best weights as an official checkpoint."""
    from tclx.found import saved_or_run
    from tclx.use.saved import export_saved

    export_saved(saved_or_run(run, runs_dir=runs_dir), output, form=form.value)
    say(f"wrote {output}")
