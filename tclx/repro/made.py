"""A table from run folders; where those are gone, from its record. What is missing and what is out of date is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tclx.errors import InputError, Problem
from tclx.found import find, with_their_runs
from tclx.metrics import task_of
from tclx.report.comparison import difference, format_signed
from tclx.report.latex import Cell
from tclx.report.results import (
    Results,
    Row,
    RunResult,
    Selection,
    are_of_same_queries,
    column_title,
    format_spread,
    read_runs,
    summarise,
    winners,
)
from tclx.repro.record import (
    VERSION,
    Record,
    RecordedCell,
    RecordedDifference,
    RecordedRow,
    RecordedRun,
    changed_keys,
    recorded_spec,
    without_marks,
)
from tclx.repro.table import AskedRow, Table
from tclx.runs import RunFolder

STALE = "†"
"""After the name of a row whose spec is another today."""


class MadeRow(NamedTuple):
    """One row of the table as it can be made now."""

    asked: AskedRow
    row: RecordedRow | None
    """Its numbers; None where nothing is known of them."""
    is_new: bool
    """Whether they come from run folders, and not from the record."""
    missing: tuple[str, ...]
    """What of its runs is not there, in words."""
    stale: tuple[str, ...]
    """In which keys its spec has changed since its numbers were measured."""

    @property
    def label(self) -> str:
        return self.asked.label


class Made(NamedTuple):
    """A table as it can be made now."""

    table: Table
    rows: tuple[MadeRow, ...]
    changes: tuple[str, ...]
    """In which numbers it is another than its record, in words."""

    @property
    def record(self) -> Record:
        """What is to be kept of it."""
        rows = [one.row for one in self.rows if one.row is not None]
        return Record(VERSION, self.table.spec.split, self.table.against, self.table.compared, rows)


def from_record(table: Table, record: Record | None) -> Made:
    """The table as its record has it, without any run folder."""
    rows = tuple(_recorded(asked, table, record, ()) for asked in table.rows)
    return Made(table, _in_company(rows, record, {}, table), ())


def make(table: Table, record: Record | None, *, runs_dir: Path) -> Made:
    """The table: rows of which every run has finished from their folders, the others from the record.

    Args:
        table: checked.
        record: of an earlier time; None where there is none.
        runs_dir: where runs are kept.

    Raises:
        InputError: a run of it cannot be read, or was not evaluated as the table asks for.
    """
    found: dict[str, Row] = {}
    rows: list[MadeRow] = []
    for asked in table.rows:
        folders, missing = _folders(asked, runs_dir)
        row = None
        if not missing:
            row, missing = _only_row(asked, table, read_runs(Selection(tuple(folders))))
        if row is None:
            rows.append(_recorded(asked, table, record, missing))
            continue
        found[asked.label] = row
        rows.append(MadeRow(asked, _measured(row, asked, table), True, (), ()))
    made = _in_company(tuple(rows), record, found, table)
    return Made(table, made, tuple(_changes(made, record, table)))


def _folders(asked: AskedRow, runs_dir: Path) -> tuple[list[Path], tuple[str, ...]]:
    """One folder a seed, and what is not there."""
    if not asked.experiments:
        try:
            return list(find(list(asked.spec.runs or ()), runs_dir=runs_dir).folders), ()
        except InputError as gone:
            return [], tuple(map(str, gone.problems))
    found, missing = [], []
    for spec, folders in with_their_runs(asked.experiments, runs_dir=runs_dir):
        found += folders[-1:]
        if not folders:
            missing.append(str(spec.seed))
    seeds = f"seed {missing[0]} has" if len(missing) == 1 else f"seeds {', '.join(missing)} have"
    return found, (f"{seeds} not been run",) if missing else ()


def _only_row(asked: AskedRow, table: Table, runs: list[RunResult]) -> tuple[Row | None, tuple[str, ...]]:
    """The row of its runs, or which of them have not finished."""
    unfinished = [f"{run.run_id} is {run.status.standing}" for run in runs if run.status.standing != "finished"]
    if unfinished:
        return None, tuple(unfinished)
    rows = summarise(runs, metrics=table.metrics, split=table.spec.split).rows
    if len(rows) != 1:
        labels = ", ".join(row.label for row in rows)
        raise InputError(Problem("", f"the row {asked.label} stands for runs of {len(rows)} specs: {labels}"))
    return rows[0], ()


def _measured(row: Row, asked: AskedRow, table: Table) -> RecordedRow:
    cells = {}
    for name, spread in row.metrics.items():
        low, high = spread.interval or (None, None)
        cells[name] = RecordedCell(spread.mean, spread.deviation, low, high, row.chance.get(name))
    runs = [_run(run, table.metrics, table.spec.split) for run in row.runs]
    return RecordedRow(asked.label, recorded_spec(asked.experiments), runs, cells)


def _run(run: RunResult, wanted: list[str], split: str) -> RecordedRun:
    environment = RunFolder(run.folder).read_environment()
    commit = environment.commit and f"{environment.commit[:12]}{'+' if environment.diff_sha256 else ''}"
    metrics = {name: value for name, value in run.evaluations[split].items() if name in wanted}
    device = environment.gpu or environment.cpu
    return RecordedRun(run.run_id, run.seed, metrics, commit, environment.packages.get("torch"), device)


def _recorded(asked: AskedRow, table: Table, record: Record | None, missing: tuple[str, ...]) -> MadeRow:
    """The row as the record has it, where it has all its columns of that split."""
    row = record.row(asked.label) if record is not None and record.split == table.spec.split else None
    if row is None:
        return MadeRow(asked, None, False, missing, ())
    if lacking := [name for name in table.columns if name not in row.cells]:
        return MadeRow(asked, None, False, (*missing, f"the record has no {', '.join(lacking)}"), ())
    now = recorded_spec(asked.experiments)
    seeds = {"seeds": ", ".join(str(run.seed) for run in row.runs)}
    seeds_now = {"seeds": ", ".join(str(one.spec.seed) for one in asked.experiments)}
    stale = changed_keys({**row.spec, **seeds}, {**now, **seeds_now}) if now else []
    return MadeRow(asked, row, False, missing, tuple(stale))


def _in_company(
    rows: tuple[MadeRow, ...], record: Record | None, found: Mapping[str, Row], table: Table
) -> tuple[MadeRow, ...]:
    """With what is known of rows among each other: computed where all are there, kept where none is another than before."""
    if len(found) == len(table.rows):
        return tuple(_marked(rows, found, table))
    is_as_recorded = (
        record is not None
        and [one.label for one in rows] == [one.label for one in record.rows]
        and all(one.row is not None and _numbers(one.row) == _numbers(record.row(one.label)) for one in rows)
        and (record.against, record.compared) == (table.against, table.compared)
    )
    if is_as_recorded and record is not None:
        return tuple(one._replace(row=record.row(one.label)) for one in rows)
    return tuple(one._replace(row=one.row and without_marks(one.row)) for one in rows)


def _marked(rows: tuple[MadeRow, ...], found: Mapping[str, Row], table: Table) -> Iterator[MadeRow]:
    in_order = tuple(found[one.label] for one in rows)
    best = winners(Results(table.spec.split, tuple(table.columns), in_order, ()))
    for index, (one, row) in enumerate(zip(rows, in_order, strict=True)):
        if one.row is None:
            continue
        cells = {name: replace(cell, best=best.get(name) == index) for name, cell in one.row.cells.items()}
        yield one._replace(row=replace(one.row, cells=cells, difference=_difference(row, one.label, found, table)))


def _difference(row: Row, label: str, found: Mapping[str, Row], table: Table) -> RecordedDifference | None:
    asked, metric = table.spec.differences, table.compared
    if asked is None or metric is None or label == asked.against:
        return None
    base = found[asked.against]
    if not are_of_same_queries(base, row, metric):
        return None
    taken = difference(base, row, metric)
    low, high = taken.interval or (None, None)
    return RecordedDifference(taken.difference, low, high, taken.verdict)


def _numbers(row: RecordedRow | None) -> object:
    return row and [(run.run_id, run.metrics) for run in row.runs]


def _changes(rows: tuple[MadeRow, ...], record: Record | None, table: Table) -> Iterator[str]:
    for one in rows:
        before = record.row(one.label) if record is not None else None
        if one.row is None or before is None:
            continue
        for name in table.columns:
            old, new = (format_spread(cell.spread) if (cell := row.cells.get(name)) else "-" for row in (before, one.row))
            if old != new:
                yield f"{one.label}: {column_title(name)} {old} -> {new}"


# ---------------------------------------------------------------------------------------------------------------------- shown


def cells_of(made: Made) -> tuple[list[list[Cell]], list[list[Cell]]]:
    """The table's head and rows, and those below a rule."""
    table = made.table
    head = ["", "seeds", *map(column_title, table.columns)]
    if table.compared is not None:
        head.append(f"{column_title(table.compared)} against {table.against}")
    rows = [[Cell(text) for text in head], *(_cells(one, table) for one in made.rows)]
    chance = [_chance(made, name) for name in table.columns]
    rest = [Cell("")] if table.compared is not None else []
    return rows, [[Cell("chance"), Cell(""), *map(Cell, chance), *rest]] if any(chance) else []


def _cells(one: MadeRow, table: Table) -> list[Cell]:
    label = Cell(f"{one.label} {STALE}" if one.stale else one.label)
    if one.row is None:
        return [label, Cell(""), *(Cell("-") for _ in table.columns), *([Cell("")] if table.spec.differences else [])]
    cells = [one.row.cells.get(name) for name in table.columns]
    shown = [
        Cell(format_spread(cell.spread, intervals=table.spec.intervals), cell.best) if cell else Cell("-") for cell in cells
    ]
    return [label, Cell(str(len(one.row.runs))), *shown, *([_difference_cell(one.row)] if table.spec.differences else [])]


def _difference_cell(row: RecordedRow) -> Cell:
    one = row.difference
    if one is None:
        return Cell("")
    interval = f" {format_signed(one.interval)}" if one.interval is not None else ""
    return Cell(f"{one.value:+z.1f}{interval}", one.verdict in ("better", "worse"))


def _chance(made: Made, name: str) -> str:
    levels = {
        f"{cell.chance:.1f}" for one in made.rows if one.row and (cell := one.row.cells.get(name)) and cell.chance is not None
    }
    ends = sorted(levels, key=float)
    return "" if not ends else ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def title_of(made: Made) -> str:
    """What its numbers are."""
    tasks = " and ".join(dict.fromkeys(map(task_of, made.table.columns)))
    return f"{made.table.spec.title}: {tasks} on {made.table.spec.split}, mean ± deviation over seeds, [95 % interval]"


def doubts(made: Made) -> list[str]:
    """What is out of date or missing, a line each."""
    said = [f"{one.label} {STALE} was measured with another spec: {'; '.join(one.stale)}" for one in made.rows if one.stale]
    for one in made.rows:
        if one.missing:
            kept = "; its numbers are those of the record" if one.row is not None else ""
            said.append(f"{one.label}: {', '.join(one.missing)}{kept}")
        elif one.row is None:
            said.append(f"{one.label}: nothing is recorded of it")
    return said
