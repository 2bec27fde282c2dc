"""Small images for people to look at, inside the JSON of an evaluation's examples."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tclx.data.images import Pixels

LARGEST_SIDE = 112
"""Pixels of a kept image: legible on a phone, about 4 kB each."""
JPEG_QUALITY = 85


NUM_SHOWN = 16
"""Items that are kept for people to look at, at equal distances."""


def spaced(length: int, count: int) -> list[int]:
    """At most `count` different numbers below `length`, at equal distances: nobody picked them, and every run has the same."""
    return sorted({(2 * index + 1) * length // (2 * count) for index in range(count)}) if length else []


def small(image: Pixels) -> Pixels:
    """[S, S, 3] uint8 RGB, at most `LARGEST_SIDE` wide."""
    side = min(LARGEST_SIDE, image.shape[0])
    shrunk: Pixels = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return shrunk


def jpeg(image: Pixels) -> str:
    """Base64 of a JPEG of [S, S, 3] uint8 RGB."""
    return base64.b64encode(simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling="444")).decode()


def warmed(pixels: Pixels, attention: Tensor) -> Pixels:
    """An image under the colours of a map [rows, columns], scaled to its largest value; the bare image where that is 0."""
    scaled = attention / attention.max().clamp(min=torch.finfo(attention.dtype).tiny)
    warmth = cv2.resize(scaled.numpy(), pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = cv2.applyColorMap((255 * warmth).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = 0.7 * warmth[..., None]
    mixed: Pixels = ((1 - share) * pixels + share * colours).astype(np.uint8)
    return mixed
