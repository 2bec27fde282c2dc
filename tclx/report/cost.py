"""What did a run cost? Time, GPU-hours, throughput and memory, as far as its folder says."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from tclx.eval.results import RunResult
from tclx.report.history import History, is_number
from tclx.runs import RunFolder

_BEGINS = ("started", "resumed")
_WAITS = ("submitted",)
"""Events that happen while nothing trains."""
_PEAK_MEMORY = re.compile(r"(^|/)\w*memory\w*_(gib|bytes)$")


class Cost(NamedTuple):
    """One run's; None where its folder does not say."""

    wall_seconds: float | None
    """While its processes ran, over all attempts; what lies between a last sign and a kill is not known."""
    num_processes: int | None
    device: str | None
    """The GPU's name, or the CPU's kind."""
    has_gpu: bool
    images_per_second: float | None
    """Median over the logged rows, all processes together; evaluations and saving left out."""
    share_waiting: float | None
    """Of the time of a step, for data; median."""
    peak_memory_gib: float | None
    num_attempts: int

    @property
    def gpu_hours(self) -> float | None:
        """Processes times hours; None without a GPU."""
        if not self.has_gpu or self.wall_seconds is None or self.num_processes is None:
            return None
        return self.wall_seconds * self.num_processes / 3600


def read_cost(run: RunResult, history: History) -> Cost:
    """What a run's events, environment and rows say."""
    folder = RunFolder(run.folder)
    environment: dict[str, Any] = folder.read_json(folder.environment) if folder.environment.exists() else {}
    events = [event for event in folder.read_events() if is_number(event.get("time"))]
    return Cost(
        wall_seconds=_wall_seconds(events, run.state.updated_at),
        num_processes=environment.get("world_size"),
        device=environment.get("gpu") or environment.get("cpu"),
        has_gpu=bool(environment.get("gpu")),
        images_per_second=_median(history, "speed/images_per_second"),
        share_waiting=_median(history, "speed/share_waiting_for_data"),
        peak_memory_gib=_peak_memory(history),
        num_attempts=sum(event["event"] in _BEGINS for event in events),
    )


def _wall_seconds(events: Sequence[dict[str, Any]], last_sign: float) -> float | None:
    """Each attempt from its beginning to its last sign of life."""
    spans: list[list[float]] = []
    for event in events:
        if event["event"] in _BEGINS:
            spans.append([event["time"], event["time"]])
        elif spans and event["event"] not in _WAITS:
            spans[-1][1] = max(spans[-1][1], event["time"])
    if not spans:
        return None
    if events[-1]["event"] not in _WAITS:
        spans[-1][1] = max(spans[-1][1], last_sign)
    return sum(end - begin for begin, end in spans)


def _median(history: History, metric: str) -> float | None:
    values = history.series[metric].values if metric in history.series else []
    # The first row is the first step alone: allocation, compilation, cold files.
    return statistics.median(values[1:] or values) if values else None


def _peak_memory(history: History) -> float | None:
    peaks = [
        max(series.values) / (2**30 if name.endswith("_bytes") else 1)
        for name, series in history.series.items()
        if _PEAK_MEMORY.search(name)
    ]
    return max(peaks, default=None)
