"""Low-rank adapters: what an encoder learns beside weights that stay as they are. The layers themselves are peft's.

Every adapted linear layer is kept with its own weights, its two adapters and their scale, so that a state dict alone says what
the layer computes: `merged` makes the plain layers of it, under the names that they have in a model without adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from tclx.spec.model import LoraSpec

_DOWN, _UP, _SCALE = ".lora_A.default.weight", ".lora_B.default.weight", ".lora_scale"
_INSIDE = ".base_layer."


def adapt(module: nn.Module, layers: Iterable[nn.Module], spec: LoraSpec, *, key: str) -> None:
    """Freeze a module and put adapters beside its linear layers, in place; they start at zero, so nothing changes yet.

    Args:
        module: of which everything else stays as it is.
        layers: its parts whose linear layers are adapted.
        spec: which of them, and how.
        key: the spec's key, for errors.

    Raises:
        InputError: there are no such linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(part) for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)}
    names = [name for name, part in module.named_modules() if id(part) in inside]
    known = sorted({_last(name) for name in names})
    if not names:
        raise InputError(Problem(key, "this encoder has no linear layers that could be adapted", "null"))
    if spec.layers is not None and (unknown := sorted(set(spec.layers) - set(known))):
        raise InputError(Problem(f"{key}.layers", f"no linear layer is called {', '.join(unknown)}", f"of {', '.join(known)}"))
    chosen = [name for name in names if spec.layers is None or _last(name) in spec.layers]
    module.requires_grad_(False)
    alpha: Any = spec.alpha  # peft says a whole number, and divides it
    # Names in full: peft takes the end of a name for any layer that ends so.
    config = LoraConfig(r=spec.rank, lora_alpha=alpha, lora_dropout=spec.dropout, target_modules=_exactly(chosen))
    inject_adapter_in_model(config, module)
    for name in chosen:
        module.get_submodule(name).register_buffer("lora_scale", torch.tensor(spec.alpha / spec.rank))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _exactly(names: Iterable[str]) -> str:
    """As a pattern, which peft matches with the whole name."""
    return "|".join(name.replace(".", r"\.") for name in names)


def unused_adapters(module: nn.Module) -> list[str]:
    """Adapted layers that a backward pass has not come through: their model reads the weights past the layer."""
    return [
        name.removesuffix(_DOWN)
        for name, parameter in module.named_parameters()
        if name.endswith(_DOWN) and parameter.requires_grad and parameter.grad is None
    ]


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Of every tensor of a state dict but the adapters' own: what it is called in a model without adapters."""
    known = list(names)
    layers, found = _adapted(known), dict[str, str]()
    for name in known:
        layer, _, part = name.rpartition(_INSIDE)
        if layer in layers:
            found[name] = f"{layer}.{part}"
        elif not name.endswith((_UP, _DOWN, _SCALE)):
            found[name] = name
    return found


def _adapted(names: Iterable[str]) -> set[str]:
    """The layers that have an adapter's tensor; others may have a part of that name, too, as timm's DLA has."""
    return {name.removesuffix(end) for name in names for end in (_UP, _DOWN, _SCALE) if name.endswith(end)}


def merged(
    tensors: Mapping[str, Tensor], *, source: object = "the state dict", key: str = "init.checkpoint"
) -> dict[str, Tensor]:
    """The state dict of the model without adapters that computes the same; a state dict without any comes back as it is.

    Args:
        source: where it is from, for errors.
        key: the spec key that errors name.

    Raises:
        InputError: an adapter lacks a part, or does not fit its layer.
    """
    found = {plain: tensors[name] for name, plain in plain_names(tensors).items()}
    ends = (f"{_INSIDE}weight", _UP, _DOWN, _SCALE)
    for layer in sorted(_adapted(tensors)):
        parts = [tensors[layer + end] for end in ends if layer + end in tensors]
        if len(parts) < len(ends) or not _fit(*parts):
            message = f"the adapters of {layer} in {source} are not whole, or do not fit its weight"
            raise InputError(Problem(key, message, "a checkpoint of tclx"))
        weight, up, down, scale = parts
        found[f"{layer}.weight"] = (weight.float() + scale.float() * (up.float() @ down.float())).to(weight.dtype)
    return found


def _fit(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> bool:
    are_matrices = weight.ndim == up.ndim == down.ndim == 2 and scale.numel() == 1
    return are_matrices and (len(up), down.shape[1]) == tuple(weight.shape) and up.shape[1] == len(down)
