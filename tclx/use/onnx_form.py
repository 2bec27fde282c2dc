"""Both encoders as ONNX graphs: pixels or token ids in, embeddings out, batches and texts of any size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tclx.errors import InputError, MachineError, Problem

if TYPE_CHECKING:
    from tclx.model.tcl import Encoders
    from tclx.use.loaded import VisionLanguageModel

IMAGE, TEXT = "image_encoder.onnx", "text_encoder.onnx"
PACKAGES = ("onnx", "onnxscript")


class _Images(nn.Module):
    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders = encoders

    def forward(self, pixels: Tensor) -> Any:
        return self.encoders.encode_image(pixels).embedding


class _Texts(nn.Module):
    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders = encoders

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoders.encode_text(input_ids, attention_mask.bool()).embedding


def require_packages() -> None:
    """
    Raises:
        MachineError: a package that writes ONNX is not installed.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MachineError(f"--to onnx needs {' and '.join(missing)}, not installed here: pip install 'tclx[export]'")


def write_encoders(model: VisionLanguageModel, folder: Path) -> None:
    """Write `image_encoder.onnx` and `text_encoder.onnx`.

    The image encoder takes `pixels` [N, 3, S, S] fp32, normalised; the text encoder `input_ids` and `attention_mask`, both
    [N, L] int64, 1 at tokens. They give `image_embeds` and `text_embeds` [N, D], each row of length 1.

    Raises:
        InputError: a model computes something that has no form in ONNX.
    """
    encoders, size = model.model.online, model.spec.model.image_encoder.image_size
    longest = model.spec.data.max_caption_tokens
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=longest)
    pixels = torch.zeros(2, 3, size, size)
    ids = torch.full((2, max(2, min(5, longest))), model.tokenizer.unk_id)
    _write(_Images(encoders), (pixels,), folder / IMAGE, {"pixels": {0: batch}}, "image_embeds")
    words = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    _write(_Texts(encoders), (ids, torch.ones_like(ids)), folder / TEXT, words, "text_embeds")


def _write(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, shapes: dict[str, Any], output: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"), _quiet(), torch.no_grad():
            torch.onnx.export(
                module.eval(),
                inputs,
                path,
                input_names=list(shapes),
                output_names=[output],  # not `embedding`, which an operator of the graph is called
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(Problem("--to", f"{path.name} has no form in ONNX: {reason}", "--to safetensors")) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
