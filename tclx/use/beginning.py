"""What is an experiment on somebody's own images and captions? A commented spec, a small sweep, a split of the captions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tclx.data.rows import Unreadable, read_items
from tclx.errors import InputError, Problem, TclxError
from tclx.files import machine_error
from tclx.launch.order import plan_runs
from tclx.spec.shipped import write_new
from tclx.sweep.load import load_sweep

Size = Literal["tiny", "base"]


class Wanted(NamedTuple):
    """What a new experiment is to be."""

    name: str
    images: Path
    captions: Path
    size: Size
    device: str
    val_share: float


class Begun(NamedTuple):
    """What was written."""

    spec: Path
    sweep: Path
    num_train_images: int
    num_val_images: int


def begin(wanted: Wanted, folder: Path) -> Begun:
    """Write an experiment, its sweep and its split into a folder; both are loaded and planned before they count as written.

    Raises:
        InputError: the captions or images are not what they should be, or something is there already; nothing stays.
        MachineError: it cannot be written.
    """
    by_image = _captions(wanted.captions)
    train, val = split_by_image(by_image, val_share=wanted.val_share)
    if not train or not val:
        message = f"of {len(by_image)} images {len(train)} would be trained on and {len(val)} evaluated"
        raise InputError(Problem("--val-share", message, "both need some: more images, or another share"))
    lists = {folder / f"{wanted.name}-{split}.json": rows for split, rows in (("train", train), ("val", val))}
    spec, sweep = folder / f"{wanted.name}.yaml", folder / f"{wanted.name}-sweep.yaml"
    for path in (*lists, spec, sweep):
        if path.exists():
            raise InputError(Problem("", f"{path} is there already, and nothing is overwritten", "another --name or folder"))
    written: list[Path] = []
    try:
        for path, rows in lists.items():
            written.append(path)
            _write_rows(path, rows)
        written.append(spec)
        write_new(spec, _spec(wanted, folder, num_train=len(train)))
        plan_runs([spec], runs_dir=folder / "runs")
        written.append(sweep)
        write_new(sweep, _sweep(wanted), is_sweep=True)
        load_sweep(sweep, runs_dir=folder / "runs")
    except TclxError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return Begun(spec, sweep, len(train), len(val))


def _captions(path: Path) -> dict[str, list[str]]:
    """Image -> its captions, in the order of the file. The one place that reads them: further forms of files belong here.

    Raises:
        InputError: the file is no JSON list of objects with `image` and `caption`.
    """
    found: dict[str, list[str]] = {}
    try:
        for item in read_items(path):
            row = item.value if isinstance(item.value, dict) else {}
            texts = row.get("caption")
            texts = [texts] if isinstance(texts, str) else texts
            if (
                not isinstance(row.get("image"), str)
                or not isinstance(texts, list)
                or not all(isinstance(one, str) for one in texts)
            ):
                message = f"{path}:{item.line}: row {item.number} has no `image` with `caption`: a text or a list of them"
                raise InputError(Problem("--captions", message))
            found.setdefault(row["image"], []).extend(texts)
    except Unreadable as error:
        raise InputError(Problem("--captions", f"{path}{error.message}", error.hint)) from error
    return found


def split_by_image(by_image: Mapping[str, Sequence[str]], *, val_share: float) -> tuple[list[Any], list[Any]]:
    """Rows to train on and rows to evaluate; an image is in one of them, and in the same one whatever else is in the file."""
    train: list[Any] = []
    val: list[Any] = []
    for image, texts in by_image.items():
        drawn = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8]) / 2**64
        (val if drawn < val_share else train).append({"image": image, "caption": list(texts)})
    return train, val


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    except OSError as error:
        raise machine_error(error, f"could not write {path}") from error


def _spec(wanted: Wanted, folder: Path, *, num_train: int) -> str:
    batch_size = max(2, min(64 if wanted.size == "tiny" else 32, num_train // 4))
    epochs = 20 if wanted.size == "tiny" else 30
    steps = num_train // batch_size * epochs
    images = wanted.images.resolve()
    inside = images.is_relative_to(folder.resolve())
    root = json.dumps(os.path.relpath(images, folder.resolve()) if inside else str(images), ensure_ascii=False)
    return f"""# {wanted.name}: written by tclx init; `tclx explain KEY` says more of each key.
name: {json.dumps(wanted.name)} # what its runs are called
{_MODEL[wanted.size].format(queue_size=num_train // batch_size * batch_size)}
  train: {{source: files, form: pretrain, files: [{wanted.name}-train.json], image_root: {root}}} # {num_train:,} images
  val: {{source: files, form: retrieval, files: [{wanted.name}-val.json], image_root: {root}}} # the images that init set aside
  augmentation: {{flip: 0.5}} # chance of mirroring; 0 where captions say left and right
  num_workers: 2 # processes that read images; no result depends on it

optim:
  learning_rate: {"1e-3" if wanted.size == "tiny" else "1e-4"} # its highest value
  schedule: {{name: cosine, warmup_steps: {min(100, steps // 10)}}} # rises for so many steps, then falls to the end

training:
  epochs: {epochs} # times that every image is seen
  batch_size_per_gpu: {batch_size} # images a step; less where memory is short
  device: {wanted.device} # auto: a GPU where there is one

evaluation:
  retrieval: {{top_k: 32}} # which caption belongs to which image?
  during_training: val # after every epoch; the best checkpoint is kept
  at_end: val # once more with the best
"""


_MODEL = {
    "tiny": """
model: # small enough for a laptop, from random weights
  image_encoder: # a ViT
    {{name: vit_tiny_patch16_224, image_size: 96, patch_size: 16, width: 192, depth: 4, num_heads: 3, stem: conv}}
  text_encoder: # a BERT
    sizes: {{width: 192, num_heads: 3, intermediate_size: 768, max_positions: 64, initializer_range: 0.07}}
    num_layers: 2
  embed_dim: 128 # width of the space that images and texts share
  queue_size: 0 # no negatives from earlier steps

objectives: # the terms of the loss; null switches one off
  soft_labels: null # a short run has nothing to teach itself
  cma: {{weight: 1.0}} # the right caption is nearest to its image
  imc: {{weight: 0.5}} # two views of an image are alike

data:
  tokenizer: {{source: captions, vocab_size: 4096}} # learned from the captions""",
    "base": """extends: tclx:base/tcl # ViT-B/16 and BERT-base with all terms of the paper, weights from the hub

model: {{queue_size: {queue_size}}} # earlier features that serve as negatives: at most an epoch of them
launch: {{num_processes: 1}} # GPUs of this machine

data:
  tokenizer: {{source: pretrained, name: bert-base-uncased}} # BERT's own""",
}


def _sweep(wanted: Wanted) -> str:
    return f"""# A small search around {wanted.name}: trial 0 is the experiment itself.
name: {json.dumps(f"{wanted.name}-sweep")} # what the study is called
experiment: {wanted.name}.yaml # what is varied
objective: {{metric: retrieval/val/r_mean, direction: maximize}} # what is better
space: # which keys vary, and how far
  optim.learning_rate: {{log_uniform: [{"1e-4, 3e-3" if wanted.size == "tiny" else "1e-5, 3e-4"}]}}
  objectives.imc: {{on_or_off: true}}
num_trials: 8 # trial 0 included
num_workers: 1 # trials at the same time
"""
