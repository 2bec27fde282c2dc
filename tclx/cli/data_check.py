"""`tclx data check`: what is in a data set, and a list without what should not be."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import AsJson, Overrides, print_json, say, show
from tclx.errors import InputError, Problem
from tclx.terminal import one_line, time_left

if TYPE_CHECKING:
    from tclx.data.checking.check import Checked, Progress

SECONDS_BETWEEN_LINES = 10.0
"""Of progress, where nobody sees a bar."""


def check(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment file.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the oddest images.", dir_okay=False)
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option("--clean", metavar="FOLDER", help="Write annotation files without what is bad.", file_okay=False),
    ] = None,
    min_side: Annotated[
        int | None, typer.Option("--min-side", metavar="N", min=1, help="With --clean: pixels of the shorter side, at least.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option("--max-aspect", metavar="R", min=1, help="With --clean: longer by shorter side, at most.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near", help="With --clean: train without images that only look like one of val or test, too.")
    ] = False,
    num_processes: Annotated[
        int | None, typer.Option("--processes", metavar="N", min=1, help="Checking processes. [default: the CPUs]")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Open every image of a spec's data and list the bad ones; exit code 2 where there are any.

    Also found: images that are the same, byte by byte or to the eye, within a split and between splits; odd sizes; empty and
    repeated captions. After an interruption the same command continues.

    With --clean, annotation files are written without bad, repeated and leaked images; nothing is deleted.
    """
    from tclx.data.checking.check import check_data
    from tclx.data.facts import examine
    from tclx.spec.load import load_experiments

    if clean is None and (min_side is not None or max_aspect is not None or near):
        raise InputError(Problem("", "--min-side, --max-aspect and --near say what --clean leaves out", "give --clean FOLDER"))
    specs = [experiment.spec for experiment in load_experiments(spec, overrides or [])]
    different = dict.fromkeys((spec.data, spec.evaluation) for spec in specs)
    if len(different) > 1 and (html is not None or clean is not None):
        problem = f"{spec} has runs with different data, and --html and --clean are for one"
        raise InputError(Problem("data", problem, "write them as files of their own"))
    num_bad, trees = 0, list[dict[str, Any]]()
    for data, evaluation in different:
        examined = examine(data, some_may_be_missing=True)
        evaluation.check(data)
        with _progress() as report:
            checked = check_data(data, others=evaluation.images(), num_processes=num_processes, report=report)
        num_bad += len(checked.bad)
        warnings = [*examined.warnings, *checked.warnings()]
        for warning in warnings:
            say(f"warning: {warning}")
        tree = {**checked.tree(), "warnings": warnings} if as_json else {}
        if not as_json:
            for image in checked.bad_images:
                show(one_line(f"{image.path}: {image.reason}"))
        for line in _summary(checked):
            say(line)
        if html is not None:
            from tclx.report.checked import write_checked

            write_checked(checked, data, html, title=specs[0].name, warnings=examined.warnings)
            say(f"wrote {html}")
        if clean is not None:
            from tclx.data.checking.clean import LEFT_OUT, Filters
            from tclx.data.checking.clean import clean as write_clean
            from tclx.tasks.task import CAPTION_FORMS

            written = write_clean(checked, clean, filters=Filters(min_side, max_aspect, near=near))
            for one in written:
                texts = "captions" if one.source.get("form", "captions") in CAPTION_FORMS else "rows"
                say(f"wrote {one.path}: {one.num_images:,} images, {one.num_captions:,} {texts}{_left_out(one.left_out)}")
                if not as_json:
                    show(one_line(f"{one.key}: {json.dumps(one.source, ensure_ascii=False)}"))
            say(f"{clean / LEFT_OUT} names what was left out; the images are where they were")
            tree["cleaned"] = [{**one._asdict(), "path": str(one.path)} for one in written]
        trees.append(tree)
    if as_json:
        print_json(trees)
    raise typer.Exit(InputError.exit_code if num_bad and clean is None else 0)


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, elsewhere a line now and then; at the end what was done and how fast."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    started, told = time.monotonic(), time.monotonic()
    last: Progress | None = None
    shown = sys.stderr.isatty()
    columns = (
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def report(progress: Progress) -> None:
            nonlocal last, told
            last = progress
            rate = (progress.done - progress.known) / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=progress.done, total=progress.total, rate=f"{rate:,.0f}/s")
            if not shown and time.monotonic() > told + SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                left = (progress.total - progress.done) / rate if rate else None
                say(f"{progress.done:,} of {progress.total:,} images, {rate:,.0f} a second, {time_left(left)} left")

        try:
            yield report
        except KeyboardInterrupt:
            if last is not None:
                bar.stop()
                say(f"{last.done:,} of {last.total:,} images were looked at: the same command goes on from there")
            raise
    if last is not None and last.total:
        seconds = time.monotonic() - started
        new = last.total - last.known
        of = f", {last.known:,} of them by an earlier check" if last.known else ""
        say(f"{last.total:,} images checked in {seconds:.1f} s ({new / max(seconds, 1e-9):,.0f} a second){of}")


def _summary(checked: Checked) -> Iterator[str]:
    """A line a split, and one where there are no images."""
    if not len(checked.looks):
        yield "the data are generated: there are no images to check"
    elif not checked.bad:
        yield "all readable"
    for split in checked.splits:
        exact, near = checked.repeated(split)
        bad = ", ".join(f"{count:,} {cause}" for cause, count in checked.unreadable(split).items())
        line = f"{split}: {len(checked.numbers(split)):,} images, " + (f"bad: {bad}" if bad else "all readable")
        line += f"; {len(exact.images):,} repeat another, {len(near.images):,} look like another"
        if (captions := checked.captions.get(split)) is not None:
            line += f"; {captions.num_captions:,} captions: {captions.empty:,} empty, {captions.repeated:,} repeated, "
            line += f"{captions.too_long:,} of more than {checked.max_words} words"
        yield line


def _left_out(counts: Mapping[str, int]) -> str:
    return "; left out: " + ", ".join(f"{count:,} {cause}" for cause, count in counts.items()) if counts else ""
