"""`tclx compare`: is B better than A?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, aligned, print_json, say, show

if TYPE_CHECKING:
    from tclx.report.comparison import Comparison

EXAMPLE = "Example:  tclx compare scenes-ablation-cma scenes-ablation-cma+imc --metric text_to_image/r1"

_SIDE = "a run, an experiment, EXPERIMENT-VARIANT, or the file of one"


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=f"What is compared with: {_SIDE}.", autocompletion=complete_runs)],
    second: Annotated[str, typer.Argument(metavar="B", help=f"What may be better: {_SIDE}.", autocompletion=complete_runs)],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Compare this metric, e.g. r_mean; may be repeated.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Split: test or val; test by default where both have it.")
    ] = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Compare two: how much better is B than A, and is that more than noise?

    Differences are paired over queries, and over seeds where both have the same; their 95 % intervals need no model, only what
    each query reached. Below the table stands the sentence that a paper would print.
    """
    from tclx.found import find
    from tclx.report import comparison as comparing
    from tclx.report.results import read_runs

    found = [find([name], runs_dir=runs_dir) for name in (first, second)]
    names = comparing.short_names(first, second)
    sides = [comparing.Asked(name, read_runs(one.selection)) for name, one in zip(names, found, strict=True)]
    compared = comparing.compare(*sides, metrics=metric or [], split=split)
    if as_json:
        print_json(comparing.as_json(compared))
    else:
        print_comparison(compared)
    for note in (*compared.notes, *found[0].notes, *found[1].notes):
        say(note)


def print_comparison(compared: Comparison) -> None:
    """Who is who, the table, the sentences."""
    from tclx.report.comparison import format_signed, sentences
    from tclx.report.results import column_title

    for letter, side in (("A", compared.first), ("B", compared.second)):
        seeds = ", ".join(str(run.seed) for run in side.row.runs)
        show(f"{letter}  {side.name}: {side.row.label}, seed{'' if len(side.row.runs) == 1 else 's'} {seeds}")
    show()
    rows = [
        [
            column_title(one.metric),
            f"{one.first:.1f}",
            f"{one.second:.1f}",
            f"{one.difference:+z.1f}",
            format_signed(one.interval) if one.interval is not None else "-",
            one.verdict if one.interval is not None else "not known",
            f"{compared.first.row.chance[one.metric]:.1f}" if one.metric in compared.first.row.chance else "-",
        ]
        for one in compared.differences
    ]
    show(aligned([[f"on {compared.split}", "A", "B", "B - A", "95 % interval", "B is", "chance"], *rows]))
    show()
    for line in sentences(compared):
        show(line)
