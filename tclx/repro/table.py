"""Which runs does a table ask for? Its file -> rows of checked experiments, every mistake at its line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tclx.errors import InputError, Location, Problem
from tclx.metrics import of_one_split, without_split
from tclx.section import WRITTEN
from tclx.spec.fields import Place, nearest
from tclx.spec.load import Experiment, load_experiments, places_of
from tclx.spec.resolve import with_absolute_paths
from tclx.spec.table import RowSpec, TableSpec
from tclx.spec.validation import problems_of
from tclx.spec.yaml import read_yaml

TABLE = Place(sections=(TableSpec,))


class AskedRow(NamedTuple):
    """One row, before its runs are looked for."""

    label: str
    spec: RowSpec
    variant: str | None
    """The one of the experiment's variants that it is."""
    experiments: tuple[Experiment, ...]
    """One a seed; empty for runs that are named themselves."""

    @property
    def overrides(self) -> list[str]:
        """As `tclx run --set` takes them."""
        return _overrides(self.spec)


class Table(NamedTuple):
    """A table's file, checked."""

    path: Path
    spec: TableSpec
    rows: tuple[AskedRow, ...]

    @property
    def record(self) -> Path:
        """The file of its numbers."""
        return self.path.with_suffix(".json")

    @property
    def columns(self) -> list[str]:
        """Its metrics, by names without their split."""
        return [without_split(name) for name in self.spec.columns]

    @property
    def compared(self) -> str | None:
        """The metric whose differences are shown."""
        return without_split(self.spec.differences.metric) if self.spec.differences is not None else None

    @property
    def against(self) -> str | None:
        """The row that they are taken from."""
        return self.spec.differences.against if self.spec.differences is not None else None

    @property
    def metrics(self) -> list[str]:
        """What has to be known of its runs."""
        return list(dict.fromkeys([*self.columns, *([self.compared] if self.compared is not None else [])]))


def load_table(path: Path) -> Table:
    """Read and check a table's file and the experiments that it names.

    Raises:
        InputError: with every problem, each at its line.
    """
    tree, problems = read_yaml(path), list[Problem]()
    if not isinstance(tree.value, dict):
        raise InputError(Problem("", "a table is keys and values", "start with `title: ...`", tree.where))
    tree = with_absolute_paths(tree, problems, TABLE)
    try:
        spec = TableSpec.model_validate_json(json.dumps(tree.plain()), context=WRITTEN)
    except ValidationError as error:
        raise InputError(*problems, *problems_of(error, tree, TABLE)) from None
    places = dict(places_of(tree))
    rows: list[AskedRow] = []
    for number, row in enumerate(spec.rows):
        try:
            rows += _rows(row, f"rows[{number}]")
        except InputError as error:
            # what a row changes has no line of its own in an experiment file
            problems += [
                one if one.where is not None and isinstance(one.where.path, Path) else _at_row(one, number, places)
                for one in error.problems
            ]
    table = Table(path, spec, tuple(rows))
    problems += [one._replace(where=one.where or places.get(one.key)) for one in _problems(table)]
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return table


def _at_row(problem: Problem, number: int, places: dict[str, Location]) -> Problem:
    for key in (f"rows[{number}].changes.{problem.key}", f"rows[{number}].{problem.key}", f"rows[{number}]"):
        if key in places:
            return problem._replace(where=places[key])
    return problem


def _rows(row: RowSpec, key: str) -> Iterator[AskedRow]:
    if row.experiment is None:
        yield AskedRow(row.label or ", ".join(row.runs or ()), row, None, ())
        return
    path = Path(row.experiment)
    groups: dict[str | None, list[Experiment]] = {}
    for one in load_experiments(path, _overrides(row), only=row.variant):
        groups.setdefault(one.spec.variant, []).append(one)
    if not groups:
        names = [one.spec.variant for one in load_experiments(path) if one.spec.variant]
        known = ", ".join(dict.fromkeys(names)) or "none"
        raise InputError(Problem(f"{key}.variant", f"{path.name} has no variant `{row.variant}`", f"it has {known}"))
    if row.label is not None and len(groups) > 1:
        message = f"{path.name} has {len(groups)} variants, each a row of its own, and a label is one row's"
        raise InputError(Problem(f"{key}.label", message, "name the `variant`, or leave the label out"))
    for variant, experiments in groups.items():
        yield AskedRow(row.label or variant or experiments[0].spec.name, row, variant, tuple(experiments))


def _overrides(row: RowSpec) -> list[str]:
    seeds = [f"seeds={json.dumps(row.seeds)}"] if row.seeds is not None else []
    return [*(f"{key}={json.dumps(value)}" for key, value in row.changes.items()), *seeds]


def _problems(table: Table) -> Iterator[Problem]:
    labels = Counter(row.label for row in table.rows)
    for label, number in labels.items():
        if number > 1:
            yield Problem("rows", f"{number} rows are called `{label}`", "give each a `label` of its own")
    known = of_one_split()
    for index, name in enumerate(table.spec.columns):
        yield from _unknown(name, f"columns[{index}]", list(known))
    if (differences := table.spec.differences) is not None:
        yield from _unknown(differences.metric, "differences.metric", list(known))
        if differences.against not in labels and table.rows:
            listed = ", ".join(labels)
            yield Problem("differences.against", f"no row is called `{differences.against}`", f"there are {listed}")
        metric = known.get(without_split(differences.metric))
        if metric is not None and metric.better is None:
            yield Problem("differences.metric", f"nobody can tell whether more or less of {metric.name} is better")
    if table.spec.document is not None and not Path(table.spec.document).is_file():
        yield Problem("document", f"no such file: {table.spec.document}")


def _unknown(name: str, key: str, known: list[str]) -> Iterator[Problem]:
    if without_split(name) not in known:
        match = nearest(without_split(name), known)
        yield Problem(key, f"no task has a metric `{name}`", f"did you mean `{match}`?" if match else None)
