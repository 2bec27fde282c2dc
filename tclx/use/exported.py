"""A trained model in a folder that can be copied anywhere: `tclx export` writes it, `tclx.load` reads it.

FOLDER/model.safetensors    the online encoders and the heads: no momentum copy, no queue, no optimizer
       config.json          this format, the resolved spec, where the weights are from, their checksum
       tokenizer/           tokenizer.json and special_tokens_map.json, with their checksums
       answers.json         of a model that answers questions, the answers that it chooses from
       preprocessing.json   the same for readers that are not tclx: what happens to an image and to a text
       README.md            the model card
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_object, read_texts
from tclx.model.tcl import TCL
from tclx.model.weights import read_tensors
from tclx.spec.experiment import ExperimentSpec

if TYPE_CHECKING:
    from torch import Tensor

    from tclx.model.tcl import MomentumModel

FORMAT, SCHEMA = "tclx-model", 1
MODEL, CONFIG, TOKENIZER, ANSWERS, PREPROCESSING, CARD = (
    "model.safetensors",
    "config.json",
    "tokenizer",
    "answers.json",
    "preprocessing.json",
    "README.md",
)


class Exported(NamedTuple):
    """What config.json says."""

    folder: Path
    spec: ExperimentSpec
    name: str
    """Of the run that it was."""
    step: int | None
    sha256: str
    """Of model.safetensors."""


def exported_at(path: Path) -> Path | None:
    """The exported folder that a path, or the model file in it, stands for; None for anything else."""
    folder = path.parent if path.name == MODEL and path.is_file() else path
    if not (folder / CONFIG).is_file() or (folder / "spec.json").is_file():
        return None
    try:
        return folder if read_object(folder / CONFIG).get("format") == FORMAT else None
    except Unreadable as error:
        if (folder / PREPROCESSING).is_file():  # it was one
            raise
        raise InputError(Problem("", f"{path} is no run, no checkpoint and no exported model: {error}")) from error


def read_exported(folder: Path) -> Exported:
    """What the folder says of its model.

    Raises:
        InputError: config.json is damaged, or another version of tclx wrote it.
    """
    config = read_object(folder / CONFIG)
    if config.get("schema") != SCHEMA:
        message = f"{folder / CONFIG} is of format {config.get('schema')}, and this version of tclx reads format {SCHEMA}"
        raise InputError(Problem("", message, "use the version of tclx that wrote it"))
    try:
        spec = ExperimentSpec.model_validate_json(json.dumps(config["spec"]))
        return Exported(folder, spec, config["origin"]["name"], config["origin"]["step"], config["sha256"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(Problem("", f"{folder / CONFIG} has no spec that this version of tclx understands: {what}")) from error
    except (KeyError, TypeError) as error:
        raise InputError(Problem("", f"{folder / CONFIG} is damaged: it lacks {error}")) from error


def read_model(exported: Exported) -> dict[str, Tensor]:
    """Its weights, on the CPU.

    Raises:
        InputError: they are missing, or not those that were exported.
    """
    path = exported.folder / MODEL
    if not path.is_file():
        raise InputError(Problem("", f"the exported model {exported.folder} is damaged: {MODEL} is missing", "export it again"))
    if sha256_of(path) != exported.sha256:
        message = f"the exported model {exported.folder} is damaged: the checksum of {MODEL} is wrong"
        raise InputError(Problem("", message, "export or copy it again"))
    return read_tensors(path, key="")


def read_answers(exported: Exported) -> list[str] | None:
    """The answers that a model of questions chooses from; None where it has no list.

    Raises:
        InputError: the file is damaged.
    """
    path = exported.folder / ANSWERS
    return read_texts(path) if path.exists() else None


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_training_parts(model: MomentumModel) -> None:
    """Take away what only training reads: the momentum copy and the queue."""
    model.momentum = None
    if isinstance(model, TCL):
        model.queue = None


def preprocessing_of(spec: ExperimentSpec) -> dict[str, Any]:
    """What happens to an image and to a text before the encoders read them, as evaluation does it."""
    data, size = spec.data, spec.model.image_encoder.image_size
    if data.decoder == "fast":
        resampling = (
            "OpenCV: first reduced, by area (linear where the longer side is below 1.5 of the size), then enlarged, cubic"
        )
    else:
        resampling = "Pillow: bicubic"
    return {
        "image": {
            "size": size,
            "resize": "the whole image squeezed to a square",
            "decoder": data.decoder,
            "resampling": resampling,
            "as_stored": spec.compat == "official",
            "max_pixels": data.bad_images.max_pixels,
            "channels": "RGB",
            "scale": 1 / 255,
            "mean": list(data.normalization.mean),
            "std": list(data.normalization.std),
        },
        "text": {
            "lower_case": True,
            "removed_characters": ",.'!?\"()*#:;~",
            "characters_made_spaces": "-/",
            "replaced": {"<person>": "person"},
            "max_words": data.max_caption_words,
            "max_tokens": data.max_caption_tokens,
            "begins_with_cls": True,
            "ends_with_sep": False,
        },
    }
