"""What does somebody see who watches a run? One line with a bar on a terminal, one line a logged row everywhere else.

The caller's console decides where it goes (stderr) and whether in colour (rich respects NO_COLOR). However narrow the terminal,
the step and the ETA are shown; the losses of single terms give way first, then the bar.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tclx.metrics import MFU, find_metric, main_metrics, without_split
from tclx.spec.objectives import TERMS
from tclx.terminal import printable

NUM_MAIN = 3
"""Metrics of each task that a line has room for."""

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
    clock = Clock(first_step, total_steps)
    if not console.is_terminal:
        yield _Lines(console, clock)
        return
    # Twice a second: the training threads want the CPU more than the bar does.
    # What else is printed belongs above the bar where stderr is that terminal, and stays in the log where it is one.
    own = console.stderr
    bar = _Bar(console, printable(title), clock)
    with Live(bar, console=console, refresh_per_second=2, redirect_stdout=own, redirect_stderr=own):
        yield bar


@dataclass
class Clock:
    """How long a run has been at work in this process, and how long it still needs."""

    first_step: int
    """Done before this process started."""
    total_steps: int
    step: int = field(init=False)
    started_at: float = field(default_factory=lambda: time.monotonic())
    _measured_from: tuple[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.step = self.first_step
        self._measured_from = (self.first_step, self.started_at)

    def note(self, step: int) -> None:
        """`step` steps are done. The first one of a process, with start-up and compilation, says nothing of the others."""
        if self.step == self.first_step < step:
            self._measured_from = (step, time.monotonic())
        self.step = step

    def elapsed(self) -> str:
        return _as_time(time.monotonic() - self.started_at)

    def remaining(self) -> str:
        """From the steps that this process has done; `-` before the first."""
        step, since = self._measured_from
        if self.step <= step:
            step, since = self.first_step, self.started_at
        if self.step <= step:
            return "-"
        return _as_time((time.monotonic() - since) / (self.step - step) * (self.total_steps - self.step))


def _as_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


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
    """The line of a terminal, made anew at every refresh for the width that it has then."""

    def __init__(self, console: Console, title: str, clock: Clock) -> None:
        self._console, self._title, self._clock = console, title, clock
        self._terms: list[str] = []
        self._speed = ""

    def __rich__(self) -> Text:
        clock = self._clock
        share = clock.step / clock.total_steps if clock.total_steps else 0.0
        known = Progress(self._title, f"{clock.step}/{clock.total_steps}", share, clock.elapsed(), f"ETA {clock.remaining()}")
        return fitted(known, self._terms, self._speed, width=self._console.width, ascii_only=self._console.options.ascii_only)

    def step(self, step: int) -> None:
        self._clock.note(step)

    def row(self, row: Row) -> None:
        self._clock.note(row["step"])
        if terms := _losses(row):
            self._terms, self._speed = terms, _speed(row)
        if retrieval := _evaluated(row):
            self.say(f"step {row['step']}: {retrieval}")

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False)


class Progress(NamedTuple):
    """What a line says of a run's progress."""

    title: str
    steps: str
    share: float
    """Of the steps, that is done."""
    elapsed: str
    eta: str


SHORT_TITLE, SHORT_BAR, LONG_BAR = 16, 10, 24
"""Characters: what a name is cut to, and a bar's widths."""


def fitted(known: Progress, terms: Sequence[str], speed: str, *, width: int, ascii_only: bool = False) -> Text:
    """One line that fits: the step and the ETA in any case, then as much as there is room for.

    Args:
        known: where the run stands.
        terms: losses, the total first.
        speed: empty before the first row.
        width: of the terminal, in characters.
        ascii_only: whether the terminal knows nothing else.
    """
    title = known.title if len(known.title) <= SHORT_TITLE else f"{known.title[: SHORT_TITLE - 1]}{'~' if ascii_only else '…'}"
    room = width - 1 - len(known.steps) - 2 - len(known.eta)

    def fits(text: str, *, instead_of: str = "") -> bool:
        nonlocal room
        needed = len(text) + 2 if not instead_of else len(text) - len(instead_of)
        if not text:
            return False
        room = room - needed if needed <= room else -1  # what matters less must not take the place of what did not fit
        return room >= 0

    total = [term for term in terms[:1] if fits(term)]
    title = title if fits(title) else ""
    elapsed = known.elapsed if fits(known.elapsed) else ""
    speed = speed if fits(speed) else ""
    bar = SHORT_BAR if fits("-" * SHORT_BAR) else 0
    others: list[str] = []
    for term in terms[1:]:
        if not fits(term):
            break  # terms are dropped from the right
        others.append(term)
    if title and fits(known.title, instead_of=title):
        title = known.title
    if bar and fits("-" * LONG_BAR, instead_of="-" * bar):
        bar = LONG_BAR
    line = Text(f"{title}  " if title else "", no_wrap=True, end="")
    if bar:
        done = round(bar * min(1.0, known.share))
        full, empty = ("#", "-") if ascii_only else ("━", "─")
        line.append(full * done, "bar.complete").append(empty * (bar - done), "bar.back").append("  ")
    return line.append("  ".join(filter(None, [known.steps, elapsed, known.eta, *total, *others, speed])))


class _Lines:
    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock

    def step(self, step: int) -> None:
        """Lines come with the rows."""
        self._clock.note(step)

    def row(self, row: Row) -> None:
        self._clock.note(row["step"])
        parts = [part for part in ("  ".join(filter(None, [*_losses(row), _speed(row)])), _evaluated(row)) if part]
        self.say(f"step {row['step']}/{self._clock.total_steps}  {'  '.join(parts)}  ETA {self._clock.remaining()}")

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _losses(row: Row) -> list[str]:
    """The losses of a row, `total` first."""
    return [f"{term} {_short(row[f'loss/{term}'])}" for term in ("total", *TERMS) if f"loss/{term}" in row]


def _speed(row: Row) -> str:
    speed, utilisation = row.get("speed/images_per_second"), row.get(MFU)
    return f"{speed:.0f} images/s" + (f" ({utilisation:.0f} % MFU)" if utilisation else "") if speed else ""


def _evaluated(row: Row) -> str:
    """The main metrics of an evaluation's row: `val: T2I R@1 38.200`."""
    shown = set(main_metrics(NUM_MAIN))
    found = [(name, metric) for name in row if without_split(name) in shown and (metric := find_metric(name)) is not None]
    by_split: dict[str, list[str]] = {}
    for name, metric in found:
        by_split.setdefault(name.split("/")[1], []).append(f"{metric.title} {_short(row[name])}")
    return "  ".join(f"{split}: {'  '.join(parts)}" for split, parts in by_split.items())


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
