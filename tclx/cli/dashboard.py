"""`tclx dashboard`: a W&B workspace for the runs of an experiment, a sweep or a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, Overrides, RunsDir, say, show

EXAMPLE = "Example:  tclx dashboard my-group --out workspace.json"


def dashboard(
    target: Annotated[
        str,
        typer.Argument(metavar="SPEC|SWEEP|GROUP", help="An experiment or sweep file, a W&B group, or what runs are called."),
    ],
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the workspace's JSON to this file, without contacting a server."),
    ] = None,
) -> None:
    """Make or update the W&B workspace of a group of runs: losses side by side, bounds, health, retrieval, speed.

    The group is an experiment's, or a sweep's, whose parameters come first; a group's name or a run is looked for among the
    run folders. The same command replaces the workspace.
    """
    from tclx.track.wandb.workspace import save, serialised
    from tclx.use.workspace import workspace_of

    workspace = workspace_of(target, overrides=overrides or [], runs_dir=runs_dir)
    if out is not None:
        out.write_text(serialised(workspace) + "\n", encoding="utf-8")
        say(f"wrote {out}")
        return
    show(save(workspace))
