"""How fast is a training step, how much memory does it take, and which batch is the largest that fits?"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.conditions import Conditions, Precision, card_name, training_spec
from tclx.data.batch import Batch
from tclx.gpus import peak_tflops
from tclx.model.compiled import compile_encoders
from tclx.model.tcl import TCL
from tclx.plan import DataFacts, make_plan
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.pretrain.step import TrainingStep
from tclx.train.cost import estimate_cost
from tclx.train.optim import build_optimizer, parameters_of
from tclx.train.precision import autocast, choose_device, gradient_scaler, prepare_numerics

WARM_UP = 3
LARGER = 4
"""The common batch times this is measured, too, where it fits."""
SOFT_LABEL_WEIGHT = 0.4
NUM_ROWS = 1_000_000
"""Of the data that the plan is made for: more than any batch."""


def random_batch(size: int, *, side: int, length: int, vocab_size: int, device: torch.device, first_row: int = 0) -> Batch:
    """Random pairs from the global random state, all of different images, 15 % of the tokens hidden."""
    images = torch.randint(0, 256, (2, size, 3, side, side), dtype=torch.uint8, device=device)
    ids = torch.randint(5, vocab_size, (size, length), device=device)
    positions = torch.arange(1, size * length, 7, device=device)
    rows = torch.arange(first_row, first_row + size, device=device)
    return Batch(
        images=images[0],
        images_second=images[1],
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        masked_input_ids=ids.roll(1, dims=0),
        mlm_positions=positions,
        mlm_labels=ids.flatten()[positions],
        image_index=rows,
        row=rows,
        num_bad_images=0,
    )


class Trainer:
    """What `tclx.train.loop` does in a step, without data, rows and files: the step's own time.

    The images are random bytes and the captions random words of full length, made on the device once.
    """

    def __init__(self, spec: ExperimentSpec, *, vocab_size: int, backend: str) -> None:
        self.spec, self.vocab_size = spec, vocab_size
        self.device = choose_device(spec.training)
        prepare_numerics(spec.training, self.device)
        torch.manual_seed(0)
        self.model = TCL(spec, vocab_size=vocab_size, pad_token_id=0).to(self.device)
        self.model.train()
        if spec.training.compile:
            compile_encoders(self.model, backend=backend)
        self.step = TrainingStep(self.model, spec)
        self.optimizer = build_optimizer(self.model, spec.optim, official=False)
        self.scaler = gradient_scaler(spec.training, self.device)
        self.num_draws = 0

    def batch(self, size: int) -> Batch:
        """Random pairs, all of different images, 15 % of the tokens hidden."""
        side, length = self.spec.model.image_encoder.image_size, self.spec.data.max_caption_tokens
        return random_batch(size, side=side, length=length, vocab_size=self.vocab_size, device=self.device)

    def take(self, batch: Batch) -> float:
        """One optimizer step; returns the loss, hence waits for it."""
        return float(self.launch(batch))

    def launch(self, batch: Batch) -> torch.Tensor:
        """One optimizer step, not waited for; returns the loss."""
        model = self.model
        self.num_draws += 1
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.spec.training, self.device):
            output = self.step(batch, soft_label_weight=SOFT_LABEL_WEIGHT, draw=self.num_draws)
        self.scaler.scale(output.loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.get_total_norm([each.grad for each in parameters_of(self.optimizer) if each.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        model.follow(self.spec.model.momentum)
        model.queue.enqueue(*output.keys)
        return output.loss.detach()

    def forget(self) -> None:
        """Give back what a batch that did not fit left behind."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure_step(conditions: Conditions, precision: Precision, *, compiled: bool = False) -> dict[str, Any]:
    """Speed and memory at the common batch and at the largest that fits, beside `tclx plan`'s estimates.

    Returns:
        "batches": per batch size samples a second, MFU and memory; "matrix_product_tflops": what the card reaches at best.

    Raises:
        MachineError: the device cannot compute in this precision.
    """
    batch_size, most = conditions.batch_sizes
    spec = training_spec(conditions, precision, batch_size=batch_size, compiled=compiled)
    began = time.perf_counter()
    trainer = Trainer(spec, vocab_size=conditions.vocab_size, backend=conditions.compiler)
    product = _matrix_product_tflops(conditions.matrix, precision, trainer.device)
    batches = [_timed(trainer, conditions, precision, batch_size, product)]
    if compiled:
        torch.compiler.reset()  # or the second size would be one that varies, which a run's is not
        largest, larger = None, [min(LARGER * batch_size, most)]
    else:
        largest = largest_that_fits(lambda size: _fits(trainer, size), start=batch_size, most=most)
        larger = sorted({size for size in (LARGER * batch_size, largest) if batch_size < size <= largest})
    batches += [_timed(trainer, conditions, precision, size, product) for size in larger]
    return {
        "precision": precision,
        "compiled": compiled,
        "matrix_product_tflops": product,
        "peak_tflops_by_data_sheet": peak_tflops(card_name(trainer.device.type), precision),
        "largest_batch": largest,
        "batches": batches,
        "seconds_in_all": time.perf_counter() - began,
    }


PROFILED_STEPS = 3
MOST_KERNELS = 40
"""That are listed, the longest first."""


def profile_step(conditions: Conditions, precision: Precision, *, compiled: bool = False) -> dict[str, Any]:
    """Where the time of a step goes at the common batch: which kernels, and how long the device has nothing to do.

    Returns:
        "seconds_until_launched": from the step's begin until the program waits for its loss, without the profiler, hence the
        host's time unless the device's queue of launches is full; "kernels": name, milliseconds and calls a step.

    Raises:
        MachineError: the device cannot compute in this precision.
    """
    size = conditions.batch_sizes[0]
    spec = training_spec(conditions, precision, batch_size=size, compiled=compiled)
    trainer = Trainer(spec, vocab_size=conditions.vocab_size, backend=conditions.compiler)
    batch, on_gpu = trainer.batch(size), trainer.device.type == "cuda"
    for _ in range(WARM_UP):
        trainer.take(batch)
    launched, whole = [], []
    for _ in range(conditions.num_steps):
        began = time.perf_counter()
        loss = trainer.launch(batch)
        launched.append(time.perf_counter() - began)
        loss.item()
        whole.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED_STEPS):
            trainer.take(batch)
    times = {
        each.key: (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each.count)
        for each in found.key_averages()
    }
    kernels = sorted(times.items(), key=lambda item: -item[1][0])
    busy = sum(microseconds for microseconds, _ in times.values()) / PROFILED_STEPS / 1e6
    return {
        "precision": precision,
        "compiled": compiled,
        "batch_size": size,
        "seconds_per_step": median(whole),
        "seconds_until_launched": median(launched),
        "seconds_of_kernels": busy,
        # What took no time on the device is the launches themselves.
        "num_kernels": sum(count for microseconds, count in times.values() if microseconds) / PROFILED_STEPS,
        "kernels": [
            [name, microseconds / PROFILED_STEPS / 1e3, count / PROFILED_STEPS]
            for name, (microseconds, count) in kernels[:MOST_KERNELS]
        ],
    }


def largest_that_fits(fits: Callable[[int], bool], *, start: int, most: int) -> int:
    """The largest batch between the two, found by doubling and then halving the gap down to an eighth of it.

    Args:
        fits: whether a batch of this size does; larger than one that does not never does.
        start: known to fit.
    """
    good, bad = start, most + 1
    while 2 * good < bad and good < most:
        good, bad = (2 * good, bad) if fits(2 * good) else (good, 2 * good)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _fits(trainer: Trainer, size: int) -> bool:
    try:
        for _ in range(2):  # the second has the first one's gradients and moments beside it
            trainer.take(trainer.batch(size))
    except torch.OutOfMemoryError:
        return False
    finally:
        trainer.forget()
    return True


def _timed(trainer: Trainer, conditions: Conditions, precision: Precision, size: int, product: float) -> dict[str, Any]:
    """One batch size: the median step of several."""
    trainer.forget()
    batch = trainer.batch(size)
    began = time.perf_counter()
    losses = [trainer.take(batch) for _ in range(WARM_UP)]
    warm_up = time.perf_counter() - began
    seconds = []
    for _ in range(conditions.num_steps):
        began = time.perf_counter()
        losses.append(trainer.take(batch))
        seconds.append(time.perf_counter() - began)
    spec = training_spec(conditions, precision, batch_size=size)
    cost = estimate_cost(spec, make_plan(spec, DataFacts(NUM_ROWS, NUM_ROWS)), vocab_size=conditions.vocab_size)
    middle = median(seconds)
    tflops = cost.flops_per_step / middle / 1e12
    peak = peak_tflops(card_name(trainer.device.type), precision)
    on_gpu = trainer.device.type == "cuda"
    return {
        "batch_size": size,
        "samples_per_second": size / middle,
        "seconds_per_step": middle,
        "fastest_and_slowest": [min(seconds), max(seconds)],
        "seconds_of_warm_up": warm_up,
        "tflop_per_step_estimated": cost.flops_per_step / 1e12,
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "share_of_matrix_product": tflops / product,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "peak_memory_reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "peak_memory_gib_estimated": cost.peak_memory_gib,
        "losses": losses,
    }


def _matrix_product_tflops(side: int, precision: Precision, device: torch.device) -> float:
    """What the device reaches in one large product of random matrices, the median of ten."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        began = time.perf_counter()
        product = one @ two
        product[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / median(seconds[3:]) / 1e12
