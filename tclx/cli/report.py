"""`tclx report`: one page that shows runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say, show

EXAMPLE = "Example:  tclx report experiments/ablation/scenes.yaml -o ablation.html"


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|GROUP|EXPERIMENT...", help="Run folders or ids, groups of runs, experiment files."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.", dir_okay=False)] = Path(
        "report.html"
    ),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="test or val; test where there is one.")] = None,
) -> None:
    """Write one HTML page about runs: curves, table, health, examples, cost, and how to get them again.

    It opens from the file, needs no network and follows the reader's light or dark mode.
    """
    from tclx.report.write import write_report

    material = write_report(runs, output, runs_dir=runs_dir, split=split)
    for gap in material.selection.gaps:
        say(gap)
    say(f"{len(material.runs)} runs in {len(material.groups)} groups")
    show(str(output))
