"""What people see of a study: a line a trial, how it stands, a table of the best, a live table of what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from tclx.sweep.load import Sweep
from tclx.sweep.metrics import as_text
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder
from tclx.sweep.summary import Summary, progress_of, ranked, short_key, state_word, summarise, values_of_trial
from tclx.terminal import one_line, printable, time_left

LOOK_SECONDS = 2.0
MOST_SHOWN = 10
"""Trials of a table, the best ones."""


class StudyWatch:
    """Says every trial's end once, with the best so far; below it, on a terminal, a table of what runs."""

    def __init__(self, study: optuna.Study, sweep: Sweep, folder: StudyFolder, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._study, self._sweep, self._folder = study, sweep, folder
        self._told = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
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
        trials = patiently(lambda: self._study.get_trials(deepcopy=False), say=self.say)
        new = [trial for trial in trials if trial.state.is_finished() and trial.number not in self._told]
        self._told |= {trial.number for trial in new}
        for trial in new:
            self.say(trial_line(trial, self._sweep, self._folder))
        summary = patiently(lambda: summarise(self._study, self._sweep, self._folder), say=self.say)
        standing = standing_of(summary, self._sweep, self._folder)
        if self._live is not None:
            self._live.update(_running_table(trials, standing, self._sweep, self._folder), refresh=True)
        elif new and not at_once:
            self._say(standing)


def _running_table(trials: Sequence[FrozenTrial], standing: str, sweep: Sweep, folder: StudyFolder) -> RenderableType:
    """What runs at this moment, and how the study stands."""
    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    table = Table(
        "trial", "step", Column(Text(printable(f"{sweep.spec.objective[0].metric} so far"))), "tries", box=None, pad_edge=False
    )
    for trial in running:
        step, total = progress_of(trial, folder)
        so_far = f"{list(trial.intermediate_values.values())[-1]:.4g}" if trial.intermediate_values else "-"
        tries = " ".join(f"{short_key(key, sweep)}={as_text(value)}" for key, value in values_of_trial(trial).items())
        table.add_row(str(trial.number), f"{step}/{total}" if total else "-", so_far, Text(one_line(tries)))
    return Group(table, Text(printable(standing)))


def trial_line(trial: FrozenTrial, sweep: Sweep, folder: StudyFolder) -> str:
    """What became of a trial, and what it tried."""
    values = " ".join(f"{short_key(key, sweep)}={as_text(value)}" for key, value in values_of_trial(trial).items())
    return f"trial {trial.number}  {result_of(trial, sweep, folder)}  {values}"


def result_of(trial: FrozenTrial, sweep: Sweep, folder: StudyFolder) -> str:
    """What a trial reached, or why it reached nothing."""
    if trial.state.name == "COMPLETE":
        pairs = zip(sweep.spec.objective, trial.values, strict=True)
        return " ".join(f"{objective.metric.rpartition('/')[2]} {value:.4g}" for objective, value in pairs)
    reason = trial.user_attrs.get("reason", "")
    return f"{state_word(trial, folder)} {reason}".strip()


def standing_of(summary: Summary, sweep: Sweep, folder: StudyFolder) -> str:
    """How a study stands, in a line."""
    winner = f"{result_of(summary.best[0], sweep, folder)} (trial {summary.best[0].number})" if len(summary.best) == 1 else ""
    best = f", best {winner}" if winner else ""
    front = f", {len(summary.best)} on the Pareto front" if len(summary.best) > 1 else ""
    words = ("running", "interrupted", "lost", "pruned", "failed")
    counts = ", ".join(f"{count} {word}" for word in words if (count := getattr(summary, word)))
    eta = f", ETA {time_left(summary.eta_seconds)}" if summary.eta_seconds else ""
    return f"{summary.ended}/{summary.num_trials} trials" + (f" ({counts})" if counts else "") + best + front + eta


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
