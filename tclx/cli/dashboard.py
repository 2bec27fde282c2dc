"""`tclx dashboard`: a W&B workspace for an experiment's runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import Overrides, say
from tclx.errors import InputError, Problem

EXAMPLE = "Example:  tclx dashboard experiments/quickstart.yaml --out workspace.json"


def dashboard(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment file with tracking.wandb.")],
    overrides: Overrides = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", metavar="KEY", help="A sweep's key, for its panels; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write its JSON and ask no server.")] = None,
) -> None:
    """Make or update the W&B workspace of an experiment: losses side by side, bounds, health, retrieval, speed.

    The workspace shows the runs of the experiment's group. The same command replaces it.
    """
    from tclx.spec.load import load_experiments
    from tclx.track.dashboard import build_workspace, save, serialised

    first = load_experiments(spec, overrides or [])[0].spec
    wandb = first.tracking.wandb
    if wandb is None:
        raise InputError(Problem("tracking.wandb", f"{spec} does not use W&B", "name a project there"))
    entity = wandb.entity or os.environ.get("WANDB_ENTITY")
    if entity is None:
        raise InputError(Problem("tracking.wandb.entity", "a workspace needs an owner", "name it, or set WANDB_ENTITY"))
    workspace = build_workspace(first, entity=entity, parameters=parameters or [])
    if out is not None:
        out.write_text(serialised(workspace) + "\n", encoding="utf-8")
        say(f"wrote {out}")
        return
    print(save(workspace))
