"""How does a file become an RGB array, and which files are refused?

What a viewer shows is what is learned from: docs/data.md has the table of formats and of what each can say.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Required, TypedDict, Unpack

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from tclx.data.augment import CROP_RATIO
from tclx.data.kinds import kind_of_file, open_ordinary
from tclx.data.rendering import FORMATS, Coding, Unshowable, has_other_colours, orientation, rendered
from tclx.data.structure import Excessive, Jpeg, walk_bmp, walk_gif, walk_jpeg, walk_png, walk_tiff

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec

Decoder = Literal["fast", "pil"]
Cause = Literal["missing", "decoding", "size"]
Pixels = NDArray[np.uint8]
"""[H, W, 3] uint8, RGB."""

MAX_BYTES_BESIDE_PIXELS = 64 << 20
"""Of a file, besides 8 bytes for each of `max_pixels` (the most that an image of 16 bits a channel takes uncompressed)."""
READ_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF"

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"


class BadImage(Exception):
    """An image that cannot be used: missing, truncated, not an image, or too large to decode safely."""

    def __init__(self, path: Path | str, reason: str, cause: Cause = "decoding") -> None:
        super().__init__(path, reason, cause)
        self.path = path
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: Path, *, max_pixels: int, **options: Unpack[Decoding]) -> Pixels:
    """Read and decode one image; options as of `decode_image`.

    Raises:
        BadImage: with the reason.
    """
    return decode_image(read_bytes(path, max_pixels=max_pixels), path, max_pixels=max_pixels, **options)


class Decoding(TypedDict, total=False):
    """Options of `decode_image`, documented there."""

    decoder: Required[Decoder]
    as_stored: bool
    shorter_side: int


def image_decoder(spec: ExperimentSpec, *, reduces: bool = False) -> Callable[[bytes, Path | str], Pixels]:
    """`decode_image` as an experiment decodes.

    Args:
        spec: the experiment.
        reduces: give images to be cropped and resized, not places in them: `data.reduce_jpegs` counts.
    """
    return partial(decode_image, max_pixels=spec.data.bad_images.max_pixels, **decoding(spec, reduces=reduces))


def image_reader(spec: ExperimentSpec, *, reduces: bool = False) -> Callable[[Path], Pixels]:
    """`read_image` as an experiment reads; arguments as `image_decoder`."""
    return partial(read_image, max_pixels=spec.data.bad_images.max_pixels, **decoding(spec, reduces=reduces))


def decoding(spec: ExperimentSpec, *, reduces: bool = False) -> Decoding:
    """How an experiment decodes; arguments as `image_decoder`."""
    as_stored = spec.compat == "official"  # the published code knows neither EXIF nor colour profiles
    shorter_side = needed_side(spec) if reduces and spec.data.reduce_jpegs else 0
    return Decoding(decoder=spec.data.decoder, as_stored=as_stored, shorter_side=shorter_side)


def needed_side(spec: ExperimentSpec) -> int:
    """Pixels of an image's shorter side that leave `image_size` of them to the smallest crop that training may draw.

    A crop of the share a of an image of H x W and of ratio r is at least sqrt(a H W min(r, 1/r)) long on each side.
    """
    area, _ = spec.data.augmentation.crop_scale
    return math.ceil(spec.model.image_encoder.image_size / math.sqrt(area * CROP_RATIO[0]))


def read_size(path: Path, *, as_stored: bool = False) -> tuple[int, int]:
    """Width and height as `read_image` gives them, from the file's header alone.

    Raises:
        BadImage: with the reason.
    """
    try:
        with open_ordinary(path) as file:
            return size_in(file, path, as_stored=as_stored)
    except FileNotFoundError:
        raise BadImage(path, "does not exist") from None
    except OSError as error:
        raise BadImage(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or half a character in the path
        raise BadImage(path, f"is no path that a file can have: {error}") from None


def size_in(file: BinaryIO, path: Path | str, *, as_stored: bool = False) -> tuple[int, int]:
    """As `read_size`, of an open file that messages call `path`."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            return (height, width) if not as_stored and orientation(image) >= 5 else (width, height)
    except UnidentifiedImageError:
        raise BadImage(path, f"is not an image in a known format ({READ_FORMATS} are read)") from None
    except OSError as error:
        raise BadImage(path, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # as when all of it is decoded
        raise BadImage(path, f"cannot be decoded: {error or type(error).__name__}") from error


def read_bytes(path: Path, *, max_pixels: int) -> bytes:
    """An image's file: of ordinary files alone, and no more than an image of `max_pixels` can need.

    Raises:
        BadImage: with the reason.
    """
    try:
        with open_ordinary(path) as file:
            size = os.fstat(file.fileno()).st_size
            check_num_bytes(path, size, max_pixels=max_pixels)
            return file.read(size)
    except FileNotFoundError:
        raise BadImage(path, "does not exist", "missing") from None
    except OSError as error:
        raise BadImage(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL or half a character in the path
        raise BadImage(path, f"is no path that a file can have: {error}") from None


def check_num_bytes(path: Path | str, size: int, *, max_pixels: int) -> None:
    """Refuse more bytes than an image of `max_pixels` can need.

    Raises:
        BadImage: there are more.
    """
    limit = 8 * max_pixels + MAX_BYTES_BESIDE_PIXELS
    if size > limit:
        reason = f"has {size:,} bytes, more than the {limit:,} that data.bad_images.max_pixels allows"
        raise BadImage(path, reason, "size")


def decode_image(
    content: bytes, path: Path | str, *, decoder: Decoder, max_pixels: int, as_stored: bool = False, shorter_side: int = 0
) -> Pixels:
    """Decode one image, as a viewer shows it, after its header has been found small enough.

    `fast` takes turbo-JPEG for ordinary JPEGs; everything else, and every JPEG that turbo-JPEG finds fault with, goes through
    Pillow, so that both decoders refuse the same files.

    Args:
        content: the file's bytes.
        path: named in the error.
        max_pixels: width x height above which nothing is decoded.
        as_stored: leave orientation and colour profiles alone, as the published code does.
        shorter_side: where it is not 0, a JPEG comes at the smallest of 1, 1/2, 1/4 and 1/8 of its size at which neither side
            is below this. A JPEG's cosine transform is undone at that size, which averages areas.

    Returns:
        [H, W, 3] uint8 RGB, writable or not.

    Raises:
        BadImage: with the reason.
    """
    if not content:
        raise BadImage(path, "is empty")
    try:
        coding = None
        if content.startswith(_JPEG_START):
            jpeg = walk_jpeg(content)
            if decoder == "fast" and (as_stored or not _is_seen_otherwise(content, jpeg)):
                image = _decode_jpeg(content, path, max_pixels, shorter_side)
                if image is not None:
                    return image
        else:
            coding = _walk(content)
        return _decode_with_pillow(content, path, max_pixels, coding, as_stored=as_stored, shorter_side=shorter_side)
    except (Excessive, Unshowable) as error:
        raise BadImage(path, str(error)) from None


def pixels_in_memory(image: Image.Image, name: str, *, max_pixels: int, as_stored: bool = False) -> Pixels:
    """What a Pillow image shows; it stays as it is.

    Args:
        image: opened from a file or made; its orientation and colour profile count as they do in a file.
        name: stands in the error where a path would.

    Raises:
        BadImage: with the reason.
    """
    _check_size(name, image.width, image.height, max_pixels)
    try:
        with warnings.catch_warnings(action="ignore"):
            return np.asarray(rendered(image.copy(), as_stored=as_stored))
    except Unshowable as error:
        raise BadImage(name, str(error)) from None
    except Exception as error:  # as when a file is decoded, which may happen here
        raise BadImage(name, f"cannot be decoded: {error or type(error).__name__}") from error


def _walk(content: bytes) -> Coding | None:
    """Refuse what would take too long; the colours in video's terms, where the file has them."""
    if content.startswith(_PNG_START):
        coding = walk_png(content)
        return Coding(coding[0], coding[1]) if coding and len(coding) == 4 else None
    if content.startswith(b"GIF8"):
        walk_gif(content)
    elif content.startswith(b"BM"):
        walk_bmp(content)
    elif content[:2] in (b"II", b"MM"):
        walk_tiff(content)
    elif content[4:12] in (b"ftypavif", b"ftypavis"):
        place = content.find(b"colrnclx", 0, 1 << 16) + 8
        return Coding(*(int.from_bytes(content[at : at + 2]) for at in (place, place + 2))) if place >= 8 else None
    return None


def _is_seen_otherwise(content: bytes, jpeg: Jpeg) -> bool:
    """Whether a JPEG is turned by EXIF, or has other colours than sRGB's."""
    if not (jpeg.has_exif or jpeg.has_profile):
        return False
    try:
        with warnings.catch_warnings(action="ignore"), _opened(content) as image:
            return orientation(image) != 1 or has_other_colours(image)
    except Exception:  # whatever is wrong with it, Pillow's own path says it
        return True


def _opened(content: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _decode_jpeg(content: bytes, path: Path | str, max_pixels: int, shorter_side: int) -> Pixels | None:
    """None where Pillow is to decide: CMYK, or anything that turbo-JPEG complains about."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content)
        if color_space not in {"YCbCr", "RGB", "Gray"}:
            return None
        _check_size(path, width, height, max_pixels)
        part = next((part for part in (8, 4, 2) if shorter_side and min(height, width) // part >= shorter_side), 1)
        size = {"min_height": height // part, "min_width": width // part} if part > 1 else {}
        image: Pixels = simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True, **size)
    except ValueError:
        return None
    return image


def _decode_with_pillow(
    content: bytes, path: Path | str, max_pixels: int, coding: Coding | None, *, as_stored: bool, shorter_side: int
) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities (broken EXIF, sizes) that decoding itself settles
            with _opened(content) as image:
                _check_size(path, image.width, image.height, max_pixels)
                if shorter_side:
                    image.draft(None, (shorter_side, shorter_side))  # of JPEGs alone
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    tags = image.tag_v2
                    _check_size(path, tags.get(322, 1), tags.get(323, 1), max_pixels)  # a tile is decoded whole
                if image.format == "AVIF" and image.info.get("icc_profile"):
                    coding = None
                return np.asarray(rendered(image, coding=coding, as_stored=as_stored))
    except (BadImage, Unshowable, MemoryError):
        raise
    except Image.DecompressionBombError:
        reason = f"has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that Pillow decodes"
        raise BadImage(path, reason, "size") from None
    except UnidentifiedImageError:
        raise BadImage(path, _unknown(content)) from None
    except Exception as error:  # decoders raise anything on hostile bytes: OSError, SyntaxError, struct.error, zlib.error
        raise BadImage(path, f"cannot be decoded: {error or type(error).__name__}") from error


def _unknown(content: bytes) -> str:
    kind = kind_of_file(content)
    if kind is None:
        return f"is not an image in a known format ({READ_FORMATS} are read)"
    if any(kind.startswith(f"a{n} {name} ") for n in ("", "n") for name in READ_FORMATS.replace(" and", ",").split(", ")):
        return f"cannot be decoded: it begins as {kind}, but is damaged or of a kind that is not read (save it as PNG)"
    return f"is {kind}, not an image in one of the formats that are read ({READ_FORMATS})"


def _check_size(path: Path | str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        reason = f"has {width} x {height} pixels, more than the {max_pixels:,} of data.bad_images.max_pixels"
        raise BadImage(path, reason, "size")
