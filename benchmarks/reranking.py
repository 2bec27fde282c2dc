"""What does grouping pairs by image save where ITM re-ranks candidates? Copied keys and values against grouped ones, paired.

    OMP_NUM_THREADS=1 python -m benchmarks.reranking --images 4 --captions 128 --rounds 3

A fusion encoder of BERT-base width (6 layers) over ViT-B/16 tokens with random weights; each image has as many candidate
captions as asked for, their lengths normal around COCO's 11 words. Both ways score the same pairs alternately, in processor
time, after a few that are not counted; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tclx.model.fusion import Groups, grouped
from tclx.model.tcl import TCL
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.retrieval import evaluation
from tclx.tasks.retrieval.evaluation import EncodedCaptions

VOCABULARY, LONGEST = 1000, 30


def model(image_size: int) -> TCL:
    """Random weights; only matching is switched on."""
    sections = {
        "name": "reranking",
        "seed": 0,
        "model": {
            "image_encoder": {"name": "vit_base_patch16_224", "image_size": image_size},
            "text_encoder": {"sizes": {"width": 768, "num_heads": 12, "intermediate_size": 3072}, "num_layers": 1},
            "fusion_encoder": {"num_layers": 6},
            "embed_dim": 256,
            "queue_size": 64,
        },
        "objectives": {"cma": {}, "itm": {}},
        "data": {"train": {"source": "scenes", "num_images": 8, "split": "train"}},
        "optim": {"learning_rate": 1e-3},
        "training": {"steps": 1, "batch_size_per_gpu": 4},
    }
    return TCL(ExperimentSpec.model_validate(sections, strict=False), vocab_size=VOCABULARY, pad_token_id=0).eval()


def timed(match: Callable[[], Tensor], group: Callable[[Tensor], Tensor | Groups]) -> tuple[float, Tensor]:
    evaluation.grouped = group  # type: ignore[assignment]
    started = time.process_time()
    scores = match()
    return time.process_time() - started, scores


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("images", 4), ("captions", 128), ("rounds", 3), ("image-size", 384), ("batch-size", 64)):
        parser.add_argument(f"--{option}", type=int, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    tcl = model(asked.image_size)
    lengths = torch.normal(13.0, 2.4, (asked.captions * 2,)).round().clamp(5, LONGEST)  # [CLS] and [SEP] included
    mask = torch.arange(LONGEST) < lengths[:, None]
    texts = EncodedCaptions(torch.randn(*mask.shape, 768), mask, torch.empty(0))
    pixels = torch.randn(asked.images, 3, asked.image_size, asked.image_size)
    rows = torch.arange(asked.images).repeat_interleave(asked.captions)
    captions = torch.cat([torch.randperm(len(mask))[: asked.captions] for _ in range(asked.images)])

    def match() -> Tensor:
        return evaluation._match_batch(tcl, pixels, rows, captions, texts, asked.batch_size)

    few = slice(0, 2)
    evaluation._match_batch(tcl, pixels[:1], rows[few], captions[few], texts, asked.batch_size)
    ratios = []
    for number in range(asked.rounds):
        before, copied = timed(match, lambda rows: rows)
        after, together = timed(match, grouped)
        ratios.append(before / after)
        differ = f"scores from {copied.min():.4f} to {copied.max():.4f} differ by {(copied - together).abs().max():.1e}"
        print(f"round {number}: copied {before:.2f} s, grouped {after:.2f} s, ratio {ratios[-1]:.2f}; {differ}", flush=True)
    print(f"{len(rows)} pairs, {torch.get_num_threads()} threads: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
