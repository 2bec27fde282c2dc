"""A trained model written for elsewhere: as a folder that `tclx.load` reads, as ONNX, or for the official code.

Every form comes with the tokenizer, the preprocessing in JSON, and a model card.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tclx
from tclx.errors import InputError, MachineError, Problem
from tclx.files import machine_error, write_atomically
from tclx.model.downstream import Answerer
from tclx.model.weights import OfficialForm, export_official, write_tensors
from tclx.provenance import describe_code
from tclx.spec.launch import LocalLaunch
from tclx.spec.tracking import TrackingSpec
from tclx.train.checkpoint import save_tokenizer
from tclx.use.card import model_card
from tclx.use.exported import (
    ANSWERS,
    CARD,
    CONFIG,
    FORMAT,
    MODEL,
    PREPROCESSING,
    SCHEMA,
    TOKENIZER,
    preprocessing_of,
    sha256_of,
)
from tclx.use.loaded import VisionLanguageModel, load
from tclx.use.saved import export_saved

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec

Form = Literal["safetensors", "onnx", "official"]


def export(name: str, output: Path, *, to: Form, form: OfficialForm | None = None, runs_dir: Path) -> list[Path]:
    """Write a run's best weights, or a checkpoint's, into a new folder.

    Args:
        name: as `tclx.load` takes it, but for official weights.
        output: a folder that is not there yet, or empty.
        to: `safetensors`, which `tclx.load` reads again; `onnx`, both encoders; `official`.
        form: which official script reads it; None follows from the task.

    Returns:
        The files and folders in it.

    Raises:
        InputError: the folder is not empty, the model does not fit the form, or is not there.
        MachineError: it cannot be written, or packages for ONNX are missing.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(Problem("--output", f"{output} is not empty", "name a new folder"))
    if form is not None and to != "official":
        raise InputError(Problem("--form", f"is of `--to official`, not of {to}", "leave it out"))
    if to == "onnx":
        from tclx.use.onnx_form import require_packages

        require_packages()
    model = load(name, device="cpu", precision="fp32", runs_dir=runs_dir)
    if to == "official":
        form = form or _official_form(model.spec)
        _check_official(model, form)
    elif to == "onnx" and not model.has_common_space:
        raise model.lacks("no embeddings to export as ONNX", "a contrastive term such as objectives.cma makes them")
    was_there = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write(model, output, to=to, form=form)
    except OSError as error:
        _clear(output, was_there)
        raise machine_error(error, f"could not write {output}") from error
    except (InputError, MachineError):
        _clear(output, was_there)
        raise
    return sorted(output.iterdir())


def _write(model: VisionLanguageModel, output: Path, *, to: Form, form: OfficialForm | None) -> None:
    save_tokenizer(model.tokenizer, output / TOKENIZER)
    write_atomically(output / PREPROCESSING, json.dumps(preprocessing_of(model.spec), indent=1))
    if to == "safetensors":
        if isinstance(model.model, Answerer):
            answers = model.answers_of_evaluation()
            write_atomically(output / ANSWERS, json.dumps(answers, indent=0, ensure_ascii=False))
        write_tensors(output / MODEL, model.model.state_dict())
    elif to == "onnx":
        from tclx.use.onnx_form import write_encoders

        write_encoders(model, output)
    elif form is not None:
        if model.saved.run is not None:  # with the momentum copy and the queue, which `load` leaves out
            export_saved(model.saved.path, output / f"{form}.pth", form=form)
        else:
            export_official(model.model, output / f"{form}.pth", form=form)
    write_atomically(output / CARD, model_card(model, to=to, form=form))
    if to == "safetensors":  # last: without it the folder is nothing
        write_atomically(output / CONFIG, json.dumps(_config(model, sha256_of(output / MODEL)), indent=1))


def _config(model: VisionLanguageModel, sha256: str) -> dict[str, Any]:
    """Where it was trained and what it was copied to are nobody's business elsewhere."""
    public = model.spec.model_copy(
        update={
            "launch": LocalLaunch(backend="local"),
            "tracking": TrackingSpec(),
            "training": model.spec.training.model_copy(update=model.trained_in),
        }
    )
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "tclx": tclx.__version__,
        "commit": describe_code()["commit"],
        "origin": {"name": model.name, "step": model.step},
        "sha256": sha256,
        "spec": public.model_dump(mode="json"),
    }


def _clear(output: Path, was_there: bool) -> None:
    """Nothing half is left: all that is in the folder was put there by this export."""
    if not was_there:
        shutil.rmtree(output, ignore_errors=True)
        return
    for path in output.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _official_form(spec: ExperimentSpec) -> OfficialForm:
    forms: dict[str, OfficialForm] = {"entailment": "entailment", "nlvr": "nlvr", "vqa": "vqa"}
    if spec.task.name in forms:
        return forms[spec.task.name]
    if spec.task.name != "pretrain":
        message = f"the official code has no script for a model of task {spec.task.name} alone"
        raise InputError(Problem("--to", message, "--to safetensors"))
    return "pretrain" if spec.objectives.mlm is not None else "retrieval"


def _check_official(model: VisionLanguageModel, form: OfficialForm) -> None:
    encoder = model.spec.model.image_encoder
    if encoder.stem == "conv":
        message = f"the official {form} checkpoint has no place for an image encoder with a convolutional stem"
        raise InputError(Problem("model.image_encoder.stem", message, "--to safetensors, or train with stem: null"))
