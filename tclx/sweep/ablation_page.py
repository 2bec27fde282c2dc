"""The page of a sweep over variants: the ablation, each variant at its best, then each one's search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tclx.errors import InputError
from tclx.report.comparison import Difference, differences_from, format_difference
from tclx.report.markup import Html, bold, code, facts, grid, joined, table, text
from tclx.report.page import Page, styles
from tclx.report.results import column_title
from tclx.report.side_by_side import metrics_table, seed_dots
from tclx.sweep.ablation import Ablation, ablation_of, settings
from tclx.sweep.metrics import as_text
from tclx.sweep.parts import Part
from tclx.sweep.report import aims_of, best_blocks, build, confirmation_blocks, importance_blocks, made
from tclx.sweep.storage import quieten
from tclx.sweep.summary import summarise


def write_sweep_report(parts: Sequence[Part], output: Path) -> None:
    """Write or replace the page.

    Raises:
        MachineError: it cannot be written.
    """
    page = build(parts[0]) if len(parts) == 1 else build_ablation(parts)
    page.write(output)


def build_ablation(parts: Sequence[Part]) -> Page:
    """The page of a sweep over variants: side by side, then each one's search."""
    quieten()
    first = parts[0]
    page = Page(f"Ablation {first.sweep.spec.name}", lead=joined([made(first.folder), facts(_ablation_cards(parts))]))
    try:
        ablation = ablation_of(parts)
    except InputError as error:
        page.section("Each variant at its best", text(f"There is no table yet: {error.problems[0].message}.", kind="note"))
    else:
        page.section("Each variant at its best", *_side_by_side(ablation))
        page.section("Settings", *_settings(ablation))
    for part in parts:
        found = [*confirmation_blocks(part), *best_blocks(part.search, part.sweep, part.folder)]
        page.section(f"Search of {part.folder.variant}", *found, *importance_blocks(part.search, aims_of(part.sweep)))
    name = first.sweep.spec.name
    lines = "\n".join(f"tclx sweep best {name} --variant {part.folder.variant} -o {part.folder.variant}.yaml" for part in parts)
    return page.section("Reproduce", text("The best of each variant as a spec:"), code(lines))


def _ablation_cards(parts: Sequence[Part]) -> list[tuple[str, str]]:
    summaries = [summarise(part.search, part.sweep, part.folder) for part in parts]
    confirmations = [confirmation for part in parts if (confirmation := part.confirmation()) is not None]
    ended, asked = sum(one.ended for one in summaries), sum(one.num_trials for one in summaries)
    cards = [("variants", str(len(parts))), ("trials", f"{ended} of {asked}")]
    if confirmations:
        cards.append(("trainings with fresh seeds", str(sum(one.num_ended for one in confirmations))))
    return cards


def _side_by_side(ablation: Ablation) -> Iterator[Html]:
    results = ablation.results
    labels = [row.label for row in results.rows]
    yield from metrics_table(results, labels, heading="variant")
    yield text("Seeds are fresh. Every variant had the same number of trials and the same confirmation.")
    if ablation.full is not None and len(results.rows) > 1:
        found = differences_from(ablation.full, results)
        rows = [
            [row.label, *(_difference(differences.get(metric)) for metric in results.metrics)]
            for row, differences in zip(results.rows, found, strict=True)
            if row.runs != ablation.full.row.runs
        ]
        yield text(f"Differences from {ablation.full.name}, paired over seeds and queries; bold is beyond noise.")
        yield table(["variant", *map(column_title, results.metrics)], rows)
    yield grid(seed_dots(results, labels, styles(labels)))
    yield from (text(f"{note[:1].upper()}{note[1:]}.", kind="note") for note in (*ablation.notes, *results.notes))


def _difference(one: Difference | None) -> Html | str:
    if one is None:
        return "-"
    return bold(format_difference(one)) if one.verdict in ("better", "worse") else format_difference(one)


def _settings(ablation: Ablation) -> Iterator[Html]:
    rows = [
        [key, *("-" if value is None else as_text(value) for value in values)] for key, values in settings(ablation).items()
    ]
    rows += [["trial", *(str(one.trial) for one in ablation.variants)], ["why", *(one.how for one in ablation.variants)]]
    yield table(["", *(one.name for one in ablation.variants)], rows)
