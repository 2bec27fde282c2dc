"""The smallest experiment that is a whole one: it plans at once and trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SPEC: dict[str, Any] = {
    "name": "toy",
    "model": {
        "image_encoder": {
            "name": "vit_tiny_patch16_224",
            "image_size": 16,
            "patch_size": 8,
            "width": 16,
            "depth": 1,
            "num_heads": 2,
        },
        "text_encoder": {
            "sizes": {"width": 16, "num_heads": 2, "intermediate_size": 32, "max_positions": 32},
            "num_layers": 1,
        },
        "fusion_encoder": {"num_layers": 1},
        "embed_dim": 8,
        "queue_size": 32,
    },
    "objectives": {"cma": {}, "imc": {}, "lmi": {"pooled_grid": 1}, "itm": {}, "mlm": {}},
    "data": {
        "train": {"source": "scenes", "split": "train", "num_images": 32, "picture_size": 16},
        "val": {"source": "scenes", "split": "val", "num_images": 8, "picture_size": 16},
        "test": {"source": "scenes", "split": "test", "num_images": 8, "picture_size": 16},
        "tokenizer": {"source": "captions", "vocab_size": 128},
        "max_caption_tokens": 16,
        "num_workers": 0,
    },
    "optim": {"learning_rate": 1e-3},
    "training": {"steps": 2, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 1}},
    "evaluation": {"retrieval": {"top_k": 4, "batch_size": 8}, "during_training": "val", "every_steps": 1, "at_end": "test"},
}


def write_spec(folder: Path, name: str = "toy", **changes: Any) -> Path:
    """An experiment file called after its `name`; `changes` replace whole sections."""
    path = folder / f"{name}.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({**SPEC, "name": name, **changes}, file)
    return path
