"""What does the host spend on moving the momentum encoders, with their pairs found at every step and found once?

A model as deep as ViT-B/16 with six layers of text and six of fusion, and as narrow as can be, so that computing costs next
to nothing and what is left is Python and launches. Both ways in alternating turns, in processor time of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.following [--turns 100]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tclx.model.momentum import Pairs
from tclx.model.tcl import TCL
from tclx.spec.load import load_experiments

DEEP = [
    "model.image_encoder.depth=12",
    "model.image_encoder.width=16",
    "model.image_encoder.num_heads=2",
    "model.text_encoder.num_layers=6",
    "model.fusion_encoder.num_layers=6",
    "objectives.soft_labels={}",
]


def milliseconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100)
    turns = parser.parse_args().turns
    quickstart = Path(__file__).resolve().parents[1] / "experiments" / "quickstart.yaml"
    (found,) = load_experiments(quickstart, DEEP)
    model = TCL(found.spec, vocab_size=512, pad_token_id=0)
    momentum = model.momentum
    if momentum is None:
        raise TypeError("the quickstart has momentum encoders")
    each, once = [], []
    for _ in range(turns):
        each.append(milliseconds(lambda: Pairs.of(model.online, momentum).update(0.99)))
        once.append(milliseconds(lambda: model.follow(0.99)))
    print(
        json.dumps(
            {
                "parameters": len(list(momentum.parameters())),
                "milliseconds, found at every step": round(median(each), 2),
                "milliseconds, found once": round(median(once), 2),
                "ratio, median of pairs": round(median(a / b for a, b in zip(each, once, strict=True)), 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
