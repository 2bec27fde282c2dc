"""`tclx sweep report`: one page about a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, show
from tclx.cli.sweep.study import StudyName, opened

EXAMPLE = "Example:  tclx sweep report loss-weights -o loss-weights.html"


def report(
    sweep: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file; NAME.html by default.", dir_okay=False)
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write one HTML page: what won, what mattered, every trial. It opens from the file and needs no network."""
    from tclx.sweep.report import write_sweep_report

    parts = opened(sweep, runs_dir)
    output = output or Path(f"{parts[0].sweep.spec.name}.html")
    write_sweep_report(parts, output)
    show(str(output))
