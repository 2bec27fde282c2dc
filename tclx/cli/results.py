"""`tclx results`: compare runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tclx.cli.completion import complete_metrics, complete_names, complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, aligned, print_json, say, show, wants_colour
from tclx.errors import InputError, Problem
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.report.comparison import Side
    from tclx.report.latex import Cell
    from tclx.report.results import Results, RunResult

ShownMetrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", metavar="NAME", help="Show this metric, e.g. r_mean; may be repeated.", autocompletion=complete_metrics
    ),
]
ShownSplit = Annotated[
    str | None, typer.Option("--split", metavar="NAME", help="Split: test or val; test by default where available.")
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table to this CSV file.", dir_okay=False)
]

EXAMPLE = "Example:  tclx results quickstart --metric r_mean --csv quickstart.csv"


def results(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS]...", help=f"{RUNS_HELP}; all by default.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    metric: ShownMetrics = None,
    split: ShownSplit = None,
    csv: CsvFile = None,
    intervals: Annotated[
        bool | None,
        typer.Option(
            "--intervals/--no-intervals",
            help="95 % intervals in every cell; or in none, and what each query reached is not read. By default where there is "
            "one seed.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="A",
            help="Show differences from A, a run or an experiment, with 95 % intervals.",
            autocompletion=complete_runs,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="NAME OP VALUE",
            help='Only runs of which this is true, e.g. "objectives.lmi.weight > 0.1": a key, a metric, run_id, status or '
            "step, and one of = != < <= > >=; may be repeated.",
            autocompletion=complete_names,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort", metavar="NAME", help="Rows by a metric, the best first, or by a key.", autocompletion=complete_names
        ),
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print the table for a paper: LaTeX with booktabs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs: one row per experiment and variant, mean and sample deviation over seeds, 95 % intervals.

    The best of a column is marked where it is beyond chance and beyond noise of every other row. The trials of a sweep are rows
    where the sweep is named.
    """
    from tclx.found import find
    from tclx.report import results as tables

    if latex and as_json:
        raise InputError(Problem("--latex", "is at odds with --json: stdout has one of them"))
    found = find(runs or [], runs_dir=runs_dir)
    runs_read = tables.read_runs(found.selection)
    if where:
        runs_read = _chosen(runs_read, where, split)
    wanted = (metric or []) if runs_read else []  # of no runs none has a metric
    summary = tables.summarise(runs_read, metrics=wanted, split=split, intervals=intervals is not False)
    if sort is not None:
        from tclx.report.conditions import ordered

        summary = ordered(summary, sort)
    base = None
    if against is not None:
        from tclx.report import comparison

        asked = comparison.Asked(against, tables.read_runs(find([against], runs_dir=runs_dir).selection))
        base = comparison.side(asked, metrics=metric or [], split=summary.split)
    if csv is not None:
        tables.write_csv(summary, csv)
    if as_json:
        print_json(as_tree(summary, base))
    else:
        print_results(summary, intervals=bool(intervals), against=base, latex=latex)
        if not found.folders and not found.notes:
            say(f"no runs in {runs_dir}; choose another folder with --runs-dir")
        elif where and not runs_read:
            say(f"none of {len(found.folders):,} runs has {' and '.join(where)}")
    for note in found.notes:
        say(note)


def _chosen(runs: Sequence[RunResult], where: Sequence[str], split: str | None) -> list[RunResult]:
    from tclx.report.conditions import chosen, condition

    return chosen(runs, [condition(text) for text in where], split=split)


def as_tree(summary: Results, against: Side | None) -> dict[str, Any]:
    """Results for machines, with differences where they are asked for."""
    from tclx.report.results import as_json

    if against is None:
        return as_json(summary)
    from tclx.report.comparison import with_differences

    return with_differences(summary, against)


def print_results(summary: Results, *, intervals: bool = False, against: Side | None = None, latex: bool = False) -> None:
    """The table to stdout (bold or `*`: the best of a column), or one for each kind of rows that share no metric; then what is
    missing, to stderr.

    Args:
        summary: what was found.
        intervals: shown where there are several seeds, too.
        against: what differences are taken from, which are shown then (bold or `*`: beyond noise).
        latex: for a paper.
    """
    from tclx.launch.watch import describe
    from tclx.report.results import apart

    if summary.rows and against is not None:
        print_table(_differences(summary, against), latex=latex)
    elif summary.rows:
        for part in apart(summary):
            print_table(_cells(part, intervals), latex=latex)
    for note in summary.notes:
        say(note)
    for run in summary.unfinished:
        say(f"not in the table: {run.run_id} {describe(run.status)}")


class Shown(NamedTuple):
    """A table as it is printed."""

    title: str
    mark: str
    """What bold or `*` means."""
    rows: list[list[Cell]]
    """The head first."""
    foot: list[list[Cell]]


def print_table(shown: Shown, *, latex: bool = False) -> None:
    """Aligned text, however wide; on a terminal rich tables, one below the other where it is too narrow for all metrics."""
    head, *rows = [*shown.rows, *shown.foot]
    if latex:
        from tclx.report.latex import latex_table

        show(latex_table(shown.rows, said=one_line(f"{shown.title}; bold: {shown.mark}"), foot=shown.foot))
        return
    if not sys.stdout.isatty():
        show(f"{shown.title}; * {shown.mark}")
        marked = [
            [row[0].text, row[1].text, *(f"{cell.text}{'*' if cell.marked else ' '}" for cell in row[2:])] for row in rows
        ]
        show(aligned([[cell.text for cell in head], *marked]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(no_color=not wants_colour(sys.stdout))
    console.print(Text(one_line(f"{shown.title}; bold: {shown.mark}")))
    columns = list(zip(*[head, *rows], strict=True))
    for fitting in _fitting(columns, console.width):
        table = Table()
        for position, column in enumerate(fitting):
            table.add_column(Text(column[0].text), justify="right" if position else "left", no_wrap=True)
        for cells in list(zip(*fitting, strict=True))[1:]:
            table.add_row(*(Text(cell.text, style="bold" if cell.marked else "") for cell in cells))
        console.print(table)


def _fitting(columns: Sequence[Sequence[Cell]], width: int) -> Iterator[list[Sequence[Cell]]]:
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


def _cells(summary: Results, intervals: bool) -> Shown:
    from tclx.report.latex import Cell
    from tclx.report.results import format_chance, format_spread, winners

    best = winners(summary)
    rows = [
        [
            Cell(one_line(row.label)),
            Cell(str(len(row.runs))),
            *(
                Cell(format_spread(row.metrics.get(metric), intervals=intervals), best.get(metric) == index)
                for metric in summary.metrics
            ),
        ]
        for index, row in enumerate(summary.rows)
    ]
    chance = [Cell("chance"), Cell(""), *(Cell(format_chance(summary, metric)) for metric in summary.metrics)]
    title = f"{summary.tasks} on {summary.split} (mean ± deviation over seeds, [95 % interval])"
    mark = "best, beyond noise of every other row and chance"
    return Shown(title, mark, [_head(summary), *rows], [chance] if any(row.chance for row in summary.rows) else [])


def _differences(summary: Results, base: Side) -> Shown:
    """What every other row has more or less than the base, which is the last line with its own numbers."""
    from tclx.report.comparison import differences_from, format_difference
    from tclx.report.latex import Cell
    from tclx.report.results import format_spread

    rows = []
    for row, found in zip(summary.rows, differences_from(base, summary), strict=True):
        if row.runs == base.row.runs:
            continue
        cells = [
            Cell(format_difference(one), one.verdict in ("better", "worse")) if (one := found.get(metric)) else Cell("-")
            for metric in summary.metrics
        ]
        rows.append([Cell(one_line(row.label)), Cell(str(len(row.runs))), *cells])
    own = (Cell(format_spread(base.row.metrics.get(metric))) for metric in summary.metrics)
    foot = [Cell(one_line(f"{base.name} itself")), Cell(str(len(base.row.runs))), *own]
    title = f"{summary.tasks} on {summary.split}, differences from {one_line(base.name)} ([95 % interval])"
    return Shown(title, "beyond noise", [_head(summary), *rows], [foot])


def _head(summary: Results) -> list[Cell]:
    from tclx.report.latex import Cell
    from tclx.report.results import column_title

    return [Cell(one_line(name)) for name in ("experiment", "seeds", *(column_title(metric) for metric in summary.metrics))]
