"""`tclx sweep table`: the ablation, each variant at its best."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, aligned, print_json, say, show
from tclx.cli.results import CsvFile, ShownMetrics, ShownSplit, print_results
from tclx.cli.sweep.study import StudyName, opened
from tclx.errors import InputError, Problem

EXAMPLE = "Example:  tclx sweep table scenes-ablation-tuned --latex"


def table(
    sweep: StudyName,
    metric: ShownMetrics = None,
    split: ShownSplit = None,
    csv: CsvFile = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print the tables for a paper: LaTeX with booktabs.")] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: AsJson = False,
) -> None:
    """Print the ablation of a sweep over variants: each at its best, over the same fresh seeds.

    Then what each has more or less than the full model, the variant with the most terms, paired over seeds and queries, with
    95 % intervals; and the settings that each is at its best with.
    """
    from tclx.report.results import write_csv
    from tclx.sweep.ablation import Ablation, ablation_of

    if latex and as_json:
        raise InputError(Problem("--latex", "is at odds with --json: stdout has one of them"))
    ablation: Ablation = ablation_of(opened(sweep, runs_dir), metrics=metric or [], split=split)
    if csv is not None:
        write_csv(ablation.results, csv)
    if as_json:
        print_json(as_tree(ablation))
    else:
        print_results(ablation.results, latex=latex)
        if ablation.full is not None and len(ablation.variants) > 1:
            show()
            print_results(ablation.results, against=ablation.full, latex=latex)
        if not latex:
            show()
            show(aligned(settings_table(ablation)))
    for note in ablation.notes:
        say(note)


def settings_table(ablation: Any) -> list[list[str]]:
    """A row a variant: the trial that stands for it, and its values."""
    from tclx.spec.difference import shortest_ending
    from tclx.sweep.ablation import settings
    from tclx.sweep.metrics import as_text

    found = settings(ablation)
    heading = ["variant", "trial", *(shortest_ending(key, list(found)) for key in found), "why"]
    rows = [
        [one.name, str(one.trial), *("-" if (value := found[key][place]) is None else as_text(value) for key in found), one.how]
        for place, one in enumerate(ablation.variants)
    ]
    return [heading, *rows]


def as_tree(ablation: Any) -> dict[str, Any]:
    """The ablation for machines."""
    from tclx.cli.results import as_tree as results_tree

    variants = [
        {"variant": one.name, "trial": one.trial, "how": one.how, "values": one.values, "runs": list(one.runs)}
        for one in ablation.variants
    ]
    return {**results_tree(ablation.results, ablation.full), "variants": variants, "notes": list(ablation.notes)}
