"""What a run will cost: parameters, arithmetic and memory, counted on the meta device without computing or allocating anything.

The training step itself takes one micro-batch of tensors without storage. Counting sees every operation, and autograd tells
what it keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tclx import distributed
from tclx.errors import InputError, Problem
from tclx.model.fusion import CrossAttention
from tclx.model.lora import unused_adapters
from tclx.model.precision import HALF
from tclx.model.sharding import layers_to_shard
from tclx.model.tcl import MomentumModel
from tclx.plan import Plan
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.pretrain.balance import PCGradBalance
from tclx.tasks.task import TrainingTask
from tclx.train.optim import num_moments

GIB = 1024**3
CPU_BASE_GIB = 0.9
"""What a training process on a CPU takes before it has a model: Python, torch, transformers, timm, a data set in small."""
CPU_SLACK = 1.2
"""How much more than what is held at once a CPU's allocator keeps; with the base within 6 % of six measured runs (docs/
performance.md), from 0.4 million parameters to ViT-B and BERT-base."""
MAX_ACTED_OUT = 12
"""Layers of a stack; of deeper ones the others are added up."""


@dataclass(frozen=True)
class Cost:
    """Estimates, with captions as long as the spec allows."""

    parameters_trainable: int
    parameters_total: int
    """With the momentum copies."""
    flops_per_step: int
    """Of one optimizer step over all processes: forward, backward and momentum encoders; a multiply-add counts two."""
    peak_memory_gib: float
    """Of one process: weights, gradients, optimizer, queues, activations. Of a GPU's memory, where the device's own context
    comes on top; on a CPU all of the process, with the copy of what is written in the background."""
    checkpoint_gib: float
    """Of one checkpoint on disk."""


def estimate_cost(spec: ExperimentSpec, plan: Plan, *, vocab_size: int, on_cpu: bool = False) -> Cost:
    """Count what a run computes and holds.

    Args:
        spec: the experiment.
        plan: derived from it.
        vocab_size: of the tokenizer.
        on_cpu: it trains there, where other kernels keep more.

    Raises:
        InputError, MachineError: the model cannot be built.
    """
    shallow, deeper = _shallow(spec)
    base = astuple(_act_out(shallow, plan, vocab_size=vocab_size, on_cpu=on_cpu))
    total = list(base)
    for with_one_more, num_missing in deeper:
        more = astuple(_act_out(with_one_more, plan, vocab_size=vocab_size, on_cpu=on_cpu))
        total = [part + num_missing * (one - before) for part, one, before in zip(total, more, base, strict=True)]
    cost = Cost(*total)
    if not on_cpu:
        return cost
    copy = cost.checkpoint_gib if spec.training.checkpoints.in_background else 0.0
    return replace(cost, peak_memory_gib=CPU_BASE_GIB + CPU_SLACK * cost.peak_memory_gib + copy)


def _act_out(spec: ExperimentSpec, plan: Plan, *, vocab_size: int, on_cpu: bool) -> Cost:
    task: TrainingTask = spec.task
    with torch.device("meta"), distributed.acting_as_one_of(plan.world_size):
        model = task.build_model(_without_recomputation(spec), vocab_size=vocab_size, pad_token_id=0)
        for part in model.modules():
            if isinstance(part, CrossAttention):
                part.acts_as_on_cpu = on_cpu
        kept = _Kept(model, recomputed=_layers(model) if spec.training.activation_checkpointing else ())
        with FlopCounterMode(display=False) as counter:
            with kept.recording(), _Kernels(HALF.get(spec.training.precision), on_cpu=on_cpu):
                output = task.act_out(model, spec)
            forward_flops = counter.get_total_flops()
            apart = list(output.terms.values()) if isinstance(spec.objectives.balance, PCGradBalance) else [output.loss]
            for place, term in enumerate(apart):
                torch.autograd.backward(term, retain_graph=place < len(apart) - 1)
    if past := unused_adapters(model):
        key = f"model.{past[0].removeprefix('online.').partition('.')[0]}.lora.layers"
        layer = past[0].rpartition(".")[2]
        message = f"the model reads the weights of {layer} past the layer, so that an adapter changes nothing there"
        raise InputError(Problem(key, message, "name the others"))
    flops = counter.get_total_flops()
    if spec.training.activation_checkpointing:  # one more forward of what is trained, half of what its backward pass costs
        flops += (flops - forward_flops) // 2
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights, gradients = _bytes(model.state_dict().values()), _bytes(parameter for _, parameter in trained)
    moments = 4 * num_moments(trained, spec.optim)  # in fp32
    elsewhere = _Elsewhere.of(model, spec) if spec.launch.fsdp else _Elsewhere()
    # Without accumulation the gradients appear as the activations go; otherwise, and in DDP's buckets, they are always there.
    gradients_stay = spec.training.accumulation_steps > 1 or plan.world_size > 1
    own_gradients = gradients - elsewhere.gradients
    transient = kept.num_bytes + own_gradients if gradients_stay else max(kept.num_bytes, own_gradients)
    if len(apart) > 1:  # a gradient of each term until the last pass; then each in one piece, one of them twice, and the whole
        transient = max(kept.num_bytes + len(apart) * own_gradients, (len(apart) + 2) * own_gradients)
    held = weights - elsewhere.weights + moments - elsewhere.moments
    return Cost(
        parameters_trainable=sum(parameter.numel() for _, parameter in trained),
        parameters_total=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_step=flops * (plan.global_batch_size // spec.training.batch_size_per_gpu),
        peak_memory_gib=(held + max(transient + elsewhere.fetched, elsewhere.evaluated)) / GIB,
        checkpoint_gib=(weights + moments) / GIB,
    )


@dataclass(frozen=True)
class _Elsewhere:
    """Bytes that a process leaves to the others where layers are divided among them, and what it fetches of them."""

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    fetched: int = 0
    """At once in a step: the layer that computes, the next one, and one whole gradient."""
    evaluated: int = 0
    """Of an evaluation, which has all layers that are trained."""

    @classmethod
    def of(cls, model: MomentumModel, spec: ExperimentSpec) -> _Elsewhere:
        layers = list(layers_to_shard(model))
        divided = {id(parameter) for layer in layers for parameter in layer}
        online = [parameter for parameter in model.online.parameters() if id(parameter) in divided]
        trained = [(name, each) for name, each in model.named_parameters() if id(each) in divided and each.requires_grad]
        share = 1 - 1 / spec.launch.num_processes
        return cls(
            weights=round(share * sum(_bytes(layer) for layer in layers)),
            gradients=round(share * _bytes(parameter for _, parameter in trained)),
            moments=round(share * 4 * num_moments(trained, spec.optim)),
            fetched=3 * max((_bytes(layer) for layer in layers), default=0),
            evaluated=round(share * _bytes(online)),
        )


def _shallow(spec: ExperimentSpec) -> tuple[ExperimentSpec, list[tuple[ExperimentSpec, int]]]:
    """The model with no more than `MAX_ACTED_OUT` layers a stack, and for each stack that has more: the same with one more,
    and how many are missing. Every layer of a stack costs the same, and acting out hundreds of them takes minutes.
    """
    model = spec.model
    sections: dict[str, tuple[str, Any]] = {"image_encoder": ("depth", model.image_encoder)}
    if model.text_encoder.sizes is not None:  # a named model says itself how many layers it has
        sections["text_encoder"] = ("num_layers", model.text_encoder)
    if model.fusion_encoder is not None:
        sections["fusion_encoder"] = ("num_layers", model.fusion_encoder)
    deep = {name: (key, section) for name, (key, section) in sections.items() if (getattr(section, key) or 0) > MAX_ACTED_OUT}

    def with_layers(one_more: str | None) -> ExperimentSpec:
        changed = {
            name: section.model_copy(update={key: MAX_ACTED_OUT + (name == one_more)}) for name, (key, section) in deep.items()
        }
        return spec.model_copy(update={"model": model.model_copy(update=changed)})

    missing = [(with_layers(name), getattr(section, key) - MAX_ACTED_OUT) for name, (key, section) in deep.items()]
    return with_layers(None), missing


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _without_recomputation(spec: ExperimentSpec) -> ExperimentSpec:
    """The same model; torch's recomputation knows no meta device, so it is accounted for instead of acted out."""
    return spec.model_copy(update={"training": spec.training.model_copy(update={"activation_checkpointing": False})})


class _Kept:
    """The memory that autograd holds for the backward pass, weights and buffers apart; tensors that share it count once.

    Args:
        model: whose own tensors are left out.
        recomputed: layers that keep nothing but their inputs.
    """

    def __init__(self, model: MomentumModel, *, recomputed: Iterable[nn.Module]) -> None:
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, int] = {}
        self._inside: dict[int, int] | None = None  # of the recomputed layer that is running
        self._largest_layer = 0
        self._alive: list[Tensor] = []  # a freed storage's address could be taken for another's
        for layer in recomputed:
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave)

    @property
    def num_bytes(self) -> int:
        """With one recomputed layer's activations, which are there while its gradients are computed."""
        return sum(self._kept.values()) + self._largest_layer

    def recording(self) -> saved_tensors_hooks:
        """While it is entered, whatever is saved is counted."""
        return saved_tensors_hooks(self._add, lambda tensor: tensor)

    def _enter(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        self._inside = {}

    def _leave(self, *_call: Any) -> None:
        self._largest_layer = max(self._largest_layer, sum((self._inside or {}).values()))
        self._inside = None

    def _add(self, tensor: Tensor) -> Tensor:
        kept = self._kept if self._inside is None else self._inside
        if (storage := _storage(tensor)) not in self._own and storage not in self._kept:
            kept[storage] = tensor.untyped_storage().nbytes()
            self._alive.append(tensor)
        return tensor


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _layers(model: MomentumModel) -> Iterator[nn.Module]:
    """The layers that activation checkpointing recomputes, of the trained encoders."""
    online = model.online
    for stack in ("blocks", "stages"):
        yield from getattr(online.image_encoder.body, stack, ())
    yield from online.text_encoder.layers
    for part in (online.fusion_encoder, online.decoder):
        if part is not None:
            yield from part.layers


class _Kernels(TorchFunctionMode):
    """Makes the meta device keep what a device's fused kernels keep, and cast as autocast does.

    Fused attention keeps no matrix of weights, fused dropout one byte per decision. A CPU has no fused attention with dropout.

    Args:
        half: dtype of the matrix products under autocast; None without it.
        on_cpu: or on a GPU.
    """

    def __init__(self, half: torch.dtype | None, *, on_cpu: bool) -> None:
        super().__init__()
        self._half, self._on_cpu = half, on_cpu
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if self._half is not None and func in _IN_HALF:
            args = tuple(self._to_half(value) for value in args)
        elif self._half is not None and func in _IN_FULL:
            args = tuple(value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in args)
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return _attention(*args, **kwargs, fuses_dropout=not self._on_cpu)

    def _to_half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(self._half)
        return self._cast.setdefault(id(value), value.to(self._half))  # autocast keeps one half copy of each weight


_IN_HALF = (functional.linear, functional.conv2d, functional.scaled_dot_product_attention, torch.matmul, torch.bmm)
_IN_FULL = (functional.layer_norm, functional.group_norm, functional.softmax, functional.log_softmax, functional.normalize)


def _dropout(states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(states, p, training)[0] if training and p > 0 else states


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    fuses_dropout: bool,
    **_other: Any,
) -> Tensor:
    if dropout_p > 0 and not fuses_dropout:
        whole: Tensor = torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p)[0]
        return whole
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    result = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p)
    output: Tensor = result[0]
    return output
