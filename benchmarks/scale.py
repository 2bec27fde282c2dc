"""What does TCL cost as batch, queue, image, caption and number of processes grow? docs/scale.md, from arithmetic alone.

Operations and memory are those of `tclx plan` (acted out without values), bytes between processes those of `received_bytes`,
which tests/test_scale.py holds against bytes counted between real processes. Time follows from the assumptions below.

    python -m benchmarks.scale > docs/scale.md
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from benchmarks.gpu.conditions import Conditions, training_spec
from tclx.gpus import peak_tflops
from tclx.plan import DataFacts, make_plan
from tclx.spec.experiment import ExperimentSpec
from tclx.train.cost import Cost, estimate_cost

CARD = "H100"
MFU, PAIRS = 0.26, 256
"""Of the card's peak in bf16, the best that was measured, with so many pairs (docs/performance.md)."""
NODE = 8
"""GPUs of a node."""
WITHIN, BETWEEN = 300e9, 40e9
"""Bytes a second that a GPU receives in collectives from the same node (NVLink 4) and from others (a 400 Gbit/s port each)."""
ROWS = 5_000_000
WORLDS = (1, 8, 64, 512)


class Received(NamedTuple):
    """Bytes that one process receives from the others in a step."""

    embeddings: float
    """Momentum embeddings of images and captions, and which image each is: the keys of CMA and IMC."""
    locals: float
    """Momentum patches and words: LMI's negatives."""
    negatives: float
    """Image and caption tokens of hard negatives, and their gradients on the way back."""
    gradients: float
    """The sum of all parameters' gradients, by a ring."""

    @property
    def features(self) -> float:
        """All but the parameters' gradients, which no batch changes."""
        return self.embeddings + self.locals + self.negatives


def received_bytes(spec: ExperimentSpec, world: int, *, num_patches: int, width: int, num_trained: int, half: bool) -> Received:
    """What follows from the sizes, every term on; hard negatives lie anywhere in the global batch.

    Args:
        spec: batch, embedding width, pooled grid, caption length.
        world: processes.
        num_patches: of an image.
        width: of image and caption tokens.
        num_trained: parameters.
        half: whether tokens travel in half precision, as under autocast.
    """
    lmi = spec.objectives.lmi
    assert lmi is not None
    size, dim, length = spec.training.batch_size_per_gpu, spec.model.embed_dim, spec.data.max_caption_tokens
    others, elsewhere = (world - 1) * size, size * (world - 1) / world
    num_locals = min(num_patches, (lmi.pooled_grid or 10**9) ** 2)
    tokens = (num_patches + 1 + length) * width
    return Received(
        embeddings=others * (2 * dim * 4 + 8),
        locals=others * ((num_locals + length - 1) * dim * 4 + length - 1),
        negatives=elsewhere * (2 * tokens * (2 if half else 4) + length),
        gradients=2 * (world - 1) / world * num_trained * 4,
    )


def spec_of(**changes: Any) -> ExperimentSpec:
    """ViT-B/16 at 256 px and BERT-base, bf16, 64 pairs, captions of 25 tokens, a queue of 65,536; what differs, by key."""
    tree = training_spec(Conditions("cuda", "full"), "bf16", batch_size=64).model_dump(mode="json")
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    return ExperimentSpec.model_validate(tree, strict=False)


def cost_of(spec: ExperimentSpec) -> Cost:
    return estimate_cost(spec, make_plan(spec, DataFacts(ROWS, ROWS)), vocab_size=30522)


GROWTH: Mapping[str, tuple[str, Sequence[int], str]] = {
    "pairs a GPU": ("training.batch_size_per_gpu", (16, 32, 64, 128, 256), "operations and activations grow with it"),
    "queue": ("model.queue_size", (0, 16384, 65536, 262144), "logits against every key, and two features of 256 numbers each"),
    "image side, px": ("model.image_encoder.image_size", (128, 192, 256, 320, 384), "patches grow with its square"),
    "caption, tokens": ("data.max_caption_tokens", (12, 25, 40, 64), "the fusion encoder is what it costs"),
}


class Projection(NamedTuple):
    """A step on so many GPUs."""

    world: int
    received: Received
    memory_gib: float
    """Of one GPU."""
    compute: float
    """Seconds."""
    communication: float

    @property
    def efficiency(self) -> tuple[float, float]:
        """Of the time that goes into computing: where nothing overlaps, and where everything does."""
        return self.compute / (self.compute + self.communication), min(
            1.0, self.compute / max(self.compute, self.communication)
        )


@cache
def project(world: int) -> Projection:
    batch = {"training.batch_size_per_gpu": PAIRS, "launch.num_processes": world}
    spec = spec_of(**batch, **{"model.queue_size": max(65536, PAIRS * world)})
    cost, peak = cost_of(spec), peak_tflops(CARD, "bf16")
    assert peak is not None
    received = received_bytes(spec, world, num_patches=256, width=768, num_trained=cost.parameters_trainable, half=True)
    rate = WITHIN if world <= NODE else BETWEEN
    compute = cost.flops_per_step / world / (MFU * peak * 1e12)
    return Projection(world, received, cost.peak_memory_gib, compute, sum(received) / rate)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chart(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], *, unit: str) -> str:
    """Lines over equally spaced places, as an SVG that stands in Markdown; from 0 upwards."""
    width, height, left, bottom = 640, 240, 60, 40
    most = max(max(values) for values in series.values()) * 1.1
    colors = ("#2f7ed8", "#d9622b", "#3c9a5f", "#8b5fbf")

    def at(index: int, value: float) -> tuple[float, float]:
        across = left + (width - left - 20) * index / max(1, len(labels) - 1)
        return round(across, 1), round(height - bottom - (height - bottom - 30) * value / most, 1)

    parts = [f'<text x="{left}" y="16" font-size="13" font-weight="bold">{html.escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        _, level = at(0, most * share)
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{level}" y2="{level}" stroke="currentColor" opacity="0.15"/>')
        text = f"{most * share:,.3g} {unit}"
        parts.append(f'<text x="{left - 6}" y="{level + 4}" font-size="10" text-anchor="end">{html.escape(text)}</text>')
    for index, label in enumerate(labels):
        across, _ = at(index, 0)
        parts.append(
            f'<text x="{across}" y="{height - bottom + 16}" font-size="10" text-anchor="middle">{html.escape(label)}</text>'
        )
    for number, (name, values) in enumerate(series.items()):
        points = " ".join(f"{x},{y}" for x, y in (at(index, value) for index, value in enumerate(values)))
        color = colors[number % len(colors)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(
            f'<text x="{left + 150 * number}" y="{height - 6}" font-size="11" fill="{color}">{html.escape(name)}</text>'
        )
    label = html.escape(f"{title}: " + "; ".join(f"{name} {', '.join(f'{v:.3g}' for v in vs)}" for name, vs in series.items()))
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" fill="currentColor">{inside}</svg>'


def page() -> str:
    """The whole of docs/scale.md."""
    cost = cost_of(spec_of())
    text = [
        "# What it costs as it grows",
        _words(
            f"""Written by `python -m benchmarks.scale`, from arithmetic alone: ViT-B/16 at 256 px, BERT-base (6 + 6 layers),
            all five terms, bf16, 64 pairs a GPU, captions of 25 tokens, a queue of 65,536 where nothing else is said:
            {cost.flops_per_step / 1e12:.1f} TFLOP a step, {cost.peak_memory_gib:.1f} GiB, checkpoints of
            {cost.checkpoint_gib:.1f} GiB. Operations and memory are what `tclx plan` says; on one H100 its memory was within 6
            % of what was measured ([performance.md](performance.md))."""
        ),
        "## One GPU",
        *(block for name, (key, values, why) in GROWTH.items() for block in _grown(name, key, values, why)),
        "## Between processes",
        *_between(),
        "## A cluster, on paper",
        *_cluster(),
    ]
    return "\n\n".join(text) + "\n"


def _words(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 150, break_long_words=False, break_on_hyphens=False)


def _grown(name: str, key: str, values: Sequence[int], why: str) -> Iterator[str]:
    costs = [cost_of(spec_of(**{key: value})) for value in values]
    shown = [f"{value:,}" for value in values]
    teraflops, gib = [cost.flops_per_step / 1e12 for cost in costs], [cost.peak_memory_gib for cost in costs]
    rows = [
        [value, f"{operations:.1f}", f"{memory:.1f}", f"{cost.checkpoint_gib:.2f}"]
        for value, operations, memory, cost in zip(shown, teraflops, gib, costs, strict=True)
    ]
    yield f"### `{key}`: {why}"
    yield table([name, "TFLOP a step", "memory, GiB", "checkpoint, GiB"], rows)
    yield chart(f"Cost of a step by {name}", shown, {"TFLOP a step": teraflops, "memory, GiB": gib}, unit="")


def _between() -> list[str]:
    found = {world: project(world).received for world in WORLDS[1:]}
    rows = [
        [f"{world}", *(f"{value / 2**20:,.0f}" for value in (one.embeddings, one.locals, one.negatives, one.gradients))]
        for world, one in found.items()
    ]
    return [
        _words(
            f"""What one process receives in a step of {PAIRS} pairs a GPU, in MiB. Of tokens only those of hard negatives are
            fetched, however many processes there are; the keys of CMA and IMC and the negatives of LMI are those of the global
            batch, so they grow with it. `objectives.in_batch_negatives: local` leaves LMI's out; the embeddings still go into
            the queue."""
        ),
        table(["GPUs", "embeddings", "LMI's patches and words", "hard negatives", "parameters' gradients"], rows),
    ]


def _cluster() -> list[str]:
    found = [project(world) for world in WORLDS]
    rows = [
        [
            f"{one.world}",
            f"{one.world * PAIRS:,}",
            f"{one.memory_gib:.0f}",
            f"{1000 * one.compute:.0f}",
            f"{1000 * one.communication:.0f}",
            " to ".join(f"{100 * share:.0f}" for share in one.efficiency) + " %",
            " to ".join(f"{share * one.world * PAIRS / one.compute:,.0f}" for share in one.efficiency),
        ]
        for one in found
    ]
    series = {
        "nothing overlaps": [100 * one.efficiency[0] for one in found],
        "all overlaps": [100 * one.efficiency[1] for one in found],
    }
    return [
        _words(
            f"""Assumed, and not measured here: every GPU computes at {100 * MFU:.0f} % of an {CARD}'s peak, as one alone did
            with {PAIRS} pairs; it receives {WITHIN / 1e9:.0f} GB/s from its node of {NODE} and {BETWEEN / 1e9:.0f} GB/s from
            others; either nothing of the exchange overlaps with computing, or all of it does. Waiting for the slowest, and for
            data, comes on top. The queue holds one global batch where that is more than 65,536."""
        ),
        table(
            [
                "GPUs",
                "global batch",
                "memory of each, GiB",
                "computing, ms",
                "exchange, ms",
                "share of computing",
                "pairs a second",
            ],
            rows,
        ),
        chart("Share of the time that computes", [f"{one.world}" for one in found], series, unit="%"),
        _words(
            """How to read it: up to 64 GPUs the gradients of the parameters are most of what is exchanged, and DDP overlaps
            them with the backward pass. At 512 LMI's negatives from every other GPU are most of it, and with its logits most of
            what memory grows by: 131,072 samples to be told apart from, where the paper's global batch is 512.
            `in_batch_negatives: local`, which compares within a GPU and with the queue, leaves them out."""
        ),
    ]


if __name__ == "__main__":
    print(page(), end="")
