"""How a model of one image becomes a model of two: each fusion layer twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"(online|momentum)\.fusion_encoder\.layers\.(\d+)\.(.+)")


def in_pairs(tensors: Mapping[str, Tensor], *, num_layers: int) -> dict[str, Tensor]:
    """A state dict under our names for `num_layers` fusion layers, in pairs; one that has as many comes back as it is.

    Both layers of a pair start as the same layer; keys and values belong to the first of them alone.
    """
    layers = {name: found for name in tensors if (found := _LAYER.fullmatch(name))}
    if max((int(found[2]) + 1 for found in layers.values()), default=0) == num_layers:
        return dict(tensors)
    doubled = {name: tensor for name, tensor in tensors.items() if name not in layers}
    for name, found in layers.items():
        for side in (0, 1):
            if side and found[3].startswith(("cross_attention.key.", "cross_attention.value.")):
                continue
            doubled[f"{found[1]}.fusion_encoder.layers.{2 * int(found[2]) + side}.{found[3]}"] = tensors[name]
    return doubled
