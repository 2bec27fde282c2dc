"""For how long does a checkpoint keep training from its next step, written at once and in the background?

A model and its AdamW as large as asked for, on this disk, in alternating turns. `blocks` is what a step waits for; beside a
checkpoint that is being written, steps of another computation are taken and their slowdown is told, since both share the
machine's processors.

    python -m benchmarks.saving [--gib 1] [--turns 5] [--folder .]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from tclx.spec.optim import OptimSpec
from tclx.train import checkpoint
from tclx.train.checkpoint import Content, Progress
from tclx.train.optim import build_optimizer
from tclx.train.saving import Background, Snapshot

WIDTH = 1024


def trained(gib: float) -> tuple[nn.Module, torch.optim.AdamW]:
    """Layers whose weights and two moments take so much; one step has been taken."""
    layers = max(1, round(gib * 2**30 / (3 * 4 * WIDTH * WIDTH)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = build_optimizer(model, OptimSpec(learning_rate=1e-3), official=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    model, optimizer = trained(arguments.gib)
    content = checkpoint.content_of(model, optimizer)
    tensors = [*content.weights.values(), *content.moments.values()]
    size = sum(each.numel() * each.element_size() for each in tensors) / 2**30
    square = torch.randn(512, 512)
    step = lambda: [square @ square for _ in range(20)]  # noqa: E731
    snapshot, folder = Snapshot(), Path(tempfile.mkdtemp(dir=arguments.folder))
    at_once, copying, written, alone, beside = ([] for _ in range(5))

    def save(name: str, what: Content) -> None:
        checkpoint.save(folder / name, Progress(1), content=what, run_id="x")

    try:
        with Background() as writer:
            first = seconds(lambda: snapshot.take(content))  # the system gives the memory
            for turn in range(arguments.turns):
                at_once.append(seconds(lambda: save(f"{turn}-at-once", content)))  # noqa: B023
                alone += [seconds(step) for _ in range(20)]
                copying.append(seconds(lambda: snapshot.take(content)))
                copied, _ = snapshot.take(content)
                done = threading.Event()
                began = time.perf_counter()
                writer.begin(lambda: (save(f"{turn}-beside", copied), done.set())[1])  # noqa: B023
                while not done.is_set():
                    beside.append(seconds(step))
                written.append(time.perf_counter() - began)
                writer.wait()
                for each in folder.iterdir():
                    shutil.rmtree(each)
    finally:
        shutil.rmtree(folder)
    found = {
        "GiB": round(size, 3),
        "tensors": len(tensors),
        "written at once, seconds that block": round(median(at_once), 3),
        "in the background, seconds that block": round(median(copying), 3),
        "in the background, the first time": round(first, 3),
        "blocked, ratio, median of pairs": round(median(a / b for a, b in zip(at_once, copying, strict=True)), 1),
        "in the background, seconds until written": round(median(written), 3),
        "other steps while it is written, slowdown": round(median(beside) / median(alone), 2),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
