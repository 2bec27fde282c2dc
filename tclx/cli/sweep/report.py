"""`tclx sweep report`: one page about a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, show
from tclx.cli.sweep.study import StudyName, WhichVariant, one_of, opened

EXAMPLE = "Example:  tclx sweep report loss-weights -o loss-weights.html"


def report(
    sweep: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file; NAME.html by default.", dir_okay=False)
    ] = None,
    variant: WhichVariant = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write one HTML page: what won, what was confirmed, what mattered, every trial. It opens from the file, without a network.

    Of a sweep over variants the ablation: each variant at its best, side by side; `--variant` is the page of one search.
    """
    from tclx.sweep.ablation_page import write_sweep_report

    parts = opened(sweep, runs_dir)
    parts = [one_of(parts, variant)] if variant is not None else parts
    output = output or Path(f"{parts[0].sweep.title if variant else parts[0].sweep.spec.name}.html")
    write_sweep_report(parts, output)
    show(str(output))
