"""How do the weights move? Which parameters decay, the optimizer, and what changes from step to step.

Everything that changes over time is a pure function of the optimizer step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, assert_never

import torch
from timm.models import group_parameters
from timm.optim import SGDW, Lion, Muon, NAdamW
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import AdamW, Optimizer

from tclx import distributed
from tclx.model.sharding import is_sharded, own_part
from tclx.spec.optim import ConstantSchedule, CosineSchedule, OptimSpec

# Last parts of the names under which timm and transformers keep learned tokens and positions.
_TOKENS_AND_POSITIONS = frozenset({"cls_token", "dist_token", "reg_token", "pos_embed", "position_embeddings"})

MUON_MOMENTUM = 0.95
_OFFICIAL_STAIR = 100
"""The published scripts move the learning rate once every so many iterations, during the warm-up."""


def parameter_groups(
    model: nn.Module, *, weight_decay: float, official: bool, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in two groups, decayed and not, each with the names of its members (`param_names`); with a
    decay of the learning rate from layer to layer, in two for each rate, which is `rate_scale` times that of the schedule;
    and those that are divided among processes apart from the others, since no kernel takes both.

    Not decayed are biases, norms, temperatures, and learned tokens and positions. `official` decays all but one-dimensional
    tensors and biases: the temperature (a scalar), [CLS] and the positions shrink, too.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    has_no_decay = _has_no_decay_officially if official else _has_no_decay
    scales = rate_scales(model, layer_decay) if layer_decay is not None else {}
    groups = []
    for scale in sorted({scales.get(name, 1.0) for name, _ in trainable}, reverse=True):
        at_this_rate = [(name, parameter) for name, parameter in trainable if scales.get(name, 1.0) == scale]
        for is_exempt, divided in product((False, True), (False, True)):
            members = [
                (name, parameter)
                for name, parameter in at_this_rate
                if has_no_decay(name, parameter) is is_exempt and is_sharded(parameter) is divided
            ]
            if members:
                decay = 0.0 if is_exempt else weight_decay
                names, parameters = zip(*members, strict=True)
                made = {"params": list(parameters), "param_names": list(names), "weight_decay": decay}
                groups.append(made | ({"rate_scale": scale} if layer_decay is not None else {}))
    return groups


def rate_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """What part of the schedule's rate each parameter of the image and text encoders learns at: `layer_decay` of it in the
    last layer, its square in the one below, and so on down to the embeddings. A last norm has the whole.

    Which layer of an image encoder a parameter belongs to is timm's own answer.

    Source: Clark et al. 2020, arXiv:2003.10555; of images Bao et al. 2022, arXiv:2106.08254.
    """
    online: Any = model.online
    image = group_parameters(online.image_encoder.body, online.image_encoder.body.group_matcher(coarse=False), reverse=True)
    above = 1 + max(layer for name, layer in image.items() if not _IS_LAST_NORM.match(name))
    scales = {f"image_encoder.body.{name}": layer_decay ** max(0, above - layer) for name, layer in image.items()}
    text = {id(parameter): f"text_encoder.{name}" for name, parameter in online.text_encoder.named_parameters()}
    layers = [[text[id(parameter)] for parameter in layer.parameters()] for layer in online.text_encoder.layers]
    embeddings = [name for name in text.values() if any("embed" in part for part in name.split("."))]
    for depth, members in enumerate([*reversed(layers), embeddings], start=1):
        scales |= dict.fromkeys(members, layer_decay**depth)
    return {f"online.{name}": scale for name, scale in scales.items()}


_IS_LAST_NORM = re.compile(r"(fc_)?norm\.|head|classifier|fc\.")


def _has_no_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or not _TOKENS_AND_POSITIONS.isdisjoint(name.split("."))


def _has_no_decay_officially(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 1 or name.endswith(".bias")


def build_optimizer(model: nn.Module, optim: OptimSpec, *, official: bool) -> Optimizer:
    """The optimizer of the trainable parameters, whose weight decay is decoupled.

    AdamW comes in its fused form: one kernel a step; on a CPU 3.5 times the speed of the loop.
    """
    groups = parameter_groups(model, weight_decay=optim.weight_decay, official=official, layer_decay=optim.layer_decay)
    rate, betas = optim.learning_rate, optim.betas
    made: Optimizer
    match optim.optimizer:
        case "adamw":
            made = AdamW(groups, lr=rate, betas=betas, eps=optim.epsilon, fused=True)
        case "nadamw":
            made = NAdamW(groups, lr=rate, betas=betas, eps=optim.epsilon)
        case "lion":
            made = Lion(groups, lr=rate, betas=betas)
        case "muon":
            made = Muon(list(_told_apart(groups)), lr=rate, betas=betas, momentum=MUON_MOMENTUM, nesterov=True)
        case "sgd":
            made = SGDW(groups, lr=rate, momentum=betas[0], nesterov=betas[0] > 0)
        case _:
            assert_never(optim.optimizer)
    return made


def _told_apart(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Matrices that Muon moves, and what it leaves to NAdamW: all else, and the rows of embeddings, which are looked up."""
    for group in groups:
        members = list(zip(group["param_names"], group["params"], strict=True))
        for left in (False, True):
            own = [(name, parameter) for name, parameter in members if _is_left_to_nadamw(name, parameter) is left]
            if own:
                names, parameters = zip(*own, strict=True)
                yield {**group, "params": list(parameters), "param_names": list(names), "use_fallback": left}


def _is_left_to_nadamw(name: str, parameter: nn.Parameter) -> bool:
    return _has_no_decay(name, parameter) or any(part.endswith("embeddings") for part in name.split("."))


def num_moments(parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimSpec) -> int:
    """How many numbers the optimizer keeps of named trainable parameters together."""
    if optim.optimizer == "muon":
        return sum((1 + _is_left_to_nadamw(name, parameter)) * parameter.numel() for name, parameter in parameters)
    each = 1 if optim.optimizer in ("lion", "sgd") else 2
    return each * sum(parameter.numel() for _, parameter in parameters)


def parameters_of(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    """Every parameter the optimizer moves."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """0-D length of the whole gradient, the same in every process, also where each has only parts of it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([gradient for gradient in gradients if not is_sharded(gradient)])
    parts = [own_part(gradient) for gradient in gradients if is_sharded(gradient)]
    if parts:
        norm = (norm.square() + distributed.total(get_total_norm(parts).square())).sqrt()
    return norm


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], *, norm: Tensor, maximum: float) -> None:
    """Shorten the gradient, whose length is `norm`, to `maximum` where it is longer, in place."""
    gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, (maximum / (norm + 1e-6)).clamp(max=1.0))


def learning_rate(step: int, *, optim: OptimSpec, total_steps: int, steps_per_epoch: int, official: bool) -> float:
    """The learning rate of the update from `step` to `step + 1`, step in [0, total_steps).

    By default the warm-up rises linearly from its start at step 0 to the peak at step `warmup_steps`, and the cosine reaches
    its minimum at exactly the last step. `official` reproduces the published scripts: stairs of 100 iterations within the first
    epoch (cut off where that epoch is shorter), then one value per epoch, which never reaches the minimum.
    """
    schedule = optim.schedule
    if official and isinstance(schedule, CosineSchedule):
        epoch, iteration = divmod(step, steps_per_epoch)
        num_epochs = math.ceil(total_steps / steps_per_epoch)
        return _official_cosine(epoch, iteration, num_epochs=num_epochs, peak=optim.learning_rate, schedule=schedule)
    if step < schedule.warmup_steps:
        start = 0.0 if isinstance(schedule, ConstantSchedule) else schedule.warmup_learning_rate
        return start + (optim.learning_rate - start) * step / schedule.warmup_steps
    if isinstance(schedule, ConstantSchedule):
        return optim.learning_rate
    num_cosine_steps = max(1, total_steps - 1 - schedule.warmup_steps)
    return _cosine(
        (step - schedule.warmup_steps) / num_cosine_steps, peak=optim.learning_rate, minimum=schedule.minimum_learning_rate
    )


def _cosine(progress: float, *, peak: float, minimum: float) -> float:
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def _official_cosine(epoch: int, iteration: int, *, num_epochs: int, peak: float, schedule: CosineSchedule) -> float:
    """timm 0.4's scheduler as the published scripts step it: after the iteration, in epochs and hundreds of iterations."""
    if epoch > 0:
        return _cosine(epoch / num_epochs, peak=peak, minimum=schedule.minimum_learning_rate)
    num_stairs = schedule.warmup_steps // _OFFICIAL_STAIR
    stair = max(0, iteration - 1) // _OFFICIAL_STAIR
    if stair >= num_stairs:
        return peak
    return schedule.warmup_learning_rate + stair * (peak - schedule.warmup_learning_rate) / num_stairs
