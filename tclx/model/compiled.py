"""Encoders through torch.compile: layer by layer, since equal layers share what was compiled for the first of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch._functorch import config as functorch_config

from tclx.model.layers import equal_layers, shape_of

if TYPE_CHECKING:
    from tclx.model.tcl import MomentumModel


def compile_encoders(model: MomentumModel, *, backend: str | Callable[..., object] = "inductor") -> None:
    """Have the layers of all encoders compiled at their first call, in place: names in the state dict stay what they are.

    Equal layers are compiled once for all of them, and again for another precision, another use of gradients and once for
    varying sizes. So the wait does not grow with the depth: of a ViT-B and a BERT-base whole it is minutes. An encoder whose
    layers differ, as those of a CNN do from stage to stage, is compiled as a whole.

    Args:
        backend: of torch.compile.
    """
    functorch_config.donated_buffer = False  # else no graph could be gone through twice, as the gradients of single terms ask
    for encoders in (model.online, model.momentum):
        for part in encoders.children() if encoders is not None else ():
            layers = list(equal_layers(part))
            for piece in layers if len({shape_of(layer) for layer in layers}) == 1 else [part]:
                piece.compile(backend=backend)
