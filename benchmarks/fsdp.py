"""What does a process hold, and how long is its step, with layers divided among processes (launch.fsdp) and with whole copies?

Real gloo processes take a few steps of pre-training with every term on two pairs each: half a ViT-B and half a BERT-base with
momentum encoders, AdamW. What a process needs before it has a model (Python and its packages) is left out. glibc keeps freed
memory of up to 32 MiB a piece for itself, which a GPU's allocator and larger layers do not; it is told not to.

    python -m benchmarks.fsdp [--processes 2 4] [--steps 4]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time

import psutil
import torch

from benchmarks.gpu.training import random_batch
from tclx import distributed
from tclx.model.sharding import shard_layers
from tclx.model.tcl import TCL
from tclx.plan import DataFacts, make_plan
from tclx.spec.experiment import ExperimentSpec
from tclx.system import peak_memory_bytes
from tclx.tasks.pretrain.step import TrainingStep
from tclx.train.cost import CPU_SLACK, estimate_cost
from tclx.train.optim import build_optimizer
from tests.processes import finish_processes, start_processes
from tests.train.toy import toy_spec

MIB = 2**20
VOCAB_SIZE, LENGTH, SIDE, PAIRS = 512, 16, 64, 2
WIDTH, HEADS = 768, 12
WAYS = {"whole copies": False, "divided": True}


def spec_of(everyone: int, *, fsdp: bool) -> ExperimentSpec:
    """The experiment."""
    vit = {"name": "vit_base_patch16_224", "image_size": SIDE, "width": WIDTH, "depth": 6, "num_heads": HEADS}
    bert = {"width": WIDTH, "num_heads": HEADS, "intermediate_size": 4 * WIDTH}
    return toy_spec(
        **{
            "model.image_encoder": vit,
            "model.text_encoder": {"sizes": bert, "num_layers": 3},
            "model.fusion_encoder": {"num_layers": 3},
            "data.max_caption_tokens": LENGTH,
            "training.batch_size_per_gpu": PAIRS,
            "training.checkpoints": {"every_steps": 4, "in_background": False},
            "launch.num_processes": everyone,
            "launch.fsdp": fsdp,
        }
    )


def work(fsdp: bool, num_steps: int) -> None:
    """One process: its steps, what it held at most and how long each step was."""
    torch.set_num_threads(1)
    cpu, seconds = torch.device("cpu"), []
    with distributed.start(cpu):
        gc.collect()
        before = psutil.Process().memory_info().rss
        spec = spec_of(distributed.world_size(), fsdp=fsdp)
        model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
        if fsdp:
            shard_layers(model, device=cpu, num_processes=distributed.world_size())
        step = distributed.wrap(TrainingStep(model, spec))
        optimizer = build_optimizer(model, spec.optim, official=False)
        first_row = PAIRS * distributed.rank()
        batch = random_batch(PAIRS, side=SIDE, length=LENGTH, vocab_size=VOCAB_SIZE, device=cpu, first_row=first_row)
        for number in range(num_steps):
            distributed.barrier()
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            step(batch, soft_label_weight=0.4, draw=number).loss.backward()
            optimizer.step()
            model.follow(spec.model.momentum)
            seconds.append(time.perf_counter() - began)
    print(json.dumps({"mib": (peak_memory_bytes() - before) / MIB, "seconds": statistics.median(seconds[1:])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(WAYS[arguments.work], arguments.steps)
        return
    print("processes  layers        MiB of each  as planned  seconds a step", file=sys.stderr)
    for everyone in arguments.processes:
        for way, fsdp in WAYS.items():
            call = ["-m", "benchmarks.fsdp", "--steps", str(arguments.steps), "--work", way]
            environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
            printed = finish_processes(start_processes(call, world_size=everyone, environment=environment), timeout=600)
            found = [json.loads(each.splitlines()[-1]) for each in printed]
            spec = spec_of(everyone, fsdp=fsdp)
            plan = make_plan(spec, DataFacts(64, 64, 6, 30, 6, 30))
            planned = 1024 * CPU_SLACK * estimate_cost(spec, plan, vocab_size=VOCAB_SIZE).peak_memory_gib
            held, seconds = (statistics.mean(each[key] for each in found) for key in ("mib", "seconds"))
            print(f"{everyone:9}  {way:12}  {held:11.0f}  {planned:10.0f}  {seconds:14.2f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
