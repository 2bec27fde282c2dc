"""What will runs take: time, GPU-hours, jobs, disk, memory? From a run of the same shape, which was measured, or by arithmetic.

Two runs have the same shape when a step of theirs is the same work: the same encoders, sizes, terms, batch, precision and
number of processes, whatever their weights, rates, seeds and lengths are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.errors import TclxError
from tclx.gpus import UTILISATION, peak_tflops
from tclx.launch.costs import Estimate, sections_of
from tclx.launch.local import slots
from tclx.launch.order import PlannedRun
from tclx.plan import first_step
from tclx.report.cost import Cost, read_cost
from tclx.report.history import history_of
from tclx.runs import RunFolder
from tclx.spec.difference import with_defaults
from tclx.spec.launch import SlurmLaunch
from tclx.track.jsonl import read

MOST_LOOKED_AT = 500
"""Run folders, the newest first."""
CPU_SHARE = 0.5
"""Of what a processor reaches in large matrix products: six runs from 0.4 million parameters to ViT-B reached 0.4 to 0.85."""
ASSUMED_GPU = "A100"
"""Where nobody says which it is."""


class Expected(NamedTuple):
    """What one run will take."""

    seconds: float | None
    """From its beginning to its end; None where nothing tells."""
    process_hours: float | None
    hours_name: str
    """GPU-hours or CPU-hours."""
    jobs: int | None
    """Of SLURM, one after the other, where there is a time limit."""
    disk_gib: float | None
    """Of checkpoints, the best among them, while another one is written."""
    memory_gib: float | None
    """Of one training process."""
    memory_of: str
    """GPU or CPU."""
    basis: str
    """Where the time comes from, in words."""


class Speed(NamedTuple):
    """How fast runs of a shape are."""

    images_per_second: float
    """All processes together."""
    seconds_per_evaluation: float
    """With its share of starting and saving: all that a run takes besides its steps."""
    basis: str


def expect(
    runs: Sequence[PlannedRun], estimates: Sequence[Estimate], *, runs_dir: Path, elsewhere: bool = False
) -> list[Expected]:
    """What each run will take, as far as it can be known.

    Args:
        runs: as they were planned.
        estimates: of each, in the same order.
        runs_dir: where runs that were measured may lie.
        elsewhere: as `slots.trains_on_gpus`.
    """
    kinds = [(sections_of(run), first_step(run.spec) or 0) for run in runs]
    different = dict(zip(kinds, zip(runs, estimates, strict=True), strict=True))
    shapes = {kind: shape_of_run(run) for kind, (run, _) in different.items()}
    measured = _measured(shapes.values(), runs_dir)
    found = {}
    for kind, (run, estimate) in different.items():
        speed, on_gpu = measured.get(shapes[kind]), slots.trains_on_gpus(run, elsewhere=elsewhere)
        found[kind] = _expected(run, estimate, speed, num_steps=run.plan.total_steps - kind[1], on_gpu=on_gpu)
    return [found[kind] for kind in kinds]


def _expected(run: PlannedRun, estimate: Estimate, measured: Speed | None, *, num_steps: int, on_gpu: bool) -> Expected:
    plan, cost = run.plan, estimate.cost
    speed = measured or (_by_arithmetic(run, cost, on_gpu=on_gpu) if cost else None)
    seconds = None
    if speed is not None:
        at_end = run.spec.evaluation.at_end is not None
        num_evaluations = _num_evaluations(num_steps, plan.evaluate_every_steps, at_end=at_end)
        seconds = num_steps * plan.global_batch_size / speed.images_per_second
        seconds += num_evaluations * speed.seconds_per_evaluation
    limit = run.spec.launch.time_limit_minutes if isinstance(run.spec.launch, SlurmLaunch) else None
    kept = run.spec.training.checkpoints.keep_last + (plan.evaluate_every_steps is not None)
    written = math.ceil(num_steps / plan.checkpoint_every_steps) + (num_steps < plan.total_steps)
    return Expected(
        seconds=seconds,
        process_hours=seconds * plan.world_size / 3600 if seconds is not None else None,
        hours_name="GPU-hours" if on_gpu else "CPU-hours",
        jobs=math.ceil(seconds / (60 * limit)) if limit and seconds else None,
        disk_gib=cost["checkpoint_gib"] * min(kept + 1, written) if cost else None,
        memory_gib=cost["peak_memory_gib"] if cost else None,
        memory_of="CPU" if not on_gpu else "GPU",
        basis=speed.basis if speed else "not known: no run of this shape was measured, and nothing was estimated",
    )


def _by_arithmetic(run: PlannedRun, cost: Mapping[str, Any], *, on_gpu: bool) -> Speed | None:
    """From the operations of a step and what share of a processor's peak training reaches."""
    precision = run.spec.training.precision
    if on_gpu:
        card, whose = _card(run)
        peak = peak_tflops(card, precision)
        if peak is None:
            return None
        share, rate = UTILISATION[precision], peak * 1e12
        basis = f"{share:.0%} of an {card}'s {peak:g} TFLOP/s in {precision}{whose}, evaluations not counted"
    else:
        share, rate = CPU_SHARE, cost["matrix_gflops"] * 1e9
        what = "this machine's" if not isinstance(run.spec.launch, SlurmLaunch) else "this (another) machine's"
        basis = f"{share:.0%} of {what} {cost['matrix_gflops']:.0f} GFLOP/s, evaluations not counted"
    flops_per_image = cost["flops_per_step"] / run.plan.global_batch_size
    # Processes on one machine share its processor.
    num_processors = run.plan.world_size if on_gpu or isinstance(run.spec.launch, SlurmLaunch) else 1
    return Speed(share * rate * num_processors / flops_per_image, 0.0, basis)


def _card(run: PlannedRun) -> tuple[str, str]:
    """The GPU's name, and a remark where it is assumed."""
    launch = run.spec.launch
    if isinstance(launch, SlurmLaunch):
        named = [launch.gpu_type] if launch.gpu_type else []
    else:
        named = [gpu.name for gpu in slots.listed_gpus()[:1]]
    if named and peak_tflops(named[0], "bf16") is not None:
        return named[0], ""
    return ASSUMED_GPU, f" (assumed: {named[0] + ' is not known' if named else 'name yours as launch.gpu_type'})"


# ------------------------------------------------------------------------------------------------------------------ measured


def shape_of_run(run: PlannedRun) -> str:
    """Of a run that is planned."""
    return shape(run.spec.model_dump(mode="json"), world_size=run.plan.world_size)


def shape(spec: Mapping[str, Any], *, world_size: int) -> str:
    """What decides how long a step takes, on the same machine.

    Args:
        spec: as spec.json has it, of this version.
        world_size: processes.
    """
    model = {key: value for key, value in spec["model"].items() if key not in ("momentum", "queue_size")}
    for encoder in ("image_encoder", "text_encoder"):
        model[encoder] = {key: value for key, value in model[encoder].items() if key not in ("weights", "dropout")}
    objectives = {key: value is not None for key, value in spec["objectives"].items()}
    training = {key: value for key, value in spec["training"].items() if key not in ("steps", "epochs", "checkpoints")}
    kept = ("augmentation", "decoder", "reduce_jpegs", "max_caption_tokens")
    data = {key: spec["data"][key] for key in kept} | {"train": spec["data"]["train"].get("source")}
    tasks = {key: value is not None for key, value in spec.items() if isinstance(value, dict | None)}
    return json.dumps([model, objectives, training, data, tasks, world_size], sort_keys=True)


class Total(NamedTuple):
    """What several runs will take together; None where it is not known of one."""

    seconds: float | None
    """With as many at a time as this machine has room for; None for a cluster, which gives room when it has it."""
    at_once: int
    process_hours: float | None
    disk_gib: float | None


def total(runs: Sequence[PlannedRun], expected: Sequence[Expected], *, repeats: int = 1) -> Total:
    """Of all runs.

    Args:
        runs, expected: as `expect`.
        repeats: so many times, as the trials of a sweep.
    """
    at_once = slots.num_parallel(runs)
    here = not any(isinstance(run.spec.launch, SlurmLaunch) for run in runs)
    seconds, hours, disk = (
        None if None in values else repeats * sum(value for value in values if value is not None)
        for values in ([getattr(one, name) for one in expected] for name in ("seconds", "process_hours", "disk_gib"))
    )
    return Total(seconds / at_once if here and seconds is not None else None, at_once, hours, disk)


def _measured(shapes: Iterable[str], runs_dir: Path) -> dict[str, Speed]:
    """By shape, from the newest run that has one and was measured."""
    wanted, found = set(shapes), dict[str, Speed]()
    for path in _newest(runs_dir):
        if not wanted:
            break
        folder = RunFolder(path)
        try:
            spec, plan = with_defaults(folder.read_json(folder.spec)), folder.read_json(folder.plan)
            if (its := shape(spec, world_size=plan["world_size"])) not in wanted:
                continue
            speed = _speed_of(folder, spec, plan)
        except (TclxError, OSError, KeyError, TypeError, AttributeError, ValueError):
            continue  # of another version, or damaged: another one may tell
        if speed is not None:
            found[its] = speed
            wanted.discard(its)
    return found


def _newest(runs_dir: Path) -> list[Path]:
    metrics = [path for path in runs_dir.glob("*/metrics.jsonl") if path.is_file()]
    return [path.parent for path in sorted(metrics, key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_LOOKED_AT]]


def _speed_of(folder: RunFolder, spec: Mapping[str, Any], plan: Mapping[str, Any]) -> Speed | None:
    rows = read(folder.metrics)
    cost: Cost = read_cost(folder, history_of(rows))
    if cost.images_per_second is None:
        return None
    state, rest = folder.read_state(), 0.0
    if state is not None and state.status == "finished" and cost.process_hours and cost.wall_seconds:
        at_end = spec["evaluation"].get("at_end") is not None
        num_evaluations = _num_evaluations(plan["total_steps"], plan["evaluate_every_steps"], at_end=at_end)
        rest = (cost.wall_seconds - cost.process_hours / plan["world_size"] * 3600) / max(1, num_evaluations)
    on = f"{cost.num_processes or '?'} x {cost.device or '?'}"
    basis = f"{cost.images_per_second:,.0f} images/s, as {folder.run_id} reached on {on}"
    return Speed(cost.images_per_second, max(0.0, rest), basis + ("" if rest > 0 else ", evaluations not counted"))


def _num_evaluations(total_steps: int, every: int | None, *, at_end: bool) -> int:
    """During training, and of the test data at the end."""
    during = -(-total_steps // every) if every else 0  # also after the last step
    return during + at_end
