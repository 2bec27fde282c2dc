"""`tclx results`: compare runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, aligned, print_json, say, show, wants_colour
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.report.results import Results

EXAMPLE = "Example:  tclx results quickstart --metric r_mean --csv quickstart.csv"


def results(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUNS]...", help=f"{RUNS_HELP}; all by default.")] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Show this metric, e.g. r_mean; may be repeated.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Split: test or val; test by default where available.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table to this CSV file.", dir_okay=False)
    ] = None,
    intervals: Annotated[
        bool | None,
        typer.Option(
            "--intervals/--no-intervals",
            help="95 % intervals in every cell; or in none, and what each query reached is not read. By default where there is "
            "one seed.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: one row per experiment and variant, mean and sample deviation over seeds, 95 % intervals.

    The best of a column is marked where it is beyond chance and beyond noise of every other row. The trials of a sweep are rows
    where the sweep is named.
    """
    from tclx.found import find
    from tclx.report import results as tables

    found = find(runs or [], runs_dir=runs_dir)
    runs_read = tables.read_runs(found.selection)
    summary = tables.summarise(runs_read, metrics=metric or [], split=split, intervals=intervals is not False)
    if csv is not None:
        tables.write_csv(summary, csv)
    if as_json:
        print_json(tables.as_json(summary))
    else:
        print_results(summary, intervals=bool(intervals))
        if not found.folders and not found.notes:
            say(f"no runs in {runs_dir}; choose another folder with --runs-dir")
    for note in found.notes:
        say(note)


def print_results(summary: Results, *, intervals: bool = False) -> None:
    """The table to stdout (bold or `*`: the best of a column), then what is missing, to stderr.

    Args:
        summary: what was found.
        intervals: shown where there are several seeds, too.
    """
    from tclx.launch.watch import describe

    if summary.rows:
        print_table(summary, intervals=intervals)
    for note in summary.notes:
        say(note)
    for run in summary.unfinished:
        say(f"not in the table: {run.run_id} {describe(run.status)}")


def print_table(summary: Results, *, intervals: bool = False) -> None:
    """Aligned text, however wide; on a terminal rich tables, one below the other where it is too narrow for all metrics."""
    head, *rows = _cells(summary, intervals)
    said = f"{summary.tasks} on {summary.split} (mean ± deviation over seeds, [95 % interval]"
    best = "best, beyond noise of every other row and chance"
    if not sys.stdout.isatty():
        show(f"{said}; * {best})")
        marked = [[row[0].text, row[1].text, *(f"{cell.text}{'*' if cell.best else ' '}" for cell in row[2:])] for row in rows]
        show(aligned([[cell.text for cell in head], *marked]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(no_color=not wants_colour(sys.stdout))
    console.print(Text(one_line(f"{said}; bold: {best})")))
    columns = list(zip(*[head, *rows], strict=True))
    for shown in _fitting(columns, console.width):
        table = Table()
        for position, column in enumerate(shown):
            table.add_column(Text(column[0].text), justify="right" if position else "left", no_wrap=True)
        for cells in list(zip(*shown, strict=True))[1:]:
            table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
        console.print(table)


class _Cell(NamedTuple):
    text: str
    best: bool = False


def _fitting(columns: Sequence[Sequence[_Cell]], width: int) -> Iterator[list[Sequence[_Cell]]]:
    """The first two columns with as many of the others as a line holds, until all have been shown."""
    widths = [max(len(cell.text) for cell in column) + 3 for column in columns]
    line, used = list(columns[:2]), sum(widths[:2]) + 1
    for column, needed in zip(columns[2:], widths[2:], strict=True):
        if used + needed > width and len(line) > 2:
            yield line
            line, used = list(columns[:2]), sum(widths[:2]) + 1
        line.append(column)
        used += needed
    yield line


def _cells(summary: Results, intervals: bool) -> list[list[_Cell]]:
    from tclx.report.results import column_title, format_chance, format_spread, winners

    best = winners(summary)
    head = [_Cell(one_line(name)) for name in ("experiment", "seeds", *(column_title(metric) for metric in summary.metrics))]
    rows = [
        [
            _Cell(one_line(row.label)),
            _Cell(str(len(row.runs))),
            *(
                _Cell(format_spread(row.metrics.get(metric), intervals=intervals), best.get(metric) == index)
                for metric in summary.metrics
            ),
        ]
        for index, row in enumerate(summary.rows)
    ]
    chance = [_Cell("chance"), _Cell(""), *(_Cell(format_chance(summary, metric)) for metric in summary.metrics)]
    return [head, *rows, *([chance] if any(row.chance for row in summary.rows) else [])]
