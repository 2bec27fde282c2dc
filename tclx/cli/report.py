"""`tclx report`: one page that shows runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, RunsDir, say, show

EXAMPLE = "Example:  tclx report quickstart -o quickstart.html"


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|EXPERIMENT|SWEEP...", help=f"{RUNS_HELP}.", autocompletion=complete_runs),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Output file.", dir_okay=False)] = Path(
        "report.html"
    ),
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Split: test or val; test by default where available.")
    ] = None,
) -> None:
    """Write one HTML page about runs: curves, table, health, examples, cost, and how to get them again.

    It opens from the file, needs no network and follows the reader's light or dark mode.
    """
    from tclx.found import find
    from tclx.report.write import write_report

    found = find(runs, runs_dir=runs_dir)
    material = write_report(found.selection, output, split=split)
    for note in found.notes:
        say(note)
    num_runs, num_rows = len(material.runs), len(material.groups)
    say(f"{num_runs} run{'s' * (num_runs != 1)} in {num_rows} row{'s' * (num_rows != 1)}")
    show(str(output))
