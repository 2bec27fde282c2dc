"""`tclx report`: run folders in, one HTML page out."""

from __future__ import annotations

import time
from pathlib import Path

import tclx
from tclx.errors import InputError, Problem
from tclx.report import sections
from tclx.report.examples import attention, examples, similarities
from tclx.report.judged import answers
from tclx.report.markup import joined, text
from tclx.report.material import Material, gather
from tclx.report.page import Page
from tclx.report.results import Selection


def write_report(selection: Selection, output: Path, *, split: str | None = None) -> Material:
    """Write the page of some runs; returns what it is made of.

    Args:
        selection: one run at least.
        output: the file, replaced where it exists.
        split: whose final metrics are shown; test where there is one.

    Raises:
        InputError: there is nothing to show, or a run cannot be read.
        MachineError: the page cannot be written.
    """
    if not selection.folders:
        raise InputError(Problem("", "there are no runs to report", "; ".join(selection.notes) or None))
    material = gather(selection, split=split)
    build(material).write(output)
    return material


def build(material: Material) -> Page:
    """The page."""
    names = list(dict.fromkeys(f"Sweep {run.trial.study}" if run.trial is not None else run.name for run in material.runs))
    made = f"Made on {time.strftime('%Y-%m-%d %H:%M %Z')} by tclx {tclx.__version__}."
    page = Page(", ".join(names), lead=joined([text(made, kind="small"), *sections.summary(material)]))
    page.toggles(material.styles, seeds=any(len(group.runs) > 1 for group in material.groups))
    page.section("Results", *sections.comparison(material))
    page.section("What was run", *sections.what_was_run(material))
    page.section("Losses", *sections.losses(material))
    page.section("Evaluation during training", *sections.evaluations(material))
    page.section("Health", *sections.health(material), *similarities(material))
    page.section("Other measures", *sections.other_measures(material))
    page.section("Retrieval examples", *examples(material))
    if items := answers(material):
        page.section("Answers", *items)
    page.section("What words look at", *attention(material))
    page.section("Cost", *sections.cost(material))
    page.section("What was printed last", *sections.printed(material))
    return page.section("Reproduce", *sections.reproduction(material))
