"""`tclx repro`: a table that can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, print_json, say
from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from tclx.launch.order import PlannedRun
    from tclx.repro.made import Made
    from tclx.repro.table import Table

EXAMPLE = "Example:  tclx repro docs/tables/ablation.yaml"


def repro(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="The table's file.")],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    run: Annotated[bool, typer.Option("--run", help="Train the runs that are missing first.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write its record, and the table into its document.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only: is the document what the record gives? Needs no runs; ends with 1 if not.")
    ] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the table for a paper: LaTeX with booktabs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a table of a paper or a page again from the runs that it names; say which rows are out of date.

    Rows whose runs are not in the runs folder come from the record beside the file. Nothing is written without --write.
    """
    if check and (run or write):
        raise InputError(Problem("--check", "writes and trains nothing", "without --run and --write"))
    if latex and as_json:
        raise InputError(Problem("--latex", "is at odds with --json: stdout has one of them"))
    from tclx.repro.made import doubts, from_record, make
    from tclx.repro.record import read_record
    from tclx.repro.table import load_table

    asked = load_table(table)
    record = read_record(asked.record)
    exit_code = 0
    if run:
        exit_code = _train(make(asked, record, runs_dir=runs_dir), runs_dir)
    made = from_record(asked, record) if check else make(asked, record, runs_dir=runs_dir)
    if as_json:
        print_json(_as_tree(made))
    else:
        _print(made, latex)
    for line in [*doubts(made), *(f"not as recorded: {change}" for change in made.changes)]:
        say(line)
    if check:
        exit_code = _check(made, asked)
    elif write:
        _write(made, asked)
    elif made.changes or any(one.is_new and (record is None or record.row(one.label) is None) for one in made.rows):
        say("--write keeps these numbers")
    raise typer.Exit(exit_code)


def _train(made: Made, runs_dir: Path) -> int:
    """Train what is missing; returns the exit code."""
    from tclx.cli.run import say_warnings, start
    from tclx.launch.order import plan_runs

    planned: dict[str, PlannedRun] = {}
    for one in made.rows:
        if one.missing and one.asked.spec.experiment is not None:
            path = Path(one.asked.spec.experiment)
            found = plan_runs([path], one.asked.overrides, runs_dir=runs_dir, only=one.asked.variant)
            planned |= {each.plan.run_id: each for each in found}
    if not planned:
        return 0
    runs = list(planned.values())
    say_warnings(runs)
    return start(runs, runs_dir=runs_dir, again=False, detach=False, follow=False)


def _print(made: Made, latex: bool) -> None:
    from tclx.cli.results import Shown, print_table
    from tclx.repro.made import cells_of, title_of

    rows, foot = cells_of(made)
    print_table(
        Shown(title_of(made), "best, beyond noise of every other row and chance; a difference beyond noise", rows, foot),
        latex=latex,
    )


def _check(made: Made, table: Table) -> int:
    from tclx.repro.document import with_table

    if table.spec.document is None:
        return 1 if any(one.row is None for one in made.rows) else 0
    document = Path(table.spec.document)
    text = document.read_text(encoding="utf-8")
    if with_table(text, made, document) == text:
        return 0
    say(f"{document} does not hold this table: tclx repro {table.path} --write puts it there")
    return 1


def _write(made: Made, table: Table) -> None:
    from tclx.files import write_atomically
    from tclx.repro.document import with_table
    from tclx.repro.record import read_record, write_record

    text = None
    if table.spec.document is not None:  # before anything is written, as it may have no place for the table
        document = Path(table.spec.document)
        before = document.read_text(encoding="utf-8")
        text = with_table(before, made, document)
    if made.record.rows and made.record != read_record(table.record):
        write_record(table.record, made.record)
        say(f"wrote {table.record}")
    if text is not None and text != before:
        write_atomically(document, text)
        say(f"wrote {document}")


def _as_tree(made: Made) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "title": made.table.spec.title,
        "split": made.table.spec.split,
        "columns": made.table.columns,
        "rows": [
            {
                "label": one.label,
                "from": None if one.row is None else "runs" if one.is_new else "record",
                "stale": list(one.stale),
                "missing": list(one.missing),
                **({key: value for key, value in asdict(one.row).items() if key != "label"} if one.row is not None else {}),
            }
            for one in made.rows
        ],
        "changes": list(made.changes),
    }
