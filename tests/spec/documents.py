"""A good spec to spoil, and the shortest way from text to experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.spec.load import Experiment, load_experiments

GOOD = """\
name: toy
seed: 3

model:
  image_encoder: {name: vit_tiny_patch16_224, image_size: 32, patch_size: 8, weights: null}
  text_encoder: {sizes: {width: 64, num_heads: 4, intermediate_size: 256, max_positions: 32}, num_layers: 2}
  fusion_encoder: {num_layers: 2}
  queue_size: 512

objectives:
  cma: {weight: 0.5}
  imc: null
  itm: {}

data:
  train: {source: scenes, split: train, num_images: 5000}
  val: {source: scenes, split: val, num_images: 64}
  max_caption_tokens: 24

optim:
  learning_rate: 1e-4
  schedule: {name: cosine, warmup_steps: 30}

training:
  steps: 300
  batch_size_per_gpu: 128

evaluation: {retrieval: {top_k: 16}, during_training: val}
"""


def write(folder: Path, text: str, name: str = "toy.yaml") -> Path:
    """A spec file; folders on the way are made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str = GOOD, overrides: Sequence[str] = ()) -> list[Experiment]:
    return load_experiments(write(folder, text), overrides)


def load_one(folder: Path, text: str = GOOD, overrides: Sequence[str] = ()) -> Experiment:
    (experiment,) = load(folder, text, overrides)
    return experiment


def refusal(folder: Path, text: str = GOOD, overrides: Sequence[str] = ()) -> str:
    """The error text, with the folder cut away."""
    with pytest.raises(InputError) as caught:
        load(folder, text, overrides)
    return str(caught.value).replace(f"{folder}/", "")
