"""The tiny model that the official numbers were recorded with, and its recorded inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tclx.data.batch import Batch
from tclx.model.tcl import TCL
from tclx.model.weights import load_official
from tclx.spec.experiment import ExperimentSpec

PAD_ID = 0


def tiny_spec(*, form: str = "pretrain", **changes: Any) -> ExperimentSpec:
    """The recorded geometry under `compat: official`, without dropout; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "name": "tiny",
        "compat": "official",
        "model": {
            "image_encoder": {"name": "vit_base_patch16_224", "image_size": 64, "width": 24, "depth": 2, "num_heads": 3},
            "text_encoder": {
                "sizes": {"width": 24, "num_heads": 3, "intermediate_size": 40, "max_positions": 32},
                "num_layers": 2,
                "dropout": 0.0,
            },
            "fusion_encoder": {"num_layers": 2},
            "embed_dim": 16,
            "momentum": 0.995,
            "queue_size": 12,
        },
        "objectives": {
            "cma": {},
            "imc": {},
            # a 4 x 4 grid: the published pre-training pools it to 2 x 2, its retrieval copy always to 4 x 4
            "lmi": {"pooled_grid": 2 if form == "pretrain" else 4},
            "itm": {},
            "mlm": {"mask_probability": 0.35} if form == "pretrain" else None,
        },
        "data": {
            "train": {"source": "files", "form": form, "files": ["/recorded.json"], "image_root": "/"},
            "normalization": {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]},
        },
        "optim": {"learning_rate": 1e-3, "weight_decay": 0.02},
        "training": {"steps": 4, "batch_size_per_gpu": 4},
        **changes,
    }
    return ExperimentSpec.model_validate_json(json.dumps(sections))


def tiny_model(shared: Path, spec: ExperimentSpec, *, initial: str, device: torch.device | str = "cpu") -> TCL:
    """The tiny model with one of the recorded initial states."""
    model = TCL(spec, vocab_size=61, pad_token_id=PAD_ID)
    load_official(model, load_file(shared / "parity" / f"{initial}.safetensors"))
    return model.to(device)


def recorded_tensors(shared: Path, device: torch.device | str = "cpu", *, name: str = "tensors") -> dict[str, Tensor]:
    """A file of recorded numbers, on a device."""
    return load_file(shared / "parity" / f"{name}.safetensors", device=str(device))


def recorded_batch(tensors: dict[str, Tensor], inputs: str, masked: str | None, rows: slice = slice(None)) -> Batch:
    """A recorded batch; the images are already normalised floats, which the tiny spec's statistics leave as they are."""
    ids = tensors[f"{inputs}/input_ids"][rows]
    labels = None if masked is None else tensors[f"{masked}/mlm_labels"]
    device = ids.device
    positions = None if labels is None else (labels.flatten() != -100).nonzero().squeeze(1)
    return Batch(
        images=tensors[f"{inputs}/image"][rows],
        images_second=tensors[f"{inputs}/image_aug"][rows],
        input_ids=ids,
        attention_mask=tensors[f"{inputs}/attention_mask"][rows].bool(),
        masked_input_ids=None if masked is None else tensors[f"{masked}/mlm_input_ids"],
        mlm_positions=positions,
        mlm_labels=None if labels is None or positions is None else labels.flatten()[positions],
        image_index=torch.arange(len(ids), device=device),
        row=torch.arange(len(ids), device=device),
        num_bad_images=0,
    )
