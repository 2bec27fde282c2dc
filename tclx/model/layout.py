"""What the tokens of a timm model are: which one stands for the whole image, which are patches, and in which grid?

Told by the built model and by what its `forward_features` gives for a square image, never by the model's name:

| what it gives          | patches                                  | the whole image                             |
|------------------------|------------------------------------------|-----------------------------------------------|
| [B, C, rows, columns]  | the cells, row by row                    | the mean of the cells                         |
| [B, rows, columns, C]  | the same; `num_features` tells the order | the same                                      |
| [B, prefix + n * n, C] | what follows the prefix tokens           | the class token, else the mean of the patches |
| anything else          | refused: no one grid of patches          |                                               |

The prefix is `num_prefix_tokens` where the model counts it (class, register and distillation tokens), else as long as its
`cls_token` parameter. A class token is there where such a parameter is, and then it is the first token; registers
without one stand for nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from tclx.errors import InputError, Problem


class Layout(NamedTuple):
    """What a model's features are."""

    width: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    num_prefix_tokens: int
    """Tokens before the patches."""
    has_class_token: bool
    """Whether the first of them stands for the whole image; otherwise the mean of the patches does."""
    channels_last: bool
    """Of a feature map: [B, rows, columns, C] instead of [B, C, rows, columns]."""


def layout_of(body: nn.Module, features: object, *, name: str, key: str) -> Layout:
    """Tell the tokens of a model apart.

    Args:
        body: the timm model, on any device.
        features: what its `forward_features` gives for a square image.
        name, key: of the model and of its spec key, for messages.

    Raises:
        InputError: the features are not one set of patches in a square grid.
    """
    if not isinstance(features, Tensor):
        raise _refused(f"{name} gives {type(features).__name__}s of several sizes, not one grid of patches", key=key)
    if features.ndim == 4:
        last = _channels_last(body, features)
        rows, columns = features.shape[1:3] if last else features.shape[2:]
        return Layout(features.shape[3 if last else 1], (rows, columns), 0, has_class_token=False, channels_last=last)
    if features.ndim != 3:
        raise _refused(f"{name} gives {features.ndim - 1} numbers an image, not patches", key=key)
    num_tokens, width = features.shape[1:]
    class_tokens = _class_tokens(body)
    prefix = getattr(body, "num_prefix_tokens", None)
    num_prefix = prefix if isinstance(prefix, int) else class_tokens
    side = math.isqrt(max(0, num_tokens - num_prefix))
    if side == 0:
        raise _refused(f"{name} gives its class token alone and keeps its patches to itself", key=key)
    if side * side != num_tokens - num_prefix:
        message = f"{name} gives {num_tokens - num_prefix} patches beside {num_prefix} other tokens, which no square grid holds"
        raise _refused(message, key=key)
    return Layout(width, (side, side), num_prefix, has_class_token=class_tokens > 0, channels_last=False)


def _class_tokens(body: nn.Module) -> int:
    """Tokens that the model's class token parameter holds: two where it was distilled with one parameter, 0 without one."""
    known = getattr(body, "has_class_token", None)
    if isinstance(known, bool):
        return int(known)
    return max(
        (parameter.shape[-2] for name, parameter in body.named_parameters() if "cls_token" in name and parameter.ndim == 3),
        default=0,
    )


def _channels_last(body: nn.Module, features: Tensor) -> bool:
    width = getattr(body, "num_features", None)
    first, last = features.shape[1] == width, features.shape[3] == width
    return last if first != last else str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")


def _refused(message: str, *, key: str) -> InputError:
    return InputError(Problem(f"{key}.name", f"timm's {message}", "choose a ViT, or a CNN that gives a feature map"))
