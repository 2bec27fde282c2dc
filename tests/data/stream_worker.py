"""Prints what a training process would learn from: the number of each micro-step, its rows, and a digest of the whole batch.

Arguments: the spec (JSON), rank, world size, the first micro-step, the number of micro-steps.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path

import torch

from tclx.data.batch import Batch
from tclx.data.dataset import train_batches, training_captions
from tclx.data.tokenizer import train_wordpiece
from tclx.spec.experiment import ExperimentSpec


def digest(batch: Batch) -> str:
    """Of every tensor of a batch."""
    found = hashlib.sha256()
    for field in fields(batch):
        value = getattr(batch, field.name)
        found.update(value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return found.hexdigest()[:16]


def main() -> None:
    path, *numbers = sys.argv[1:]
    rank, world_size, first, count = map(int, numbers)
    spec = ExperimentSpec.model_validate_json(Path(path).read_text(encoding="utf-8"))
    tokenizer = train_wordpiece(training_captions(spec.data), vocab_size=200)
    stream = train_batches(spec, tokenizer=tokenizer, rank=rank, world_size=world_size, start_micro_step=first)
    for micro_step, batch in enumerate(islice(stream, count), first):
        print(micro_step, *batch.row.tolist(), digest(batch), flush=True)


if __name__ == "__main__":
    main()
