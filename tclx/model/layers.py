"""Of which layers does an encoder consist? Those that are compiled, or divided among processes, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn


def layers_of(part: nn.Module) -> Iterator[nn.Module]:
    """The layers of an encoder of any family: its own `layers`, or the members of every outermost stack of equal ones."""
    own: Iterable[nn.Module] | None = getattr(part, "layers", None)
    yield from own if own is not None else equal_layers(part)


def equal_layers(part: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost stack of layers that have the same parameters."""
    for child in part.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1 and len({shape_of(each) for each in child}) == 1:
            yield from child
        else:
            yield from equal_layers(child)


def shape_of(layer: nn.Module) -> tuple[object, ...]:
    """What two layers have in common that compute alike."""
    return type(layer), *((name, tensor.shape) for name, tensor in layer.named_parameters())
