"""How much faster is a training step than the same mathematics written plainly, and how much less memory does it take?

`benchmarks/plain.py` is what it is measured against. Both sides train the same model from the same weights on the same batch in
alternating turns, in processor time of as many threads as OMP_NUM_THREADS says; before that, one loss of each is compared.
Memory is what a step adds to a process of its own that holds model, optimizer and batch.

    OMP_NUM_THREADS=1 python -m benchmarks.step [--size quickstart small base] [--precision fp32] [--turns 5]
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.gpu.conditions import Conditions, describe
from benchmarks.gpu.training import SOFT_LABEL_WEIGHT, Trainer
from benchmarks.plain import PlainStep
from tclx.data.batch import Batch
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.pretrain.features import HardNegatives
from tclx.train.precision import autocast
from tests.train.toy import toy_spec

SIDES = ("plain", "tclx")
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    # batch, vocabulary, model and what goes with it
    "quickstart": (64, 512, {
        "model": {
            "image_encoder": {
                "name": "vit_tiny_patch16_224", "image_size": 48, "patch_size": 8, "width": 64, "depth": 2, "num_heads": 4
            },
            "text_encoder": {"sizes": {"width": 64, "num_heads": 4, "intermediate_size": 256}, "num_layers": 2},
            "fusion_encoder": {"num_layers": 2}, "embed_dim": 64, "momentum": 0.98, "queue_size": 512,
        },
        "data.max_caption_tokens": 16,
    }),
    "small": (16, 30522, {
        "model": {
            "image_encoder": {"name": "vit_small_patch16_224", "image_size": 256},
            "text_encoder": {"sizes": {"width": 384, "num_heads": 6, "intermediate_size": 1536}, "num_layers": 6},
            "fusion_encoder": {"num_layers": 6}, "embed_dim": 256, "momentum": 0.995, "queue_size": 16384,
        },
        "data.max_caption_tokens": 25,
    }),
    "base": (16, 30522, {
        "model": {
            "image_encoder": {"name": "vit_base_patch16_224", "image_size": 256},
            "text_encoder": {"name": "bert-base-uncased", "num_layers": 6},
            "fusion_encoder": {"num_layers": 6}, "embed_dim": 256, "momentum": 0.995, "queue_size": 65536,
        },
        "data.max_caption_tokens": 25,
    }),
}  # fmt: skip


def spec_of(size: str, precision: str) -> ExperimentSpec:
    """Every term on, under the published conventions, which the plain step has, too."""
    batch, _, changes = SIZES[size]
    return toy_spec(**{
        **changes, "compat": "official", "training.batch_size_per_gpu": batch, "training.precision": precision,
        "objectives.lmi": {"pooled_grid": 4}, "optim.schedule": {"name": "constant"},
    })  # fmt: skip


def trainer_of(size: str, precision: str) -> Trainer:
    """A model from the spec's seed, with what moves it."""
    trainer = Trainer(spec_of(size, precision), vocab_size=SIZES[size][1], backend="inductor")
    torch.manual_seed(1)
    return trainer


def step_of(side: str, trainer: Trainer) -> Callable[[Batch], object]:
    """One step of training."""
    if side == "tclx":
        return trainer.take
    plain = PlainStep(trainer.model, trainer.spec)

    def take(batch: Batch) -> float:
        with autocast(trainer.spec.training, trainer.device):
            return plain.train(batch, soft_label_weight=SOFT_LABEL_WEIGHT)

    return take


def losses(trainer: Trainer, batch: Batch) -> tuple[float, float]:
    """Of the same pairs and negatives, without dropout: plain and ours."""
    trainer.model.eval()
    rows = torch.arange(len(batch.row), device=batch.row.device)
    negatives = HardNegatives(rows.roll(1), rows.roll(2))
    with torch.no_grad(), autocast(trainer.spec.training, trainer.device):
        plain = PlainStep(trainer.model, trainer.spec).forward(batch, soft_label_weight=SOFT_LABEL_WEIGHT, negatives=negatives)
        ours = trainer.step(batch, soft_label_weight=SOFT_LABEL_WEIGHT, draw=0, negatives=negatives)
    trainer.model.train()
    return plain.loss.item(), ours.loss.item()


def timed(size: str, precision: str, turns: int) -> dict[str, Any]:
    """Processor seconds of a step of each, and their ratio."""
    trainers = {side: trainer_of(size, precision) for side in SIDES}
    batch = trainers["plain"].batch(SIZES[size][0])
    compared = losses(trainers["tclx"], batch)
    steps = {side: step_of(side, trainer) for side, trainer in trainers.items()}
    for step in steps.values():
        step(batch)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(turns):
        for side in SIDES:
            began = time.process_time()
            steps[side](batch)
            seconds[side].append(time.process_time() - began)
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["tclx"], strict=True)]
    return {
        "losses": dict(zip(SIDES, compared, strict=True)),
        "seconds": {side: round(median(values), 4) for side, values in seconds.items()},
        "faster": round(median(ratios), 2),
        "faster, each turn": [round(ratio, 2) for ratio in sorted(ratios)],
    }


def added_gib(side: str, size: str, precision: str) -> float:
    """The most that two steps take on top of model, batch and the optimizer's moments (Linux)."""
    trainer = trainer_of(size, precision)
    step, batch = step_of(side, trainer), trainer.batch(SIZES[size][0])
    moments = sum(8 * parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    gc.collect()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        step(batch)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return (int(peak.split()[1]) * 1024 - before - moments) / 2**30


def memory(size: str, precision: str) -> dict[str, Any]:
    """GiB that training adds, of each in a process of its own."""
    added = {}
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.step", "--size", size, "--precision", precision, "--memory-of", side]
        added[side] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"gib": {side: round(value, 3) for side, value in added.items()}, "share": round(added["tclx"] / added["plain"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["quickstart", "small"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(added_gib(arguments.memory_of, arguments.size[0], arguments.precision))
        return
    found = {
        size: {
            "batch": SIZES[size][0],
            **timed(size, arguments.precision, arguments.turns),
            "memory": memory(size, arguments.precision),
        }
        for size in arguments.size
    }
    about = describe(Conditions("cpu", "tiny"))
    about.pop("size")
    print(json.dumps({"conditions": about, "precision": arguments.precision, "sizes": found}, indent=1))


if __name__ == "__main__":
    main()
