"""What does a report know? Everything that is read of the run folders, once, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tclx.report.cost import Cost, read_cost
from tclx.report.history import Curve, History, curve, read_history
from tclx.report.page import Style, styles
from tclx.report.results import Group, Results, RunResult, Selection, group_runs, read_runs, summarise
from tclx.runs import RunFolder


class Material(NamedTuple):
    """Run folders, read."""

    groups: tuple[Group, ...]
    """Runs that differ by their seed alone, under short labels."""
    styles: dict[str, Style]
    """By label."""
    results: Results
    histories: dict[str, History]
    """By run id."""
    costs: dict[str, Cost]
    """By run id."""
    selection: Selection

    @property
    def runs(self) -> list[RunResult]:
        return [run for group in self.groups for run in group.runs]

    def histories_of(self, group: Group) -> list[History]:
        return [self.histories[run.run_id] for run in group.runs]

    def metrics(self) -> list[str]:
        """All that any run logged, sorted."""
        return sorted({name for history in self.histories.values() for name in history.series})

    def curves(self, metric: str) -> dict[str, Curve]:
        """A curve for each group that logged the metric, by label."""
        found = ((group.label, curve(self.histories_of(group), metric)) for group in self.groups)
        return {label: one for label, one in found if one is not None}

    def label_of(self, run: RunResult) -> str:
        return next(group.label for group in self.groups if run.run_id in {one.run_id for one in group.runs})


def gather(selection: Selection, *, split: str | None) -> Material:
    """Read the runs of a selection.

    Raises:
        InputError: a run folder or its metrics cannot be read, or no finished run was evaluated on `split`.
    """
    runs = read_runs(selection)
    groups = tuple(group._replace(label=label) for label, group in _short_labels(group_runs(runs)))
    histories = {run.run_id: read_history(run) for run in runs}
    costs = {run.run_id: read_cost(RunFolder(run.folder), histories[run.run_id]) for run in runs}
    results = summarise(runs, split=split)
    return Material(groups, styles([group.label for group in groups]), results, histories, costs, selection)


def _short_labels(groups: Sequence[Group]) -> Iterator[tuple[str, Group]]:
    """Without the experiment's name where all share it and each has a variant, or the study's where all are its trials."""
    runs = [run for group in groups for run in group.runs]
    names = {run.trial.study if run.trial is not None else run.name for run in runs}
    told_apart = all(run.variant or run.trial is not None for run in runs)
    prefix = f"{names.pop()} " if len(names) == 1 and told_apart else ""
    for group in groups:
        yield group.label.removeprefix(prefix), group
