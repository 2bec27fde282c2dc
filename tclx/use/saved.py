"""What can be done with weights that are trained already? Evaluate them, or write them for the official code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.data.dataset import training_captions
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError, Problem
from tclx.launch.order import without_first_weights
from tclx.model.tcl import MomentumModel
from tclx.model.weights import OfficialForm, export_official, load_initial_weights
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import load_experiments, load_spec_json
from tclx.tasks.evaluating import evaluate_tasks, row_of, write_evaluations
from tclx.tasks.retrieval.task import RetrievalSpec
from tclx.tasks.task import Split
from tclx.train import checkpoint
from tclx.train.precision import choose_device, prepare_numerics
from tclx.use.exported import MODEL, TOKENIZER, Exported, exported_at, read_exported, read_model, without_training_parts

USED_BY_RETRIEVAL = ("online.", "itm_head.")


class Saved(NamedTuple):
    """Weights on the disk, which have not been read yet."""

    path: Path
    """A checkpoint folder or an official file."""
    run: RunFolder | None
    """The run that made them, when they are a run's."""
    exported: Exported | None = None
    """What the folder says that they were exported to, when they were."""


def find_saved(target: Path, *, which: str = "best") -> Saved:
    """What a path stands for.

    Args:
        target: a run folder, a checkpoint folder, a folder that `tclx export` wrote, or a `.pth` or `.safetensors` file.
        which: of a run folder: `best` (the newest where nothing was evaluated), `last`, or a step.

    Raises:
        InputError: nothing is there, or the run has no such checkpoint.
    """
    if not target.exists():
        raise InputError(Problem("", f"there is no run folder, checkpoint folder or weights file {target}"))
    if (target / "spec.json").is_file():
        run = RunFolder(target)
        return Saved(_choose_checkpoint(run, which), run)
    if (exported := exported_at(target)) is not None:
        return Saved(exported / MODEL, None, read_exported(exported))
    path = checkpoint.place_of(target)
    run = RunFolder(path.parent.parent)
    return Saved(path, run if path.is_dir() and run.spec.is_file() else None)


def evaluate_saved(
    target: Path, *, split: Split, which: str = "best", spec_path: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate a run, a checkpoint or official weights.

    A run's best weights on its own spec are recorded in the run's `evaluation/<task>-<split>.json`, with a few examples beside
    it; every other evaluation is an experiment of the caller's and is only returned.

    Args:
        target, which: as `find_saved`.
        split: `val` or `test`.
        spec_path: model and data to evaluate with (position embeddings are interpolated to its image size); the run's own by
            default.
        overrides: `key=value` for `spec_path`.

    Returns:
        `metrics` by name, and where they come from: `split`, `checkpoint`, `step` (None for a file), `spec`, `seconds`.

    Raises:
        InputError: the weights do not fit the spec, or there is no spec.
        RunFailed, MachineError: as `EvaluationTask.evaluate` and `choose_device`.
    """
    saved = find_saved(target, which=which)
    spec = spec_for(saved, spec_path, overrides)
    if not spec.evaluation.tasks:
        spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"retrieval": RetrievalSpec()})})
    device = choose_device(spec.training)
    prepare_numerics(spec.training, device)
    model, tokenizer, step = model_of(saved, spec, exactly=spec_path is None)
    started = time.perf_counter()
    found = evaluate_tasks(model.to(device), spec, split, tokenizer=tokenizer, device=device)
    origin = {
        "split": split,
        "step": step,
        "checkpoint": saved.path.name,
        "spec": spec.name,
        "seconds": time.perf_counter() - started,
    }
    if saved.run is not None and spec_path is None and which == "best" and target.resolve() == saved.run.path.resolve():
        write_evaluations(saved.run, found, split, origin=origin)
        for task, evaluation in found.items():
            saved.run.write_json(saved.run.examples(task, split), evaluation.examples())
    return {**origin, "metrics": row_of(found, split)}


def export_saved(target: Path, output: Path, *, form: OfficialForm) -> None:
    """Write a run's best weights, or a checkpoint's, as an official checkpoint.

    Raises:
        InputError: the model has no counterpart in the official code, or there is no checkpoint.
        MachineError: the file cannot be written.
    """
    saved = find_saved(target)
    if saved.run is None:
        raise InputError(Problem("", f"{target} is no run and no checkpoint of one"))
    export_official(model_of(saved, load_spec_json(saved.run.spec), exactly=True).model, output, form=form)


class Model(NamedTuple):
    """A model with its weights."""

    model: MomentumModel
    tokenizer: CaptionTokenizer
    step: int | None
    """Optimizer steps done; unknown for a file."""


def model_of(saved: Saved, spec: ExperimentSpec, *, exactly: bool, key: str = "--spec") -> Model:
    """The model of a spec with saved weights, on the CPU.

    Args:
        exactly: refuse any difference in names and shapes.
        key: what errors say of another spec.

    Raises:
        InputError: the weights are damaged or do not fit.
    """
    tokenizer = _tokenizer_for(saved, spec)
    model = spec.task.build_model(without_first_weights(spec), vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    if saved.exported is not None:
        without_training_parts(model)
        weights = checkpoint.Weights(saved.path, read_model(saved.exported), saved.exported.step)
    else:
        weights = checkpoint.weights_of(saved.path, key=key)
    if exactly and (saved.path.is_dir() or saved.exported is not None):
        checkpoint.put_weights(saved.path, weights.tensors, model)
    else:
        _fit(model, weights, key)
    return Model(model, tokenizer, weights.step)


def _choose_checkpoint(run: RunFolder, which: str) -> Path:
    if which == "best":
        return checkpoint.place_of(run.path)
    steps = {str(checkpoint.step_of(folder)): folder for folder in checkpoint.named(run.checkpoints)}
    if not steps:
        raise InputError(Problem("", f"the run {run.path} has no checkpoint yet", "let it train first"))
    if which == "last":
        return next(iter(steps.values()))
    if which not in steps:
        there = ", ".join(sorted(steps, key=int)) or "none"
        message = f"{which!r} is neither best, last nor a step that was kept"
        raise InputError(Problem("--checkpoint", message, f"steps: {there}"))
    return steps[which]


def spec_for(saved: Saved, spec_path: Path | None, overrides: Sequence[str] = (), *, key: str = "--spec") -> ExperimentSpec:
    """The spec of saved weights: a file's where one is named, else their own.

    Raises:
        InputError: there is none, or the file has several variants; names `key`.
    """
    if spec_path is None:
        if overrides:
            raise InputError(Problem("--set", "changes a spec file: name it with --spec"))
        if saved.exported is not None:
            return saved.exported.spec
        if saved.run is None:
            raise InputError(Problem(key, f"{saved.path} does not say what it is: name a spec with its model and data"))
        return load_spec_json(saved.run.spec)
    experiments = load_experiments(spec_path, overrides)
    variants = list(dict.fromkeys(experiment.spec.variant for experiment in experiments))
    if len(variants) > 1:
        hint = "write the one variant into a file that extends it"
        raise InputError(Problem(key, f"{spec_path} has several variants: {', '.join(map(str, variants))}", hint))
    return experiments[0].spec


def _tokenizer_for(saved: Saved, spec: ExperimentSpec) -> CaptionTokenizer:
    """The run's own; ids of another one would mean other words."""
    if saved.run is not None:
        return checkpoint.load_tokenizer(saved.run.tokenizer)
    if saved.exported is not None:
        return checkpoint.load_tokenizer(saved.exported.folder / TOKENIZER)
    return build_tokenizer(spec.data.tokenizer, training_captions(spec.data))


def _fit(model: MomentumModel, weights: checkpoint.Weights, key: str) -> None:
    """Weights into the model of another spec; what retrieval uses must all be there."""
    report = load_initial_weights(model, weights.tensors, source=weights.path, key=key)
    if missing := [name for name in report.missing if name.startswith(USED_BY_RETRIEVAL) and "mlm_head" not in name]:
        message = f"{weights.path} lacks {len(missing)} tensors of this model, for instance {missing[0]}"
        raise InputError(Problem(key, message, "switch off the terms that the weights were not trained with"))
