"""Where does a run wait for the GPU, what does it say when memory runs out, and does a killed one go on?"""

from __future__ import annotations

import os
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu.conditions import PROJECT, Conditions
from tclx.runs import RunFolder
from tclx.track.jsonl import read
from tclx.train import checkpoint
from tests.train import toy

SYNCHRONISING = "called a synchronizing CUDA operation"
"""torch's words, in `set_sync_debug_mode("warn")`."""

WITHOUT_EVALUATION: dict[str, Any] = {"evaluation": {"during_training": None, "at_end": None}}

# ------------------------------------------------------------------------------------------------------------------- waiting

BESIDE_STEPS = ("tclx/train/session.py", "tclx/train/checkpoint.py")
"""Where a run moves its model there once, and writes a checkpoint: a wait for every tensor, but in no step."""


class Syncs:
    """Counts the moments in which the program waits for the GPU, by the line of tclx that they come from."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While it is entered, every synchronising operation is counted; the others' warnings go where they went."""
        with warnings.catch_warnings():
            shown = warnings.showwarning
            warnings.filterwarnings("always", message=f".*{SYNCHRONISING}")

            def show(message: Warning | str, *rest: Any, **more: Any) -> None:
                if SYNCHRONISING in str(message):
                    self.counts[_place()] += 1
                else:
                    shown(message, *rest, **more)

            warnings.showwarning = show
            warn_always = torch.is_warn_always_enabled()
            torch.set_warn_always(True)
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.set_warn_always(warn_always)
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("default")


def _place() -> str:
    """The innermost line of tclx on the stack, and which function of a package it called."""
    package = str(PROJECT / "tclx") + os.sep
    called = ""
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        name = frame.f_code.co_filename
        if name.startswith(package):
            return f"{Path(name).relative_to(PROJECT)}:{line} {frame.f_code.co_qualname}" + (f" ({called})" if called else "")
        if not name.startswith(str(PROJECT)) and not name.endswith(("warnings.py", "contextlib.py")):
            called = frame.f_code.co_qualname
    return f"outside tclx ({called})"


def count_syncs(conditions: Conditions, folder: Path) -> dict[str, Any]:
    """A real run's loop: how often a step waits for the GPU, and where."""
    from tclx.plan import Plan
    from tclx.train.loop import train

    changes = {
        "training.steps": 24,
        "training.device": conditions.device,
        "tracking.log_every_steps": 12,
        "training.checkpoints": {"every_steps": 24},
    }
    spec = toy.toy_spec(**changes, **WITHOUT_EVALUATION)
    run = toy.prepare(folder / "syncs", spec)
    syncs = Syncs()
    with syncs.counting():
        train(run, spec, Plan.from_json(run.read_json(run.plan)))
    in_all = sum(syncs.counts.values())
    beside = sum(count for place, count in syncs.counts.items() if place.startswith(BESIDE_STEPS))
    return {
        "num_steps": 24,
        "num_syncs": in_all,
        "syncs_per_step": (in_all - beside) / 24,
        "by_place": dict(syncs.counts.most_common()),
    }


# -------------------------------------------------------------------------------------------------------------------- memory

ALLOWED_BYTES = 96 * 2**20
"""What the run that is too large may take on top of what it starts with; it wants about a gibibyte."""


def run_out_of_memory(conditions: Conditions, folder: Path) -> dict[str, Any]:
    """A batch that does not fit: the product's words, its exit code and what the run folder says.

    A GPU's allocator is held to a small share of the memory, a CPU's process to a limit of its own: both fail for real.
    """
    encoder = {"name": "vit_tiny_patch16_224", "image_size": 128, "patch_size": 8, "width": 128, "depth": 4, "num_heads": 2}
    changes = {
        "training.device": conditions.device,
        "training.batch_size_per_gpu": 64,
        "model.image_encoder": encoder,
        "model.queue_size": 0,
    }
    run = toy.prepare(folder / "memory", toy.toy_spec(**changes, **WITHOUT_EVALUATION))
    process = toy.start_with(_limit_memory, run)
    codes = toy.wait([process])
    state = run.read_state()
    printed = (run.path / "stderr0.txt").read_text()
    return {
        "exit_code": codes[0],
        "status_of_run": state.status if state else None,
        "reason": state.reason if state else None,
        "names_the_key": "training.batch_size_per_gpu" in ((state.reason if state else None) or ""),
        "traceback": "Traceback" in printed,
        "printed": printed[-3000:],
    }


def _limit_memory(device: str) -> None:
    """In the process that will run out, before it trains."""
    if device == "cuda":
        share = ALLOWED_BYTES / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
        return
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    limit = int(fields["VmData"].split()[0]) * 1024 + 2 * ALLOWED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


# ------------------------------------------------------------------------------------------------------------ kill and resume


def kill_and_resume(conditions: Conditions, folder: Path) -> dict[str, Any]:
    """SIGKILL after the first checkpoint, then the same command again; compared with a run that nothing disturbed.

    Two undisturbed runs say how far a GPU's own additions in changing order lead apart.
    """
    spec = toy.toy_spec(**{"training.device": conditions.device})
    whole, again, killed = (toy.prepare(folder / name, spec) for name in ("whole", "again", "killed"))
    processes = toy.start(killed)
    toy.wait_until(lambda: bool(checkpoint.complete(killed.checkpoints)), processes)
    toy.kill(processes)
    killed_at = checkpoint.step_of(checkpoint.complete(killed.checkpoints)[-1])
    for run in (killed, whole, again):
        toy.run(run)
    events = [event["event"] for event in killed.read_events()]
    return {
        "killed_after_step": killed_at,
        "resumed": "resumed" in events,
        "status_of_run": (state := killed.read_state()) and state.status,
        "same_bits_as_undisturbed": toy.outcome(killed) == toy.outcome(whole),
        "two_undisturbed_have_same_bits": toy.outcome(again) == toy.outcome(whole),
        "largest_difference_of_weights": _largest_difference(killed, whole),
        "largest_difference_of_two_undisturbed": _largest_difference(again, whole),
        "largest_difference_of_losses": _largest_difference_of_losses(killed, whole),
    }


def _largest_difference(one: RunFolder, two: RunFolder) -> float:
    last = [checkpoint.newest(run.checkpoints) for run in (one, two)]
    if last[0] is None or last[1] is None:
        raise RuntimeError("a finished run has no checkpoint")
    weights = [load_file(path / "model.safetensors") for path in last if path is not None]
    return max(
        float((weights[0][name].double() - weights[1][name].double()).abs().max())
        for name in weights[0]
        if weights[0][name].numel()
    )


def _largest_difference_of_losses(one: RunFolder, two: RunFolder) -> float:
    rows = [{row["step"]: row["loss/total"] for row in read(run.metrics) if "loss/total" in row} for run in (one, two)]
    return max(abs(rows[0][step] - rows[1][step]) for step in rows[1])
