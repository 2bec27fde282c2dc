"""What is an experiment on somebody's own images and captions? A commented spec and a small sweep."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tclx.data.facts import examine
from tclx.data.importing import marked_splits
from tclx.data.selected import SPLITS
from tclx.data.sources.source import Description
from tclx.errors import InputError, Problem, TclxError
from tclx.launch.order import plan_runs
from tclx.spec.data import DataSource, DataSpec, FilesSource, FolderSource
from tclx.spec.shipped import write_new
from tclx.sweep.load import load_sweep

Size = Literal["tiny", "base"]


class Wanted(NamedTuple):
    """What a new experiment is to be."""

    name: str
    images: Path
    captions: Path | None
    """A file of any format that `source: files` reads; None where the captions lie beside the images."""
    size: Size
    device: str
    val_share: float


class Begun(NamedTuple):
    """What was written."""

    spec: Path
    sweep: Path
    data: tuple[tuple[str, Description], ...]
    """What the data were taken for, by key path."""


def begin(wanted: Wanted, folder: Path) -> Begun:
    """Write an experiment and its sweep into a folder; both are loaded and planned before they count as written.

    Captions that mark splits are trained and evaluated on by those, others by a share of the images.

    Raises:
        InputError: the captions or images are not what they should be, or something is there already; nothing stays.
        MachineError: it cannot be written.
    """
    data = _data(wanted)
    num_train = examine(data).facts.num_train_images
    if num_train < 2:
        message = f"{num_train} images are too few to train on"
        raise InputError(Problem("--captions", message, "more images, or a smaller --val-share"))
    spec, sweep = folder / f"{wanted.name}.yaml", folder / f"{wanted.name}-sweep.yaml"
    texts = {spec: _spec(wanted, folder, data, num_train=num_train), sweep: _sweep(wanted)}
    written: list[Path] = []
    try:
        for path, text in texts.items():
            write_new(path, text, is_sweep=path == sweep)
            written.append(path)
        (planned,) = plan_runs([spec], runs_dir=folder / "runs")
        load_sweep(sweep, runs_dir=folder / "runs")
    except TclxError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return Begun(spec, sweep, planned.data)


def _data(wanted: Wanted) -> DataSpec:
    """Training and validation data, with paths as they are from here.

    Raises:
        InputError: the captions cannot be read, or nothing would be left to train or to evaluate on.
    """
    images = str(wanted.images.absolute())
    place: dict[str, Any] = {"source": "folder", "folder": images}
    if wanted.captions is not None:
        place = {"source": "files", "files": [str(wanted.captions.absolute())], "image_root": images}
    source = _as_data(train=place, val=None).train
    try:
        marked = marked_splits(source) if isinstance(source, FilesSource | FolderSource) else []
    except InputError as error:
        key = "--captions" if wanted.captions is not None else "--images"
        raise InputError(*(problem._replace(key=key) for problem in error.problems)) from error
    if any(name.casefold() in SPLITS["data.val"] for name in marked):
        return _as_data(train=place, val=place)
    if marked:
        place["split"] = [name for name in marked if name.casefold() in SPLITS["data.train"]]
    if not 0 < wanted.val_share < 1:
        raise InputError(Problem("--val-share", f"{wanted.val_share:g} leaves nothing to train or to evaluate on", "0.1, say"))
    border = round(1.0 - wanted.val_share, 6)
    return _as_data(train={**place, "part": [0.0, border]}, val={**place, "part": [border, 1.0]})


def _as_data(**sources: dict[str, Any] | None) -> DataSpec:
    return DataSpec.model_validate_json(json.dumps(sources))


def _spec(wanted: Wanted, folder: Path, data: DataSpec, *, num_train: int) -> str:
    batch_size = max(2, min(64 if wanted.size == "tiny" else 32, num_train // 4))
    epochs = 20 if wanted.size == "tiny" else 30
    steps = num_train // batch_size * epochs
    return f"""# {wanted.name}: written by tclx init; `tclx explain KEY` says more of each key.
name: {json.dumps(wanted.name)} # what its runs are called
{_MODEL[wanted.size].format(queue_size=num_train // batch_size * batch_size)}
  train: {_source(data.train, folder)} # {num_train:,} images
  val: {_source(data.val, folder)} # evaluated on
  augmentation: {{flip: 0.5}} # chance of mirroring; 0 where captions say left and right
  reduce_jpegs: true # a camera's photographs are decoded at a part of their size
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


def _source(source: DataSource | None, folder: Path) -> str:
    """As the spec writes it: what lies in its folder from there, anything else by its whole path."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(one) for one in value]
        inside = isinstance(value, str) and Path(value).is_absolute() and Path(value).resolve().is_relative_to(folder.resolve())
        return os.path.relpath(Path(value).resolve(), folder.resolve()) if inside else value

    tree = source.model_dump(mode="json", exclude_unset=True) if source is not None else {}
    tree = {key: tree[key] for key in ("source", "files", "image_root", "folder", "split", "part") if key in tree}
    return "{" + ", ".join(f"{key}: {json.dumps(short(value), ensure_ascii=False)}" for key, value in tree.items()) + "}"


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
  objectives.temperature.initial: {{log_uniform: [0.02, 0.3]}}
  objectives.imc: {{on_or_off: true}}
num_trials: 12 # trial 0 included
confirm: null # {{top: 3, seeds: 5}} trains the best again with fresh seeds: are they better than trial 0, or lucky?
num_workers: 1 # trials at the same time
"""
