"""What did a run cost? Time, GPU-hours (or CPU-hours), throughput and memory, as far as its folder says."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from tclx.report.history import History, Series, is_number
from tclx.runs import RunFolder

_BEGINS = ("started", "resumed")
_WAITS = ("submitted",)
"""Events that happen while nothing trains."""
PEAK_MEMORY = "memory/peak_gib"
SPEED = "speed/images_per_second"


class Cost(NamedTuple):
    """One run's; None where its folder does not say."""

    wall_seconds: float | None
    """While its processes ran, over all attempts; what lies between a last sign and a kill is not known."""
    num_processes: int | None
    device: str | None
    """The GPU's name, or the CPU's kind."""
    has_gpu: bool
    images_per_second: float | None
    """Median over the logged rows, all processes together; the first of each attempt, evaluations and saving are left out."""
    share_waiting: float | None
    """Of the time of a step, for data; median."""
    peak_memory_gib: float | None
    num_attempts: int

    process_hours: float | None
    """See `process_hours`."""

    @property
    def hours_name(self) -> str:
        """What `process_hours` are called."""
        return "GPU-hours" if self.has_gpu else "CPU-hours"


def process_hours(history: History, *, global_batch_size: int, num_processes: int) -> float:
    """Hours in training steps times processes, from the speeds that the rows carry: the one definition of a run's GPU-hours.

    Of runs without a GPU these are CPU-hours. Evaluations, saving, waiting for a slot and what a killed process did after its
    last row are left out.
    """
    seconds, before = 0.0, 0
    for step, speed in zip(*history.series.get(SPEED, Series([], [])), strict=True):
        if speed > 0:
            seconds += (step - before) * global_batch_size / speed
            before = step
    return seconds * num_processes / 3600


def read_cost(folder: RunFolder, history: History) -> Cost:
    """What a run's events, environment and rows say."""
    environment = folder.read_environment()
    events = [event for event in folder.read_events() if is_number(event.get("time"))]
    plan: dict[str, Any] = folder.read_json(folder.plan) if folder.plan.exists() else {}
    starts = [0, *(int(event["step"]) for event in events if event["event"] == "resumed" and is_number(event.get("step")))]
    return Cost(
        wall_seconds=wall_seconds(folder),
        num_processes=environment.world_size,
        device=environment.gpu or environment.cpu,
        has_gpu=bool(environment.gpu),
        images_per_second=_median(history, SPEED, starts),
        share_waiting=_median(history, "speed/share_waiting_for_data", starts),
        peak_memory_gib=max(history.series[PEAK_MEMORY].values) if PEAK_MEMORY in history.series else None,
        num_attempts=sum(event["event"] in _BEGINS for event in events),
        process_hours=_process_hours(history, plan),
    )


def wall_seconds(folder: RunFolder) -> float | None:
    """While its processes ran, each attempt from its beginning to its last sign of life; None before the first."""
    events = [event for event in folder.read_events() if is_number(event.get("time"))]
    state = folder.read_state()
    spans: list[list[float]] = []
    for event in events:
        if event["event"] in _BEGINS:
            spans.append([event["time"], event["time"]])
        elif spans and event["event"] not in _WAITS:
            spans[-1][1] = max(spans[-1][1], event["time"])
    if not spans:
        return None
    if events[-1]["event"] not in _WAITS and state is not None:
        spans[-1][1] = max(spans[-1][1], state.updated_at)
    return sum(end - begin for begin, end in spans)


def _process_hours(history: History, plan: dict[str, Any]) -> float | None:
    if SPEED not in history.series or not is_number(plan.get("global_batch_size")) or not is_number(plan.get("world_size")):
        return None
    return process_hours(history, global_batch_size=plan["global_batch_size"], num_processes=plan["world_size"])


def _median(history: History, metric: str, starts: Sequence[int]) -> float | None:
    """The median over the rows, but for the first after each start: that has allocation, compilation and cold files in it."""
    steps, values = history.series.get(metric, Series([], []))
    firsts = {min((step for step in steps if step > start), default=None) for start in starts}
    kept = [value for step, value in zip(steps, values, strict=True) if step not in firsts]
    return statistics.median(kept or values) if values else None
