"""Rows of results beside each other on a page: their table, and every seed beside its row's mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tclx.metrics import main_metrics
from tclx.report import figures
from tclx.report.markup import Html, bold, figure, table, text
from tclx.report.page import Style
from tclx.report.results import Results, column_title, format_chance, format_spread, winners


def metrics_table(results: Results, labels: Sequence[str], *, heading: str = "") -> Iterator[Html]:
    """The final metrics, with what is bold in them.

    Args:
        results: with a row at least.
        labels: one a row.
        heading: of the labels.
    """
    best = winners(results)
    rows = []
    for index, (label, row) in enumerate(zip(labels, results.rows, strict=True)):
        shown = {metric: format_spread(row.metrics.get(metric), intervals=True) for metric in results.metrics}
        cells = (bold(cell) if best.get(metric) == index else cell for metric, cell in shown.items())
        rows.append([label, str(len(row.runs)), *cells])
    if any(row.chance for row in results.rows):
        rows.append(["chance", "", *(format_chance(results, metric) for metric in results.metrics)])
    yield text(
        f"{results.tasks.capitalize()} on {results.split}, in percent: mean ± sample deviation over seeds and its 95 % "
        "interval over queries and seeds; bold is the best of a column where it is beyond chance and beyond noise of every "
        "other row."
    )
    yield table([heading, "seeds", *map(column_title, results.metrics)], rows)


def seed_dots(results: Results, labels: Sequence[str], styles: Mapping[str, Style]) -> Iterator[Html]:
    """A figure for each of the first metrics that stand out; arguments as in `metrics_table`."""
    for metric in [name for name in main_metrics() if name in results.metrics][:3]:
        rows = {label: row for label, row in zip(labels, results.rows, strict=True) if metric in row.metrics}
        values = {label: row.samples[metric].values for label, row in rows.items()}
        if sum(map(len, values.values())) < 2:
            continue  # a dot alone shows nothing
        spreads = {label: row.metrics[metric] for label, row in rows.items()}
        caption = "Each dot is a seed; the diamond is their mean ± sample deviation."
        plot = figures.dots(values, spreads, styles)
        height = 50 + 34 * len(values)
        yield figure(plot, title=f"{column_title(metric)} on {results.split}, %", caption=caption, height=height)
