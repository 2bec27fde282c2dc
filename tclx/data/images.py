"""How does a file become an RGB array, and which files are refused?

EXIF orientation is ignored, as in the official code: the annotation files were made for the pixels as stored.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Decoder = Literal["fast", "pil"]
Picture = NDArray[np.uint8]
"""[H, W, 3] uint8, RGB."""

_JPEG_START = b"\xff\xd8\xff"


class BadImage(Exception):
    """A picture that cannot be used: missing, truncated, not a picture, or too large to decode safely."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: Path, *, decoder: Decoder, max_pixels: int) -> Picture:
    """Read and decode one picture.

    Raises:
        BadImage: with the reason.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadImage(path, "does not exist") from None
    except OSError as error:
        raise BadImage(path, f"cannot be read: {error.strerror}") from error
    return decode_image(content, path, decoder=decoder, max_pixels=max_pixels)


def decode_image(content: bytes, path: Path | str, *, decoder: Decoder, max_pixels: int) -> Picture:
    """Decode one picture in full, after its header has been found small enough.

    `fast` takes turbo-JPEG for ordinary JPEGs; everything else, and every JPEG that turbo-JPEG finds fault with, goes through
    Pillow, so that both decoders refuse the same files. Palettes, transparency, 16 bits and CMYK become RGB as in Pillow.

    Args:
        content: the file's bytes.
        path: named in the error.
        max_pixels: width x height above which nothing is decoded.

    Returns:
        [H, W, 3] uint8 RGB, writable or not.

    Raises:
        BadImage: with the reason.
    """
    if not content:
        raise BadImage(path, "is empty")
    if decoder == "fast" and content.startswith(_JPEG_START):
        picture = _decode_jpeg(content, path, max_pixels)
        if picture is not None:
            return picture
    return _decode_with_pillow(content, path, max_pixels)


def _decode_jpeg(content: bytes, path: Path | str, max_pixels: int) -> Picture | None:
    """None where Pillow is to decide: CMYK, or anything that turbo-JPEG complains about."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content)
        if color_space not in {"YCbCr", "RGB", "Gray"}:
            return None
        _check_size(path, width, height, max_pixels)
        picture: Picture = simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return picture


def _decode_with_pillow(content: bytes, path: Path | str, max_pixels: int) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities (broken EXIF, sizes) that decoding itself settles
            with Image.open(io.BytesIO(content)) as image:
                _check_size(path, image.width, image.height, max_pixels)
                return np.asarray(image.convert("RGB"))
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(path, f"has more than {max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise BadImage(path, "is not a picture in a known format") from None
    except Exception as error:  # decoders raise anything on hostile bytes: OSError, SyntaxError, struct.error, zlib.error
        raise BadImage(path, f"cannot be decoded: {error}") from error


def _check_size(path: Path | str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(path, f"has {width} x {height} pixels, more than the {max_pixels:,} of data.bad_images.max_pixels")
