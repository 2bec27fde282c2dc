"""How many bytes does a training process receive from the others in a step, as the batch and the number of processes grow?

Real gloo processes take one step with every term on (forward and backward), and every exchange of features is counted as it is
made: gathered rows of the others, a ring's two rounds for a sum, rows fetched from others. DDP's sum of the parameters'
gradients, which no batch changes, is not among them. Once as it is, and once with the hard negatives chosen after all
processes' images and captions were gathered, as the published code would have to.

    python -m benchmarks.wire [--processes 2 4] [--batches 4 8 16]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.training import random_batch
from tclx import distributed
from tclx.model.tcl import TCL
from tclx.tasks.pretrain.step import TrainingStep
from tests.processes import finish_processes, start_processes
from tests.train.toy import toy_spec

WAYS = ("fetched", "gathered")
VOCAB_SIZE, LENGTH, SIDE = 64, 16, 64
ENCODERS = {
    "model.image_encoder": {
        "name": "vit_tiny_patch16_224", "image_size": SIDE, "patch_size": 8, "width": 64, "depth": 1, "num_heads": 2
    },
    "model.text_encoder": {"sizes": {"width": 64, "num_heads": 2, "intermediate_size": 64}, "num_layers": 1},
    "data.max_caption_tokens": LENGTH,
}  # fmt: skip


def counted(received: Counter[str]) -> None:
    """From here on every exchange adds to what is received."""
    gather, reduce, all_to_all = dist.all_gather_into_tensor, dist.all_reduce, dist.all_to_all_single

    def counting_gather(output: Tensor, own: Tensor, *more: Any) -> Any:
        received["gathered"] += output.nbytes - own.nbytes
        return gather(output, own, *more)

    def counting_reduce(tensor: Tensor, *more: Any) -> Any:
        everyone = dist.get_world_size()
        received["summed"] += round(2 * (everyone - 1) / everyone * tensor.nbytes)
        return reduce(tensor, *more)

    def counting_all_to_all(output: Tensor, own: Tensor, coming: list[int], going: list[int]) -> Any:
        received["fetched"] += output.nbytes * (sum(coming) - coming[dist.get_rank()]) // max(sum(coming), 1)
        return all_to_all(output, own, coming, going)

    dist.all_gather_into_tensor, dist.all_reduce, dist.all_to_all_single = counting_gather, counting_reduce, counting_all_to_all


def work(size: int, way: str) -> None:
    """One process: a step, and what it received."""
    torch.set_num_threads(1)
    received: Counter[str] = Counter()
    with distributed.start(torch.device("cpu")):
        spec = toy_spec(**ENCODERS)
        step = distributed.wrap(TrainingStep(TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0), spec))
        if way == "gathered":
            fetch = distributed.Exchange.fetch
            distributed.Exchange.fetch = lambda self, x, dtype=None: (  # type: ignore[method-assign,misc]
                distributed.gather_with_gradient(x)[self._rows] if x.is_floating_point() else fetch(self, x)
            )
        counted(received)
        torch.manual_seed(distributed.rank())
        first_row = distributed.rank() * size
        cpu = torch.device("cpu")
        batch = random_batch(size, side=SIDE, length=LENGTH, vocab_size=VOCAB_SIZE, device=cpu, first_row=first_row)
        torch.manual_seed(distributed.rank())  # dropout decides which negatives are hard, and some are one's own
        step(batch, soft_label_weight=0.4, draw=0).loss.backward()
    print(json.dumps(received))


def received_bytes(size: int, everyone: int, *, way: str = "fetched") -> int:
    """Of one process in a step, the mean of all."""
    arguments = ["-m", "benchmarks.wire", "--work", str(size), way]
    outputs = finish_processes(start_processes(arguments, world_size=everyone))
    return round(sum(sum(json.loads(output).values()) for output in outputs) / everyone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(int(arguments.work[0]), arguments.work[1])
        return
    print("processes  pairs of each  kB fetched  kB gathered  ratio", file=sys.stderr)
    for everyone, size in product(arguments.processes, arguments.batches):
        fetched, gathered = (received_bytes(size, everyone, way=way) for way in WAYS)
        print(f"{everyone:9}  {size:13}  {fetched / 1e3:10.1f}  {gathered / 1e3:11.1f}  {gathered / fetched:5.2f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
