"""Small images for people to look at, inside the JSON of an evaluation's examples."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import simplejpeg

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
