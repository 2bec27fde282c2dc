"""What an image shows: any timm ViT, or a CNN whose grid cells serve as patches, as [CLS] and patch tokens."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from tclx import hub
from tclx.errors import InputError, MachineError, Problem
from tclx.foreign import first_line
from tclx.model.layout import Layout, layout_of
from tclx.model.lora import adapt
from tclx.model.weights import fit_tensor, on_meta, read_tensors
from tclx.model.without_wandb import VisionTransformer, timm
from tclx.packaged import weights_file

if TYPE_CHECKING:
    from tclx.spec.model import ImageEncoderSpec

KEY = "model.image_encoder"


class ImageEncoder(nn.Module):
    """A timm model without its classifier.

    The first token stands for the whole image: the model's class token, or the mean of the patches where it has none.
    Register and distillation tokens are dropped.

    Args:
        spec: which model, which size, which weights. On the meta device weights are never loaded.
        activation_checkpointing: recompute the blocks in the backward pass.

    Attributes:
        body: the timm model, under timm's names.
        layout: what its features are.
        width: of the tokens.
        grid: rows and columns of patches.

    Raises:
        InputError: timm does not know the model, it does not take an override, or the weights do not fit.
        MachineError: the hub cannot be reached.
    """

    def __init__(self, spec: ImageEncoderSpec, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        arguments = _arguments(spec)
        with torch.device("meta"):
            counted = _create(spec, arguments)
            probe = _probe(spec, counted)
        self.body = counted if on_meta() else _create(spec, arguments)
        if spec.weights not in (None, "hub") and not on_meta():
            file = weights_file(str(spec.weights), key=f"{KEY}.weights")
            load_image_weights(self.body, file, key=f"{KEY}.weights")
        _tidy(self.body, probe.unused)
        self.layout = probe.layout
        self.width, self.grid = probe.layout.width, probe.layout.grid
        self.frozen = spec.frozen
        if self.frozen:
            self.body.requires_grad_(False).eval()
            return
        if spec.lora is not None:
            adapt(self.body, [self.body], spec.lora, key=f"{KEY}.lora")
        if activation_checkpointing:
            _recompute_activations(self.body, spec)

    def train(self, mode: bool = True) -> Self:
        """As every module's, but a frozen body stays as in evaluation: no stochastic depth, no new batch-norm statistics."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], normalised -> tokens [B, 1 + rows * columns, width], [CLS] first."""
        features = _as_tokens(self.body, _forward_features(self.body, images), self.layout)
        patches = features[:, self.layout.num_prefix_tokens :]
        whole = features[:, :1] if self.layout.has_class_token else patches.mean(dim=1, keepdim=True)
        return torch.cat([whole, patches], dim=1)

    @contextmanager
    def attention_weights(self, block: int | None = None) -> Iterator[list[Tensor]]:
        """While the block runs, `forward` keeps what one of its blocks attends to, computed without a fused kernel.

        Args:
            block: its number, from 0; None for the one two thirds up.

        Returns:
            A list that gets the weights [B, heads, tokens, tokens]: a leaf of the graph, so that the gradient of anything made
            of the output says how much each of them mattered. Ask for it inside, or activations are recomputed otherwise.

        Raises:
            InputError: the model has no such block, or no [CLS] whose attention could be shown.
        """
        blocks: Any = getattr(self.body, "blocks", ())
        number = 2 * len(blocks) // 3 if block is None else block
        attention: Any = getattr(blocks[number], "attn", None) if number < len(blocks) else None
        if not (self.layout.has_class_token and hasattr(attention, "fused_attn") and hasattr(attention, "attn_drop")):
            message = f"block {number} of this image encoder has no attention of a class token to look at"
            raise InputError(Problem(KEY, message, f"it has {len(blocks)} blocks, from 0; plain ViTs have such an attention"))
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, weights: Tensor) -> Tensor:
            seen.append(weights.detach().requires_grad_())
            return seen[-1]

        hook, fused = attention.attn_drop.register_forward_hook(keep), attention.fused_attn
        attention.fused_attn = False
        try:
            yield seen
        finally:
            attention.fused_attn = fused
            hook.remove()


class ConvStem(nn.Module):
    """Patches cut by a stack of strided 3 x 3 convolutions and a 1 x 1 one, in place of one large strided convolution.

    Takes the arguments timm's VisionTransformer gives its `embed_layer`. Normalised per sample, not per batch: a batch of one,
    a resumed run and several processes all see the same function.

    Args:
        img_size, patch_size: pixels; patch_size a power of two, at least 2.
        embed_dim: output width; the channels double on the way up to half of it.

    Source: Xiao et al. 2021, arXiv:2106.14881.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        **_unused: Any,
    ) -> None:
        super().__init__()
        size, patch = _side(img_size), _side(patch_size)
        self.img_size, self.patch_size = (size, size), (patch, patch)
        self.grid_size = (size // patch, size // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        num_halvings = patch.bit_length() - 1
        widths = [in_chans, *(max(8, embed_dim >> (num_halvings - step)) for step in range(num_halvings))]
        self.stack = nn.Sequential(*(_halving(*pair) for pair in pairwise(widths)))
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=1, bias=bias)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per patch; timm asks."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, patches, embed_dim]."""
        patches: Tensor = self.proj(self.stack(images))
        return patches.flatten(2).transpose(1, 2)


def _halving(width_in: int, width_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel_size=3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(1, width_out), nn.GELU())


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


class Probe(NamedTuple):
    """What a trial run on the meta device tells about a model."""

    layout: Layout
    unused: tuple[str, ...]
    """Parameters that the tokens do not depend on: norms and pools of the classifier."""


@torch.enable_grad()
def _probe(spec: ImageEncoderSpec, body: nn.Module) -> Probe:
    _check_sizes(spec, body)
    body.eval()
    try:
        raw = _forward_features(body, torch.empty(1, 3, spec.image_size, spec.image_size))
    except Exception as error:  # of a size that a model does not take, a thousand models complain in a dozen ways
        raise _refused_size(spec, error) from error
    layout = layout_of(body, raw, name=spec.name, key=KEY)
    torch.autograd.backward(_as_tokens(body, raw, layout).sum())
    unused = tuple(name for name, parameter in body.named_parameters() if parameter.grad is None)
    body.train().zero_grad()
    return Probe(layout, unused)


def _refused_size(spec: ImageEncoderSpec, error: Exception) -> InputError:
    message = f"timm's {spec.name} cannot run on {spec.image_size} x {spec.image_size} images: {first_line(error)}"
    native = native_size(spec.name)
    hint = f"its own size is {native}" if native not in (None, spec.image_size) else "another multiple of its stride may do"
    return InputError(Problem(f"{KEY}.image_size", message, hint))


def _check_sizes(spec: ImageEncoderSpec, body: nn.Module) -> None:
    patch = _side(getattr(getattr(body, "patch_embed", None), "patch_size", 1))
    problems = []
    if spec.image_size % patch and spec.image_size != native_size(spec.name):  # SigLIP's 384 leaves a margin of 6 pixels
        near = max(patch, round(spec.image_size / patch) * patch)
        message = f"{spec.image_size} is no multiple of the patch size {patch}"
        problems.append(Problem(f"{KEY}.image_size", message, f"{near} is"))
    if spec.stem == "conv" and not isinstance(body, VisionTransformer):
        problems.append(Problem(f"{KEY}.stem", f"timm's {spec.name} has its own stem", "only plain ViTs take `conv`"))
    elif spec.stem == "conv" and (patch < 2 or patch & (patch - 1)):
        message = f"a conv stem halves the image until a patch is left, which patch size {patch} does not allow"
        problems.append(Problem(f"{KEY}.patch_size", message, "choose a power of two"))
    if problems:
        raise InputError(*problems)


def _forward_features(body: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = cast("Any", body).forward_features(images)
    return features


def _as_tokens(body: nn.Module, raw: Tensor, layout: Layout) -> Tensor:
    """Whatever `forward_features` gives -> [B, tokens, width], normalised as the classifier would see it."""
    if raw.ndim == 4:
        return raw.flatten(1, 2) if layout.channels_last else raw.flatten(2).transpose(1, 2)
    # Models made for average pooling put their last norm behind the pool; per token it does the same work.
    late_norm: Any = getattr(body, "fc_norm", None)
    return late_norm(raw) if late_norm is not None and isinstance(getattr(body, "norm", None), nn.Identity) else raw


def _tidy(body: nn.Module, unused: tuple[str, ...]) -> None:
    """Drop parameters that would never get a gradient: DDP would wait for them, and they are not the model's."""
    for name in unused:
        path, _, leaf = name.rpartition(".")
        setattr(body.get_submodule(path), leaf, None)


def _recompute_activations(body: nn.Module, spec: ImageEncoderSpec) -> None:
    try:
        cast("Any", body).set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        message = f"timm's {spec.name} cannot recompute its activations"
        raise InputError(Problem("training.activation_checkpointing", message, "set it to false")) from error


def _arguments(spec: ImageEncoderSpec) -> dict[str, Any]:
    """What timm is asked for beside the name; refuses what the model does not take."""
    _check_name(spec.name)
    written = {
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "embed_layer": ConvStem if spec.stem == "conv" else None,
    }
    arguments: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    if spec.drop_path:
        arguments["drop_path_rate"] = spec.drop_path
    config = timm.get_pretrained_cfg(spec.name)
    if config and config.fixed_input_size:
        arguments["img_size"] = spec.image_size
    return arguments


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or ":" in name or "/" in name:
        bare = re.split("[:/]", name)[-1]
        if bare != name and timm.is_model(bare.partition(".")[0]):
            hint = f"write {bare}: the name alone, without the hub's prefix"
        elif near := difflib.get_close_matches(bare, timm.list_models(), n=3, cutoff=0.5):
            hint = f"did you mean {', '.join(near)}?"
        else:
            hint = "python -c 'import timm; print(timm.list_models())' lists them"
        raise InputError(Problem(f"{KEY}.name", f"timm has no model {name!r}", hint))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        hint = f"its tags: {', '.join(tags)}" if tags else "it has none: leave the dot and what follows out"
        raise InputError(Problem(f"{KEY}.name", f"timm's {architecture} has no weights called {tag!r}", hint)) from error


def native_size(name: str) -> int | None:
    """Side of the images that a timm model was made for, in pixels; None where timm does not say."""
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else None


def _create(spec: ImageEncoderSpec, arguments: Mapping[str, Any]) -> nn.Module:
    pretrained = spec.weights == "hub" and not on_meta()
    if pretrained and not _has_hub_weights(spec.name):
        raise InputError(Problem(f"{KEY}.weights", f"timm publishes no weights for {spec.name}", "set it to null or to a file"))
    if pretrained and (needed := hub_files(spec.name)):
        hub.require(needed)
    try:
        body: nn.Module = timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **arguments)
    except TypeError as error:
        if "'img_size'" not in str(error) or spec.image_size != native_size(spec.name):
            raise _refused_override(spec, error) from error
        return _create(spec, {name: value for name, value in arguments.items() if name != "img_size"})
    except (AssertionError, ValueError) as error:
        raise InputError(Problem(KEY, f"timm cannot build {spec.name} with {_written(arguments)}: {error}")) from error
    except OSError as error:
        raise MachineError(
            f"{KEY}.weights: the weights of {spec.name} could not be fetched from the hub ({first_line(error)}); "
            "check the network, or download them and name the file"
        ) from error
    return body


def hub_files(name: str) -> hub.HubFiles | None:
    """What `weights: hub` needs of the hub for a timm model; None where timm does not fetch it from there."""
    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    if not config or not config.hf_hub_id:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return hub.HubFiles(f"{KEY}.weights", repository, (files,), revision or None, instead="name a file of weights")


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items() if name != "embed_layer") or "its defaults"


def _has_hub_weights(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.has_weights)


def _refused_override(spec: ImageEncoderSpec, error: TypeError) -> InputError:
    if "'img_size'" in str(error):
        message = f"timm's {spec.name} takes images of one size alone, {native_size(spec.name)}"
        return InputError(Problem(f"{KEY}.image_size", message, "set it to that"))
    keys = {"embed_dim": "width", "embed_layer": "stem", "drop_path_rate": "drop_path"}
    named = [word for word in (*keys, "patch_size", "depth", "num_heads") if f"'{word}'" in str(error)]
    key = keys.get(named[0], named[0]) if named else "name"
    message = f"timm's {spec.name} does not take it: {error}"
    return InputError(Problem(f"{KEY}.{key}", message, "only ViTs take sizes and stems"))


def load_image_weights(body: nn.Module, path: Path, *, key: str) -> None:
    """Load a state dict with timm's names, or another library's names for the same tensors in the same order.

    Position embeddings are interpolated to the model's grid.

    Raises:
        InputError: the file cannot be read safely, lacks more than a tenth of the model's tensors, or has one in another shape.
    """
    tensors = read_tensors(path, key=key)
    own = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith("num_batches_tracked")}
    if tensors.keys().isdisjoint(own):
        tensors = _in_order(tensors, own)
    fitted = {name: fit_tensor(name, tensors[name], own[name]) for name in own if name in tensors}
    lacking = [name for name in own if name not in fitted]
    other_shape = [name for name, tensor in fitted.items() if tensor.shape != own[name].shape]
    if other_shape or len(lacking) > 0.1 * len(own):
        message = f"{path} lacks {len(lacking)} of the model's {len(own)} tensors and has {len(other_shape)} in another shape"
        names = ", ".join((other_shape + lacking)[:4])
        raise InputError(
            Problem(key, f"{message}, for instance {names}", f"{KEY} must describe the model they were trained in")
        )
    body.load_state_dict(fitted, strict=False)


def _in_order(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's names where all shapes agree in order, a classifier behind them left out; else none."""
    values = [value for name, value in tensors.items() if not name.endswith("num_batches_tracked")][: len(own)]
    agree = [value.shape for value in values] == [value.shape for value in own.values()]
    return dict(zip(own, values, strict=True)) if agree else {}
