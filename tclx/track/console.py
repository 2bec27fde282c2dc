"""What does somebody see who watches a run? A bar on a terminal, one line a logged row everywhere else.

The caller's console decides where it goes (stderr) and whether in colour (rich respects NO_COLOR).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tclx.terminal import printable

_TERMS = ("total", "cma", "imc", "lmi", "itm", "mlm")

Row = Mapping[str, Any]


class Watcher(Protocol):
    """Is told how a run goes on."""

    def step(self, step: int) -> None:
        """`step` optimizer steps are done."""

    def row(self, row: Row) -> None:
        """A row of metrics was logged."""

    def say(self, text: str) -> None:
        """Something happened that a user wants to know."""


@contextmanager
def watch(console: Console, *, title: str, first_step: int, total_steps: int) -> Iterator[Watcher]:
    """Show a run's progress until the block ends: a bar with ETA, images a second and losses, or plain lines when piped.

    Args:
        console: a quiet one (`Console(quiet=True)`) shows nothing: the ranks that do not speak.
        title: the run's name.
        first_step: steps done before this process started; the ETA counts from there.
        total_steps: steps of the whole run.
    """
    if not console.is_terminal:
        yield _Lines(console, first_step=first_step, total_steps=total_steps)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
    )
    # Twice a second: the training threads want the CPU more than the bar does.
    # What else is printed belongs above the bar where stderr is that terminal, and stays in the log where it is one.
    own = console.stderr
    with Progress(*columns, console=console, refresh_per_second=2, redirect_stdout=own, redirect_stderr=own) as progress:
        task = progress.add_task(printable(title), total=total_steps, completed=first_step, numbers="")
        yield _Bar(progress, task)


@contextmanager
def watch_each(consoles: Sequence[Console], *, title: str, first_step: int, total_steps: int) -> Iterator[Watcher]:
    """Show a run's progress on several consoles, on each as suits it: see `watch`."""
    with ExitStack() as stack:
        yield _Several(
            [
                stack.enter_context(watch(console, title=title, first_step=first_step, total_steps=total_steps))
                for console in consoles
            ]
        )


class _Several:
    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def step(self, step: int) -> None:
        for watcher in self._watchers:
            watcher.step(step)

    def row(self, row: Row) -> None:
        for watcher in self._watchers:
            watcher.row(row)

    def say(self, text: str) -> None:
        for watcher in self._watchers:
            watcher.say(text)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        if numbers := _numbers(row):
            self._progress.update(self._task, numbers=numbers)
        if retrieval := _retrieval(row):
            self.say(f"step {row['step']}: {retrieval}")

    def say(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False)


class _Lines:
    def __init__(self, console: Console, *, first_step: int, total_steps: int) -> None:
        self._console = console
        self._first_step, self._total_steps = first_step, total_steps
        self._started_at = time.monotonic()

    def step(self, step: int) -> None:
        """Lines come with the rows."""

    def row(self, row: Row) -> None:
        parts = [part for part in (_numbers(row), _retrieval(row)) if part]
        self.say(f"step {row['step']}/{self._total_steps}  {'  '.join(parts)}  ETA {self._remaining(row['step'])}")

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _remaining(self, step: int) -> str:
        num_done = step - self._first_step
        if num_done <= 0:
            return "-"
        seconds = (time.monotonic() - self._started_at) / num_done * (self._total_steps - step)
        return str(timedelta(seconds=round(seconds)))


def _numbers(row: Row) -> str:
    """The losses and the speed of a row, `total` first."""
    losses = [f"{term} {_short(row[f'loss/{term}'])}" for term in _TERMS if f"loss/{term}" in row]
    speed = row.get("speed/images_per_second")
    return "  ".join(losses + ([f"{speed:.0f} images/s"] if speed else []))


def _retrieval(row: Row) -> str:
    """The re-ranked recalls of an evaluation's row."""
    wanted = ("text_to_image/r1", "image_to_text/r1", "r_mean")
    found = [
        (name.removeprefix("retrieval/"), value)
        for name, value in row.items()
        if name.startswith("retrieval/") and name.endswith(wanted) and "/dual/" not in name
    ]
    return "  ".join(f"{name} {_short(value)}" for name, value in found)


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
