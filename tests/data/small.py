"""Small experiments, images and annotation files for the data tests."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tclx.data.batch import Batch
from tclx.spec.data import DataSpec, FilesSource
from tclx.spec.experiment import ExperimentSpec

SCENES = {"source": "scenes", "num_images": 50, "split": "train"}


def experiment(*, data: dict[str, Any] | None = None, **changes: Any) -> ExperimentSpec:
    """A whole spec around some data: IMC (two views) and MLM (masks) are on."""
    sections: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "model": {
            "image_encoder": {"name": "vit_tiny_patch16_224", "image_size": 32},
            "text_encoder": {"sizes": {"width": 32, "num_heads": 2, "intermediate_size": 64}, "num_layers": 1},
            "fusion_encoder": {"num_layers": 1},
        },
        "objectives": {"cma": {}, "imc": {}, "mlm": {"mask_probability": 0.3}},
        "data": {"train": SCENES, "num_workers": 0, **(data or {})},
        "optim": {"learning_rate": 1e-3},
        "training": {"epochs": 1, "batch_size_per_gpu": 6, "accumulation_steps": 2},
    }
    for key, change in changes.items():
        sections[key] = {**sections.get(key, {}), **change} if isinstance(change, dict) else change
    return ExperimentSpec.model_validate_json(json.dumps(sections))


def data_section(**fields: Any) -> DataSpec:
    return DataSpec.model_validate_json(json.dumps({"train": SCENES, **fields}))


def files_source(folder: Path, rows: Any, *, form: str = "pretrain", name: str = "rows.json") -> FilesSource:
    """A source whose only file holds `rows`, as JSON or as the raw text given."""
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return FilesSource.model_validate_json(
        json.dumps({"source": "files", "form": form, "files": [str(path)], "image_root": str(folder)})
    )


def photograph(height: int = 60, width: int = 80, *, seed: int = 0) -> np.ndarray:
    """A smooth random image [H, W, 3] uint8 with the spectrum of photographs (amplitude 1/f)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**1.3, s=(height, width))
    return (128 + 55 * planes / planes.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def encoded(pixels: np.ndarray | Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds nothing: 57 bytes, whatever the size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg_of_claimed_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    content = encoded(photograph())
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :]


def equal(first: Batch, second: Batch) -> bool:
    """Whether two batches agree bit for bit, absent fields included."""

    def same(one: Any, other: Any) -> bool:
        return (
            torch.equal(one, other)
            if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
            else one is other or one == other
        )

    return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(Batch))
