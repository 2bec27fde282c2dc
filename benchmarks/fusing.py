"""What does a training step gain from texts that share their image's keys and values in place of copies?

The pairs of ITM and MLM, four captions for each image of which three are read with the image that stands in their place, go
through the fusion layers and back, by turns as blocks and with copies. Without dropout, which a CPU draws with copies alone.

    OMP_NUM_THREADS=1 python -m benchmarks.fusing [--device cpu] [--precision fp32] [--batch 16] [--width 384] [--turns 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from tclx.model.fusion import Blocks, FusionEncoder, FusionLayer

NUM_LAYERS, NUM_PATCHES, LENGTH = 6, 257, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--turns", type=int, default=9)
    asked = parser.parse_args()
    fusion = layers(asked.width).to(asked.device).train()
    images = torch.randn(asked.batch, NUM_PATCHES, asked.width, device=asked.device, requires_grad=True)
    texts = torch.randn(4 * asked.batch, LENGTH, asked.width, device=asked.device, requires_grad=True)
    mask = torch.ones(texts.shape[:2], dtype=torch.bool, device=asked.device)
    blocks = Blocks((None, torch.randperm(asked.batch, device=asked.device), None, None))
    copies = blocks.flat(fusion.keys_values(images)[0])

    def fused(image_rows: Tensor | Blocks) -> Tensor:
        with torch.autocast(asked.device, dtype=torch.bfloat16, enabled=asked.precision == "bf16"):
            states: Tensor = fusion(texts, mask, fusion.keys_values(images), image_rows)
        return states

    sides: dict[str, Tensor | Blocks] = {"copies": copies, "blocks": blocks}
    allowed = 1e-1 if asked.precision == "bf16" else 1e-4
    torch.testing.assert_close(fused(blocks), fused(copies), atol=allowed, rtol=1e-2)
    kept = {name: kept_for_backward(lambda rows=rows: fused(rows)) for name, rows in sides.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.turns):
        for name, rows in sides.items():
            began = clock(asked.device)
            fused(rows).float().sum().backward()
            times[name].append(clock(asked.device) - began)
    pairs = sorted(copy / block for copy, block in zip(times["copies"], times["blocks"], strict=True))
    for name in sides:
        print(f"{name}: {median(times[name]):.3f} s, {kept[name] / 2**20:.0f} MiB kept for the backward pass")
    print(
        f"{median(pairs):.2f} times as fast ({pairs[0]:.2f} to {pairs[-1]:.2f}); memory {kept['blocks'] / kept['copies']:.2f}"
    )


def layers(width: int) -> FusionEncoder:
    config = BertConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_hidden_layers=NUM_LAYERS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return FusionEncoder([FusionLayer(layer, config, image_width=width) for layer in BertModel(config).encoder.layer])


def kept_for_backward(forward: Callable[[], Tensor]) -> int:
    """Bytes of the different tensors that a forward pass keeps."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(seen.values())


def clock(device: str) -> float:
    """Processor seconds on a CPU, seconds elsewhere."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
