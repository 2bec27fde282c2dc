"""Which specs contradict themselves? Rules across sections that need no number from the data; each names the key to change.

A rule yields the problems it finds, without their place; `tclx.plan` adds that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tclx.errors import Problem
from tclx.spec.data import DatasetsSource, DataSource, HubTokenizer, MixtureSource
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.launch import SlurmLaunch
from tclx.spec.model import ImageEncoderSpec
from tclx.spec.objectives import TERMS
from tclx.spec.optim import CosineSchedule
from tclx.spec.stores import client_problem
from tclx.tasks.needs import Needs

BERT_POSITIONS = 512
"""Position embeddings of every published BERT and DistilBERT."""

OF_A_BATCH = (
    "training.batch_size_per_gpu", "launch.num_processes", "launch.num_nodes", "launch.gpus_per_node", "launch.tasks_per_node"
)  # fmt: skip
"""Keys that decide how many pairs a step takes."""

FSDP_TORCH = (2, 15)
"""Whose FSDP2 can be told to forget the forward passes of an evaluation."""

_VIT = re.compile(r"^(?:vit|deit|deit3|beit|beitv2|eva|eva02)_.*patch(\d+)(?:_|$)")
"""timm's plain ViTs; other families have `patch` in their names, too, and shrink the grid further on."""


def num_compared_pairs(spec: ExperimentSpec) -> int:
    """Pairs that one forward pass compares with each other: the global micro-batch, or one process's share of it."""
    processes = spec.launch.num_processes if spec.objectives.in_batch_negatives == "global" else 1
    return spec.training.batch_size_per_gpu * processes


def patch_size(encoder: ImageEncoderSpec) -> int | None:
    """Side of a ViT's patch in pixels; None where only timm knows."""
    if encoder.patch_size is not None:
        return encoder.patch_size
    found = _VIT.match(encoder.name)
    return int(found[1]) if found else None


def patch_grid(encoder: ImageEncoderSpec) -> int | None:
    """Rows, and columns, of patches; None where only timm knows."""
    side = patch_size(encoder)
    return encoder.image_size // side if side else None


def _image_size(spec: ExperimentSpec) -> Iterator[Problem]:
    encoder = spec.model.image_encoder
    side = patch_size(encoder)
    # SigLIP's patch 14 was trained at 384 pixels, with a margin that no patch covers; timm's name ends with such a size.
    native = encoder.name.partition(".")[0].endswith(f"_{encoder.image_size}")
    if side and encoder.image_size % side and not native:
        below = encoder.image_size // side * side
        sizes = f"{below} or {below + side}" if below else f"{side}"
        key = "model.image_encoder.image_size"
        message = f"{encoder.image_size} is not a multiple of the patch size {side}"
        others = ("model.image_encoder.patch_size", "model.image_encoder.name")
        yield Problem(key, message, f"take {sizes}", others=others)


def _frozen_needs_weights(spec: ExperimentSpec) -> Iterator[Problem]:
    encoder = spec.model.image_encoder
    if encoder.frozen and encoder.weights is None and spec.init is None:
        message = "a frozen image encoder with random weights would never see anything"
        others = ("model.image_encoder.weights", "init")
        yield Problem("model.image_encoder.frozen", message, "name its weights, or an init", others=others)


def _lora(spec: ExperimentSpec) -> Iterator[Problem]:
    for key, encoder in (("model.image_encoder", spec.model.image_encoder), ("model.text_encoder", spec.model.text_encoder)):
        if encoder.lora is not None and encoder.weights is None and spec.init is None:
            message, others = "adapters beside random weights would learn little", (f"{key}.weights", "init")
            yield Problem(f"{key}.lora", message, "name its weights, or an init", others=others)
    image = spec.model.image_encoder
    if image.lora is not None and image.frozen:
        message = "the image encoder is frozen; with adapters its own weights stay fixed, too"
        yield Problem("model.image_encoder.lora", message, "null, or frozen: false", others=("model.image_encoder.frozen",))
    if spec.launch.fsdp and (image.lora is not None or spec.model.text_encoder.lora is not None):
        message = "adapters are not divided among processes, and the weights that would be need neither gradients nor moments"
        others = ("model.image_encoder.lora", "model.text_encoder.lora")
        yield Problem("launch.fsdp", message, "false", others=others)


def _vit_heads(spec: ExperimentSpec) -> Iterator[Problem]:
    encoder = spec.model.image_encoder
    if encoder.width and encoder.num_heads and encoder.width % encoder.num_heads:
        message = f"width {encoder.width} is not a multiple of num_heads {encoder.num_heads}"
        yield Problem("model.image_encoder.num_heads", message, others=("model.image_encoder.width",))


def _pooled_grid(spec: ExperimentSpec) -> Iterator[Problem]:
    grid, lmi = patch_grid(spec.model.image_encoder), spec.objectives.lmi
    if grid and lmi and lmi.pooled_grid and lmi.pooled_grid > grid:
        message = f"{lmi.pooled_grid} x {lmi.pooled_grid} locals cannot be pooled from {grid} x {grid} patches"
        others = tuple(f"model.image_encoder.{key}" for key in ("image_size", "patch_size", "name"))
        yield Problem("objectives.lmi.pooled_grid", message, f"at most {grid}; null keeps every patch", others=others)


def _balance(spec: ExperimentSpec) -> Iterator[Problem]:
    if spec.objectives.balance is not None and len(spec.objectives.terms) < 2:
        message = f"there is nothing to balance: {' and '.join(spec.objectives.terms) or 'no term'} alone is on"
        yield Problem("objectives.balance", message, "null", others=tuple(f"objectives.{term}" for term in TERMS))


def _fusion_encoder(spec: ExperimentSpec) -> Iterator[Problem]:
    needing = spec.objectives.needing(Needs.FUSION)
    if needing and spec.model.fusion_encoder is None:
        verb = "needs" if len(needing) == 1 else "need"
        switched_off = ", ".join(f"objectives.{term}: null" for term in needing)
        message = f"{' and '.join(needing)} {verb} a fusion encoder"
        hint = f"add `fusion_encoder: {{num_layers: 6}}`, or set {switched_off}"
        yield Problem("model.fusion_encoder", message, hint, others=tuple(f"objectives.{term}" for term in needing))


def _queue(spec: ExperimentSpec) -> Iterator[Problem]:
    size, batch = spec.model.queue_size, spec.training.batch_size_per_gpu * spec.launch.num_processes
    if not size or not spec.objectives.need(Needs.QUEUE):
        return
    if size < batch:
        message = f"{size} cannot hold one global batch of {batch}"
        yield Problem("model.queue_size", message, f"take 0 or at least {batch}", others=OF_A_BATCH)
    elif spec.compat == "official" and size % batch:
        nearest = size // batch * batch
        message = f"{size} is not a multiple of the global batch {batch}, as the official code requires"
        others = (*OF_A_BATCH, "compat")
        yield Problem("model.queue_size", message, f"take {nearest}, or remove `compat: official`", others=others)


def _official_warmup(spec: ExperimentSpec) -> Iterator[Problem]:
    schedule = spec.optim.schedule
    if spec.compat == "official" and isinstance(schedule, CosineSchedule) and schedule.warmup_steps % 100:
        message = f"{schedule.warmup_steps} is not a multiple of 100: the official warm-up climbs once in 100 steps"
        hint = f"take {round(schedule.warmup_steps, -2)}"
        yield Problem("optim.schedule.warmup_steps", message, hint, others=("compat",))


def _centred_queue(spec: ExperimentSpec) -> Iterator[Problem]:
    if spec.compat == "official" and spec.objectives.centred_queue:
        message = "the published code compares with the queue's keys as they are"
        yield Problem("objectives.centred_queue", message, "leave it out, or `compat: official`", others=("compat",))


def _text_positions(spec: ExperimentSpec) -> Iterator[Problem]:
    text = spec.model.text_encoder
    is_bert = (text.name or "").split("/")[-1].startswith(("bert-", "distilbert-")) and not str(text.name).startswith("/")
    positions = text.sizes.max_positions if text.sizes else BERT_POSITIONS if is_bert else None
    if positions and spec.data.max_caption_tokens > positions:
        message = f"{spec.data.max_caption_tokens} tokens, but the text encoder has {positions} positions"
        hint = "or raise model.text_encoder.sizes.max_positions" if text.sizes else None
        others = ("model.text_encoder.sizes.max_positions", "model.text_encoder.name")
        yield Problem("data.max_caption_tokens", message, hint, others=others)


def _something_to_contrast(spec: ExperimentSpec) -> Iterator[Problem]:
    if num_compared_pairs(spec) > 1:
        return
    terms = spec.objectives
    from_queue = terms.needing(Needs.QUEUE) if not spec.model.queue_size else []
    from_batch = terms.needing(Needs.OTHER_PAIRS)
    if without := from_queue + from_batch:
        verb = "have" if len(without) > 1 else "has"
        served = " and ".join(name for name, term in TERMS.items() if Needs.QUEUE in term.needs)
        hint = f"2 or more; a queue (model.queue_size) serves {served} alone"
        message = f"with a batch of one {', '.join(without)} {verb} no negatives"
        others = ("model.queue_size", *(f"objectives.{name}" for name in without))
        yield Problem("training.batch_size_per_gpu", message, hint, others=others)


def _soft_labels(spec: ExperimentSpec) -> Iterator[Problem]:
    soft = spec.task.distillation(spec)
    if soft is None or Needs.SOFT_LABELS not in spec.task.needs(spec):
        return
    section = "objectives" if spec.task.name == "pretrain" else "task"
    if soft.weight == 1:
        yield Problem(f"{section}.soft_labels.weight", "1 leaves nothing of the ground truth", "below 1; the paper has 0.4")
    if soft.weight and spec.model.momentum == 0:
        message = "at 0 the momentum encoders are the online ones, and soft labels repeat the model's own answer"
        others = (f"{section}.soft_labels", f"{section}.soft_labels.weight")
        yield Problem("model.momentum", message, f"above 0, or {section}.soft_labels: null", others=others)


def _task(spec: ExperimentSpec) -> Iterator[Problem]:
    """Which sections belong to which task, and which rows it reads."""
    task, objectives = spec.task, spec.objectives
    terms = tuple(f"objectives.{name}" for name in TERMS)
    if task.name != "pretrain" and objectives.terms:
        message = f"the terms of the loss are pre-training's; task {task.name} has its own loss"
        yield Problem("objectives", message, "leave the section out", others=(*terms, "task.name"))
    if task.name != "pretrain" and spec.model.fusion_encoder is None:
        yield Problem("model.fusion_encoder", f"task {task.name} needs one", "add `fusion_encoder: {num_layers: 6}`")
    yield from task.problems(spec)
    if spec.data.train.form not in task.forms:
        yield _other_form("data.train", spec.data.train.form, f"task {task.name} learns from", task.forms)
    evaluation = spec.evaluation
    reads_data = any(one.forms is not None for one in evaluation.tasks.values())
    for key in ("during_training", "at_end"):
        split = getattr(evaluation, key)
        if reads_data and split and getattr(spec.data, split) is None:
            message = f"`{split}`, but there is no `data.{split}`"
            yield Problem(f"evaluation.{key}", message, f"add data.{split}, or set null", others=(f"data.{split}",))
    for split in dict.fromkeys(one for one in (evaluation.during_training, evaluation.at_end) if one is not None):
        source: DataSource | None = getattr(spec.data, split)
        for name, one in evaluation.tasks.items():
            if one.forms is not None and source is not None and source.form not in one.forms:
                yield _other_form(f"data.{split}", source.form, f"evaluation.{name} reads", one.forms)


def _mixtures(spec: ExperimentSpec) -> Iterator[Problem]:
    for split in ("val", "test"):
        source: DataSource | None = getattr(spec.data, split)
        if isinstance(source, MixtureSource) and (shared := [name for name, one in source.sources.items() if one.share]):
            message = "what is evaluated is each row once; only training draws by shares"
            yield Problem(f"data.{split}.sources.{shared[0]}.share", message, "leave the shares out")


def _other_form(key: str, form: str, reader: str, forms: tuple[str, ...]) -> Problem:
    message = f"is of `form: {form}`, and {reader} {' or '.join(forms)}"
    return Problem(f"{key}.form", message, others=(key, "task.name"))


def _evaluation(spec: ExperimentSpec) -> Iterator[Problem]:
    evaluation = spec.evaluation
    for task in evaluation.tasks.values():
        yield from task.problems(spec)
    if evaluation.tasks and evaluation.chosen_metric not in (known := evaluation.best_metrics):
        close = difflib.get_close_matches(evaluation.best_metric, known, n=1, cutoff=0.4)
        hint = f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(known)
        message = f"`{evaluation.best_metric}` is not a {' or '.join(evaluation.tasks)} metric of which more is better"
        yield Problem("evaluation.best_metric", message, hint)
    elif evaluation.tasks and (split := evaluation.during_training) is not None:
        name = evaluation.best_row_metric.partition("/")[0]
        if not evaluation.tasks[name].has(split):
            message = f"`{evaluation.best_metric}` selects the best checkpoint on {split}, which {name} does not have"
            yield Problem("evaluation.best_metric", message, f"add evaluation.{name}.{split}, or choose by another task")


def _nothing_to_do(spec: ExperimentSpec) -> Iterator[Problem]:
    if spec.training.steps == 0 and spec.evaluation.at_end is None:
        message = "0 only evaluates, but `evaluation.at_end` is null: there is nothing to do"
        yield Problem("training.steps", message, others=("evaluation.at_end",))


def _precision(spec: ExperimentSpec) -> Iterator[Problem]:
    precision = spec.training.precision
    if spec.training.device == "cpu" and precision in ("fp16", "tf32"):
        message = f"{precision} needs a GPU, and training.device is cpu"
        yield Problem("training.precision", message, "fp32 or bf16", others=("training.device",))


def _gpu_of_a_job(spec: ExperimentSpec) -> Iterator[Problem]:
    if spec.training.device == "cuda" and isinstance(spec.launch, SlurmLaunch) and not spec.launch.gpus_per_node:
        others = ("launch.gpus_per_node",)
        yield Problem("training.device", "cuda, but launch.gpus_per_node is 0", "auto or cpu, or ask for GPUs", others=others)


def _fsdp(spec: ExperimentSpec) -> Iterator[Problem]:
    key, tracking, balance = "launch.fsdp", spec.tracking, spec.objectives.balance
    if not spec.launch.fsdp:
        return
    if spec.launch.num_processes == 1:
        yield Problem(key, "layers are divided among processes, and there is one", "false, or more of them", others=OF_A_BATCH)
    if spec.training.precision == "fp16":
        yield Problem(
            key, "does not work with fp16's scaled gradients", "training.precision: bf16", others=("training.precision",)
        )
    if balance is not None and balance.name != "uncertainty":
        message = f"no process has the whole gradients that `{balance.name}` compares"
        yield Problem(key, message, "objectives.balance: {name: uncertainty}, or null", others=("objectives.balance",))
    if tracking.term_gradient_norms_every_steps is not None:
        other = "tracking.term_gradient_norms_every_steps"
        yield Problem(key, f"no process has the whole gradients that `{other}` measures", f"{other}: null", others=(other,))


def _learning_rates(spec: ExperimentSpec) -> Iterator[Problem]:
    optim = spec.optim
    for key in ("minimum_learning_rate", "warmup_learning_rate"):
        low = getattr(optim.schedule, key, 0.0)
        if low > optim.learning_rate:
            message = f"{low:g} is above the peak, optim.learning_rate: {optim.learning_rate:g}"
            hint = f"at most {optim.learning_rate:g}"
            yield Problem(f"optim.schedule.{key}", message, hint, others=("optim.learning_rate",))
    if optim.learning_rate * optim.weight_decay >= 1:
        message = f"{optim.weight_decay:g} x the learning rate {optim.learning_rate:g} takes away all of a weight at every step"
        yield Problem("optim.weight_decay", message, "the paper has 0.02", others=("optim.learning_rate",))


def _mps(spec: ExperimentSpec) -> Iterator[Problem]:
    """What a Mac's GPU does not do."""
    training, launch = spec.training, spec.launch
    if training.device != "mps":
        return
    if training.precision != "fp32":
        yield Problem("training.precision", f"{training.precision} does not run on training.device: mps", "fp32")
    if training.compile:
        yield Problem("training.compile", "torch.compile is not supported on training.device: mps", "false")
    if launch.backend == "slurm":
        yield Problem("training.device", "mps is a Mac's GPU, and launch.backend is slurm", "auto, cuda or cpu")
    elif launch.num_processes > 1:
        hint = "1; training.device: cpu trains in several"
        yield Problem("launch.num_processes", "a Mac has one GPU, and mps exchanges nothing between processes", hint)


CONTRADICTIONS: tuple[Callable[[ExperimentSpec], Iterator[Problem]], ...] = (
    _image_size,
    _frozen_needs_weights,
    _lora,
    _vit_heads,
    _pooled_grid,
    _balance,
    _fusion_encoder,
    _queue,
    _official_warmup,
    _centred_queue,
    _text_positions,
    _something_to_contrast,
    _soft_labels,
    _task,
    _mixtures,
    _evaluation,
    _nothing_to_do,
    _precision,
    _mps,
    _gpu_of_a_job,
    _fsdp,
    _learning_rates,
)


def missing_files(spec: ExperimentSpec, *, without_data: bool = False) -> Iterator[Problem]:
    """Files and folders that the spec names and this machine does not have; `without_data` leaves out those under `data.*`."""
    for key, path, kind in [*(() if without_data else _data_paths(spec)), *_model_paths(spec)]:
        found = {"file": Path(path).is_file, "folder": Path(path).is_dir}.get(kind, Path(path).exists)()
        if not found:
            yield Problem(key, f"no such {kind}: {path}")


def folders_read(spec: ExperimentSpec) -> Iterator[Path]:
    """Every folder that a run reads something from, other than of its own runs folder."""
    for _, path, kind in [*_data_paths(spec), *_model_paths(spec)]:
        yield Path(path) if kind == "folder" else Path(path).parent


def _model_paths(spec: ExperimentSpec) -> Iterator[tuple[str, str, str]]:
    """Key, path and kind of what is no data; names of a hub are none."""
    model, init, tokenizer = spec.model, spec.init, spec.data.tokenizer
    named = [
        ("model.image_encoder.weights", model.image_encoder.weights, "file"),
        ("model.text_encoder.name", model.text_encoder.name, "folder"),
        ("model.text_encoder.weights", model.text_encoder.weights, "folder"),
        ("data.tokenizer.name", tokenizer.name if isinstance(tokenizer, HubTokenizer) else None, "folder"),
        ("init.experiment", init.experiment if init else None, "file"),
        ("init.checkpoint", init.checkpoint if init else None, "file or folder"),
    ]
    yield from ((key, path, kind) for key, path, kind in named if path is not None and path.startswith("/"))


def missing_packages(spec: ExperimentSpec) -> Iterator[Problem]:
    """What the spec asks for and only an optional package or a newer one can do, where that is not installed."""
    if spec.launch.fsdp and tuple(map(int, (installed := version("torch")).split(".")[:2])) < FSDP_TORCH:
        needed = ".".join(map(str, FSDP_TORCH))
        message = f"needs torch {needed} or newer, and {installed} is installed"
        yield Problem("launch.fsdp", message, f"pip install 'torch>={needed}', or false")
    for key in ("image_encoder", "text_encoder"):
        if getattr(spec.model, key).lora is not None and find_spec("peft") is None:
            yield Problem(f"model.{key}.lora", "the package peft is not installed", "pip install 'tclx[lora]', or null")
    for split in ("train", "val", "test"):
        if (source := getattr(spec.data, split)) is not None:
            found = (client_problem(address, key=f"data.{split}.{key}") for key, address in source.addresses())
            yield from (problem for problem in found if problem is not None)
    for key, source in spec.data.single_sources():
        if isinstance(source, DatasetsSource) and find_spec("datasets") is None:
            yield Problem(f"{key}.source", "the package datasets is not installed", "pip install 'tclx[datasets]'")
    if spec.tracking.tensorboard and find_spec("tensorboard") is None:
        hint = "pip install 'tclx[tensorboard]', or leave the key out: `tclx tensorboard` gives a run its copy later, too"
        yield Problem("tracking.tensorboard", "the package tensorboard is not installed", hint)
    if spec.tracking.notify is not None and find_spec("apprise") is None:
        yield Problem("tracking.notify", "the package apprise is not installed", "pip install 'tclx[notify]'")


def _data_paths(spec: ExperimentSpec) -> Iterator[tuple[str, str, str]]:
    """The same of data."""
    for split in ("train", "val", "test"):
        if (source := getattr(spec.data, split)) is not None:
            yield from ((f"data.{split}.{key}", path, kind) for key, path, kind in source.paths() if path.startswith("/"))
    for name, task in spec.evaluation.tasks.items():
        yield from ((f"evaluation.{name}.{key}", path, kind) for key, path, kind in task.paths() if path.startswith("/"))
