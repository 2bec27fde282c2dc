"""What people see of a study: a line a trial, how it stands, a table of the best, a live table of what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from tclx.sweep.metrics import as_text
from tclx.sweep.parts import Part
from tclx.sweep.ranking import ranked
from tclx.sweep.searched import Sweep
from tclx.sweep.storage import patiently
from tclx.sweep.study import OF, SEED, StudyFolder
from tclx.sweep.summary import Summary, as_tree, progress_of, short_key, state_word, summarise, values_of_trial
from tclx.sweep.verdict import as_json, conclusion
from tclx.terminal import one_line, printable, time_left

LOOK_SECONDS = 2.0
MOST_SHOWN = 10
"""Trials of a table, the best ones."""


class StudyWatch:
    """Says every trial's end once, with the best so far; below it, on a terminal, a table of what runs."""

    def __init__(self, parts: Sequence[Part], *, say: Callable[[str], None]) -> None:
        self._say = say
        self._parts = parts
        self._told = {ended for part in parts for ended in _ended(part)}
        self._looked_at = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> StudyWatch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Above the table."""
        if self._live is None:
            self._say(line)
        else:
            self._live.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def look(self, *, at_once: bool = False) -> None:
        """See what is new, every few seconds."""
        if not at_once and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        new: list[str] = []
        standings: list[str] = []
        tables: list[RenderableType] = []
        for part in self._parts:
            ended = patiently(lambda part=part: _ended(part), say=self.say)  # type: ignore[misc]
            new += [line for key, line in ended.items() if key not in self._told]
            self._told |= ended.keys()
            standings += patiently(lambda part=part: standing_of(part), say=self.say)  # type: ignore[misc]
            if self._live is not None:
                tables += patiently(lambda part=part: _running_tables(part), say=self.say)  # type: ignore[misc]
        for line in new:
            self.say(line)
        if self._live is not None:
            self._live.update(Group(*tables, *(Text(printable(line)) for line in standings)), refresh=True)
        elif new and not at_once:
            for line in standings:
                self._say(line)


def _ended(part: Part) -> dict[tuple[str | None, bool, int], str]:
    """A line for every trial that has ended, of the search and of its confirmation."""
    found = {}
    for study, confirms in ((part.search, False), (part.confirming, True)):
        for trial in study.get_trials(deepcopy=False) if study is not None else ():
            if trial.state.is_finished():
                line = confirming_line(trial, part) if confirms else trial_line(trial, part)
                found[part.folder.variant, confirms, trial.number] = line
    return found


def _running_tables(part: Part) -> list[RenderableType]:
    """What runs at this moment: trials of the search, and trainings that confirm them."""
    stages = [("trial", part.search), ("confirms", part.confirming)]
    return [table for word, study in stages if study is not None and (table := _running_table(word, study, part)) is not None]


def _running_table(word: str, study: optuna.Study, part: Part) -> RenderableType | None:
    running = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
    if not running:
        return None
    so_far_of = Column(Text(printable(f"{part.sweep.spec.objective[0].metric} so far")))
    heading = word if part.folder.variant is None else f"{part.folder.variant} {word}"
    table = Table(heading, "step", so_far_of, "tries", box=None, pad_edge=False)
    for trial in running:
        step, total = progress_of(trial, part.folder)
        so_far = f"{list(trial.intermediate_values.values())[-1]:.4g}" if trial.intermediate_values else "-"
        name = f"{trial.user_attrs[OF]} seed {trial.user_attrs[SEED]}" if OF in trial.user_attrs else str(trial.number)
        table.add_row(name, f"{step}/{total}" if total else "-", so_far, Text(one_line(_tries(trial, part.sweep))))
    return table


def _tries(trial: FrozenTrial, sweep: Sweep) -> str:
    return " ".join(f"{short_key(key, sweep)}={as_text(value)}" for key, value in values_of_trial(trial).items())


def trial_line(trial: FrozenTrial, part: Part) -> str:
    """What became of a trial, and what it tried."""
    return f"{part.folder.prefix}trial {trial.number}  {result_of(trial, part.sweep, part.folder)}  {_tries(trial, part.sweep)}"


def confirming_line(trial: FrozenTrial, part: Part) -> str:
    """What became of a training that confirms a trial."""
    of, seed = trial.user_attrs.get(OF), trial.user_attrs.get(SEED)
    return f"{part.folder.prefix}trial {of} with seed {seed}  {result_of(trial, part.sweep, part.folder.confirming())}"


def result_of(trial: FrozenTrial, sweep: Sweep, folder: StudyFolder) -> str:
    """What a trial reached, or why it reached nothing."""
    if trial.state.name == "COMPLETE":
        pairs = zip(sweep.spec.objective, trial.values, strict=True)
        return " ".join(f"{objective.metric.rpartition('/')[2]} {value:.4g}" for objective, value in pairs)
    reason = trial.user_attrs.get("reason", "")
    return f"{state_word(trial, folder)} {reason}".strip()


def standing_of(part: Part) -> list[str]:
    """How a search stands, in a line, and where its confirmation has begun, that."""
    summary = summarise(part.search, part.sweep, part.folder)
    lines = [part.folder.prefix + search_line(summary, part.sweep, part.folder)]
    confirmation = part.confirmation()
    if confirmation is not None and (confirmation.search_is_over or confirmation.has_begun):
        lines.append(part.folder.prefix + conclusion(confirmation, part.sweep))
    return lines


def search_line(summary: Summary, sweep: Sweep, folder: StudyFolder) -> str:
    """How a search stands, in a line."""
    winner = f"{result_of(summary.best[0], sweep, folder)} (trial {summary.best[0].number})" if len(summary.best) == 1 else ""
    best = f", best {winner}" if winner else ""
    front = f", {len(summary.best)} on the Pareto front" if len(summary.best) > 1 else ""
    words = ("running", "interrupted", "lost", "pruned", "failed")
    counts = ", ".join(f"{count} {word}" for word in words if (count := getattr(summary, word)))
    eta = f", ETA {time_left(summary.eta_seconds)}" if summary.eta_seconds else ""
    stopped = f", ended: {summary.stopped}" if summary.stopped is not None else ""
    return f"{summary.ended}/{summary.num_trials} trials" + (f" ({counts})" if counts else "") + best + front + eta + stopped


def tree_of(parts: Sequence[Part]) -> dict[str, Any]:
    """A study for machines; of several variants each under its name."""
    if parts[0].folder.variant is None:
        return _tree_of(parts[0])
    return {"name": parts[0].sweep.spec.name, "variants": {str(part.folder.variant): _tree_of(part) for part in parts}}


def _tree_of(part: Part) -> dict[str, Any]:
    confirmation = part.confirmation()
    confirmed = as_json(confirmation, part.sweep) if confirmation is not None else None
    return {**as_tree(part.search, part.sweep, part.folder), "confirmation": confirmed}


def table_of(study: optuna.Study, sweep: Sweep, folder: StudyFolder, summary: Summary) -> list[list[str]]:
    """The best trials under their headings, trial 0 among them; empty while no trial has ended."""
    trials = ranked(study, sweep)
    shown = trials[:MOST_SHOWN]
    if summary.baseline is not None and summary.baseline not in shown:
        shown = [*shown, summary.baseline]
    keys = list(dict.fromkeys(key for trial in shown for key in values_of_trial(trial)))
    heading = ["trial", *(objective.metric for objective in sweep.spec.objective), *(short_key(key, sweep) for key in keys)]
    rows = []
    for trial in shown:
        values = values_of_trial(trial)
        reached = (
            [f"{value:.4g}" for value in trial.values]
            if trial.values
            else [state_word(trial, folder)] * len(sweep.spec.objective)
        )
        name = f"{trial.number}" + (" (the experiment)" if trial.number == 0 else "")
        rows.append([name, *reached, *(as_text(values[key]) if key in values else "-" for key in keys)])
    return [heading, *rows] if rows else []
