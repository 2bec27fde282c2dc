"""Layers divided among the processes (FSDP2): each keeps its share of their weights, gradients and moments.

A layer is put together where it computes and taken apart again. What stands between the layers (embeddings, last norms,
projections, heads) is small, is read from many places and stays whole in every process.

Source: Rajbhandari et al. 2020, arXiv:1910.02054 (stage 3); Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from tclx.model.layers import layers_of

if TYPE_CHECKING:
    from tclx.model.tcl import MomentumModel


def layers_to_shard(model: MomentumModel) -> Iterator[list[nn.Parameter]]:
    """What `shard_layers` divides, layer by layer."""
    for layers in _stacks(model).values():
        for layer in layers:
            kept = {id(parameter) for parameter in _kept_whole(layer)}
            yield [parameter for parameter in layer.parameters() if id(parameter) not in kept]


def shard_layers(model: MomentumModel, *, device: torch.device, num_processes: int) -> None:
    """Divide the layers of all encoders and of their momentum copies, in place; names in the state dict stay what they are.

    Args:
        model: the same in every process, on any device; its layers go to `device`, one at a time.
        device: this process's.
        num_processes: of the process group, which is joined.
    """
    mesh = init_device_mesh(device.type, (num_processes,))
    for part, layers in _stacks(model).items():
        for layer in layers:
            fully_shard(layer, mesh=mesh, ignored_params=set(_kept_whole(layer)))
        between = {parameter for parameter in part.parameters() if not is_sharded(parameter)}
        fully_shard(part, mesh=mesh, ignored_params=between)  # which has the layers fetched one ahead
        part.register_forward_hook(_expect_no_backward)
        if hasattr(part, "explained"):
            register_fsdp_forward_method(part, "explained")


def _stacks(model: MomentumModel) -> dict[nn.Module, list[nn.Module]]:
    """The layers of every encoder that has some, each once."""
    parts = [part for encoders in (model.online, model.momentum) if encoders is not None for part in encoders.children()]
    found = {part: list(dict.fromkeys(layers_of(part))) for part in parts}
    return {part: layers for part, layers in found.items() if layers}


def _kept_whole(layer: nn.Module) -> list[nn.Parameter]:
    """What of a layer is called while the layer itself is not."""
    places = tuple(f"{place}." for place in getattr(layer, "called_from_outside", ()))
    return [parameter for name, parameter in layer.named_parameters() if name.startswith(places)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has a part of it alone."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory: all of one that is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it where it is divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, as `other` of the same shape is divided; nothing is exchanged."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    there = tensor.to(device=other.device_mesh.device_type)
    return distribute_tensor(there, other.device_mesh, other.placements, src_data_rank=None)


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors of exactly the model's names, into a model whose layers may be divided."""
    own = model.state_dict()
    model.load_state_dict({name: divided_like(tensor, own[name]) for name, tensor in tensors.items()})


@contextmanager
def unsharded(encoders: nn.Module) -> Iterator[None]:
    """While the block runs every process has all of the encoders, so that each may evaluate them as often as it likes.

    Every process must enter it. Weights may not be changed inside.
    """
    divided = [cast("FSDPModule", each) for each in encoders.modules() if isinstance(each, FSDPModule)]
    called: set[FSDPModule] = set()
    parts = [part for part in encoders.children() if isinstance(part, FSDPModule)]
    hooks = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in parts]
    for each in divided:
        _keep_unsharded(each, True)
        each.unshard()
    try:
        yield
    finally:
        for each in divided:
            _keep_unsharded(each, False)
            each.reshard()
        for part in called:
            part.reset_iter_state()  # see `_expect_no_backward`
        for hook in hooks:
            hook.remove()


def _keep_unsharded(module: FSDPModule, kept: bool) -> None:
    module.set_reshard_after_forward(not kept, recurse=False)
    module.set_reshard_after_backward(not kept, recurse=False)  # Grad-CAM has one


def _expect_no_backward(part: nn.Module, _inputs: object, output: Tensor) -> None:
    """Of a forward pass of the training from which nothing is learned, as a momentum encoder's.

    Layers are fetched ahead by the order of all forward passes that a backward pass has not gone through yet. Were they not
    forgotten, the list of them would grow for ever; and processes that have evaluated differently often would fetch different
    layers, and wait for each other.
    """
    if part.training and not output.requires_grad:
        cast("FSDPModule", part).reset_iter_state()
