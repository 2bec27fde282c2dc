"""Specs small enough to build a model from in milliseconds."""

from __future__ import annotations

from typing import Any

from tclx.spec.experiment import ExperimentSpec

VOCAB_SIZE = 61
ALL_TERMS: dict[str, Any] = {"cma": {}, "imc": {}, "lmi": {}, "itm": {}, "mlm": {}}
VIT = {"name": "vit_base_patch16_224", "image_size": 64, "patch_size": 16, "width": 24, "depth": 2, "num_heads": 3}
TEXT = {"sizes": {"width": 24, "num_heads": 3, "intermediate_size": 40, "max_positions": 32}, "num_layers": 2}


def tiny_spec(
    objectives: dict[str, Any] = ALL_TERMS, *, seed: int = 0, training: dict[str, Any] | None = None, **model: Any
) -> ExperimentSpec:
    """The geometry of the recorded official numbers; `model` and `training` change keys of their sections."""
    sections = {
        "name": "tiny",
        "seed": seed,
        "model": {
            "image_encoder": VIT,
            "text_encoder": TEXT,
            "fusion_encoder": {"num_layers": 2},
            "embed_dim": 16,
            "queue_size": 12,
            **model,
        },
        "objectives": objectives,
        "data": {"train": {"source": "scenes", "num_images": 8, "split": "train"}},
        "optim": {"learning_rate": 1e-3},
        "training": {"steps": 4, "batch_size_per_gpu": 4, **(training or {})},
    }
    return ExperimentSpec.model_validate(sections)
