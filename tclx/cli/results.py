"""`tclx results`: compare runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, aligned, print_json, say, wants_colour

if TYPE_CHECKING:
    from tclx.eval.results import Results

EXAMPLE = "Example:  tclx results tcl-ablation --metric r_mean --csv ablation.csv"


def results(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUNS]...", help="Run folders, run ids or experiment names; all by default.")
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Show this metric, e.g. r_mean; may be repeated.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="test or val; test where there is one.")] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table here.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: one row per experiment and variant, mean and sample deviation over seeds."""
    from tclx.eval import results as tables

    folders = tables.find_runs(runs or [], runs_dir=runs_dir)
    summary = tables.summarise((tables.read_run(folder) for folder in folders), metrics=metric or [], split=split)
    if csv is not None:
        tables.write_csv(summary, csv)
    if as_json:
        print_json(tables.as_json(summary))
    else:
        print_results(summary)
        if not folders:
            say(f"no runs in {runs_dir}; choose another folder with --runs-dir")


def print_results(summary: Results) -> None:
    """The table to stdout (bold or `*`: the best of a column), then the runs that are not finished, to stderr."""
    from tclx.eval.results import describe_state

    if summary.rows:
        print_table(summary)
    for run in summary.unfinished:
        say(f"not in the table: {run.run_id} {describe_state(run)}")


def print_table(summary: Results) -> None:
    """A rich table on a terminal; aligned text elsewhere, however wide."""
    head = ["experiment", "seeds", *(column_title(metric) for metric in summary.metrics)]
    if not sys.stdout.isatty():
        print(f"retrieval on {summary.split} (mean ± deviation over seeds; * best)")
        print(aligned([head, *_cells(summary, best="{}*", other="{} ")]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"retrieval on {summary.split} (mean ± deviation over seeds)", title_justify="left")
    for position, title in enumerate(head):
        table.add_column(title, justify="right" if position else "left", no_wrap=not position)
    for cells in _cells(summary, best="[bold]{}[/bold]", other="{}"):
        table.add_row(*cells)
    Console(no_color=not wants_colour(sys.stdout)).print(table)


def column_title(metric: str) -> str:
    """`dual/text_to_image/r1` -> `dual T2I R@1`."""
    short = {"text_to_image": "T2I", "image_to_text": "I2T", "median_rank": "median"}
    return " ".join(re.sub(r"^r(\d+)$", r"R@\1", short.get(word, word)) for word in metric.split("/"))


def _cells(summary: Results, *, best: str, other: str) -> list[list[str]]:
    from tclx.eval.results import best_rows, format_spread

    winners = best_rows(summary)
    return [
        [
            row.label,
            str(len(row.runs)),
            *(
                (best if winners.get(metric) == index else other).format(format_spread(row.metrics.get(metric)))
                for metric in summary.metrics
            ),
        ]
        for index, row in enumerate(summary.rows)
    ]
