"""One process's share of a global batch: python -m tests.train.step_worker OUTPUT [TERM]; alone, all of it.

With all terms of TCL on, or the one that is named; `centred_queue` has all of them, and a full queue whose keys are centred.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from tclx import distributed
from tclx.data.batch import Batch
from tclx.model.tcl import TCL
from tclx.spec.objectives import TERMS
from tclx.tasks.pretrain.step import TrainingStep

from .toy import toy_spec

WITHOUT_DROPOUT = {
    "model.text_encoder": {"sizes": {"width": 16, "num_heads": 2, "intermediate_size": 32}, "num_layers": 1, "dropout": 0.0}
}
GLOBAL_BATCH, LENGTH, VOCAB_SIZE = 8, 7, 40


def global_batch(rows: slice = slice(None)) -> Batch:
    """Eight random pairs, two of them of one image; every caption hides its second token."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, GLOBAL_BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, VOCAB_SIZE, (GLOBAL_BATCH, LENGTH), generator=generator)
    ids[:, 0] = 2
    mask = torch.arange(LENGTH) < torch.tensor([7, 3, 4, 7, 5, 2, 6, 7])[:, None]
    masked = ids.clone()
    masked[:, 1] = 4
    size = len(ids[rows])
    return Batch(
        images=images[0, rows],
        images_second=images[1, rows],
        input_ids=ids[rows],
        attention_mask=mask[rows],
        masked_input_ids=masked[rows],
        mlm_positions=torch.arange(size) * LENGTH + 1,
        mlm_labels=ids[rows, 1],
        image_index=torch.tensor([0, 1, 2, 3, 4, 1, 6, 7])[rows],
        row=torch.arange(GLOBAL_BATCH)[rows],
        num_bad_images=0,
    )


def fill(model: TCL) -> None:
    """A queue of keys of other images, all on one side: as they lie after the model has moved on."""
    assert model.queue is not None
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(2, model.queue.size, model.queue.image.shape[1], generator=generator) + 1.0
    image, text = functional.normalize(keys, dim=2)
    model.queue.enqueue(image, text, torch.arange(100, 100 + model.queue.size))


def main(output: Path, only: str | None) -> None:
    torch.set_num_threads(1)
    terms: dict[str, Any] = {f"objectives.{name}": {} if name == only else None for name in TERMS} if only in TERMS else {}
    if only == "centred_queue":
        terms = {"objectives.centred_queue": True}
    with distributed.start(torch.device("cpu")):
        spec = toy_spec(**WITHOUT_DROPOUT, **terms)
        model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
        if only == "centred_queue":
            fill(model)
        share = GLOBAL_BATCH // distributed.world_size()
        first = distributed.rank() * share
        batch = global_batch(slice(first, first + share))
        step = distributed.wrap(TrainingStep(model, spec))  # kept until the backward pass, which it averages
        result = step(batch, soft_label_weight=0.4, draw=5)
        result.loss.backward()
        content = {name: distributed.mean(value).clone() for name, value in result.measures.items()}
        content |= {f"keys/{number}": value.clone() for number, value in enumerate(result.keys or ())}
        content |= {f"grad/{name}": each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        if distributed.is_main():
            save_file({name: value.contiguous() for name, value in content.items()}, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
