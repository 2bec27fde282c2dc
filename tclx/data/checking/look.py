"""One image, looked at: how large is it, which bytes is it, and what does it look like?"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tclx.data.images import decode_image

if TYPE_CHECKING:
    from tclx.data.images import Decoder, Pixels

LOOK = np.dtype([("digest", "<u8", 2), ("hash", "<u8"), ("width", "<u4"), ("height", "<u4")])
"""What is known of an image. `digest`: 128 bits of BLAKE2 of its bytes; `hash`: as `perceptual_hash`; `width` and `height` in
pixels, 0 where it cannot be used."""
Looks = NDArray[Any]
"""[N] of dtype `LOOK`."""

_SIDE = 32
_LOWEST = tuple(sorted((row + column, row, column) for row in range(12) for column in range(12) if row + column)[:64])
"""The 64 lowest frequencies of both directions, the lowest first; the average, which is brightness, is not among them."""
_LEAST_CONTRAST = 8.0
"""Of the darkest and lightest of the 32 x 32 averages, in levels of 255. Below it what is left is noise."""
NO_HASH = 0
"""Of an image of one colour, which looks like any other."""


def look(content: bytes, name: str, *, decoder: Decoder, max_pixels: int) -> tuple[bytes, int, int, int]:
    """Decode an image and describe it; the values are those of `LOOK`, the digest as bytes.

    Args:
        content: the file's bytes.
        name: named in the error.
        decoder, max_pixels: as `decode_image`.

    Raises:
        BadImage: it cannot be used.
    """
    pixels = decode_image(content, name, decoder=decoder, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    return hashlib.blake2b(content, digest_size=16).digest(), perceptual_hash(pixels), width, height


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits that stay nearly the same when an image is coded anew, resized, or made a little lighter or darker.

    The signs of the 64 lowest frequencies (without the average) of the cosine transform of its 32 x 32 grey averages.

    Args:
        pixels: [H, W, 3] uint8 RGB.

    Returns:
        `NO_HASH` for an image of nearly one colour.

    Source: Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, DCT-based hash; with signs in place
    of a comparison with the median, and frequencies in the order of a JPEG's zigzag.
    """
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if float(grey.max()) - float(grey.min()) < _LEAST_CONTRAST:
        return NO_HASH
    spectrum = cv2.dct(grey.astype(np.float32))
    signs = spectrum[_ROWS, _COLUMNS] > 0
    return int(np.packbits(signs).view("<u8")[0])


_ROWS, _COLUMNS = (np.array([place[axis] for place in _LOWEST]) for axis in (1, 2))
