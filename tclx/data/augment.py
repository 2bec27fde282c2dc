"""How is a training image varied? The official operations in the official order, drawn first, then applied.

`draw_view` decides everything about a view; `apply_view` carries it out with OpenCV and NumPy (`fast`) or with Pillow (`pil`),
so both give the same view up to rounding and resampling. RandAugment is OpenCV in both, as in the official code.

Order: random resized crop, colour jitter, grayscale, blur, flip, RandAugment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

if TYPE_CHECKING:
    from tclx.data.images import Decoder, Pixels
    from tclx.spec.data import AugmentationSpec

Adjustment = Literal["brightness", "contrast", "saturation", "hue"]
Operation = Literal[
    "Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"
]

JITTER: dict[Adjustment, float] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
"""Factors are uniform in 1 +- this; hue is a shift of +- this part of the colour circle."""
BLUR_SIGMA = (0.1, 2.0)
"""Pixels, uniform."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of the crop, log-uniform."""
CROP_TRIES = 10
LINEAR_REDUCTION = 1.5
"""Reductions below this are linear in the fast path, stronger ones average areas."""
OPERATION_PROBABILITY = 0.5
BAND = 32
"""Rows whose floating-point numbers are held at once: what fits a core's cache is not asked of the system again and again."""
FILL = (128, 128, 128)
"""Where shear, translation and rotation uncover nothing."""

SIGNED_RANGES: dict[Operation, float] = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 10.0, "TranslateY": 10.0, "Rotate": 30.0}
"""Argument at magnitude 10, of either sign: slope, pixels, degrees."""
ENHANCEMENTS: tuple[Operation, ...] = ("Brightness", "Sharpness")
"""Their factor is 0.1 + 1.8 x magnitude / 10: magnitudes above 5 brighten and sharpen."""
TableMaker = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""From a channel's histogram [256] to its lookup table [256]."""
OPERATIONS: tuple[Operation, ...] = ("Identity", "AutoContrast", "Equalize", *ENHANCEMENTS, *SIGNED_RANGES)


@dataclass(frozen=True)
class Crop:
    """A box in pixels of the original image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for one view."""

    crop: Crop
    jitter: tuple[tuple[Adjustment, float], ...]
    """Adjustments in the order of application; empty for none."""
    grayscale: bool
    blur_sigma: float | None
    """Pixels of the resized image."""
    flip: bool
    operations: tuple[tuple[Operation, float], ...]
    """RandAugment operations that are applied, with their arguments (0 where there is none)."""


def draw_view(rng: np.random.Generator, spec: AugmentationSpec, *, height: int, width: int) -> ViewParameters:
    """Draw a view of an image of `height` x `width` pixels."""
    return ViewParameters(
        crop=_draw_crop(rng, spec.crop_scale, height=height, width=width),
        jitter=_draw_jitter(rng) if rng.random() < spec.color_jitter else (),
        grayscale=bool(rng.random() < spec.grayscale),
        blur_sigma=float(rng.uniform(*BLUR_SIGMA)) if rng.random() < spec.blur else None,
        flip=bool(rng.random() < spec.flip),
        operations=_draw_operations(rng, spec),
    )


def apply_view(pixels: Pixels, view: ViewParameters, *, image_size: int, decoder: Decoder, official: bool = False) -> Pixels:
    """The view of an image.

    Args:
        pixels: [H, W, 3] uint8 RGB, of the size that the view was drawn for.
        image_size: side S of the result in pixels.
        decoder: `fast` or `pil`.
        official: see `apply_operation`.

    Returns:
        [S, S, 3] uint8 RGB; may share memory with `image`.
    """
    varied = (_vary_fast if decoder == "fast" else _vary_with_pillow)(pixels, view, image_size)
    if view.flip:
        varied = _as_pixels(cv2.flip(varied, 1))
    for name, argument in view.operations:
        varied = apply_operation(varied, name, argument, official=official)
    return varied


def resize_for_evaluation(pixels: Pixels, *, image_size: int, decoder: Decoder) -> Pixels:
    """The whole image, squeezed to a square of `image_size` pixels; returned untouched where it is one already."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    whole = Crop(0, 0, *pixels.shape[:2])
    if decoder == "fast":
        return _crop_and_resize(pixels, whole, image_size)
    return np.asarray(_crop_and_resize_with_pillow(pixels, whole, image_size))


# What is drawn


def _draw_crop(rng: np.random.Generator, scale: tuple[float, float], *, height: int, width: int) -> Crop:
    """A box whose share of the area is uniform in `scale`; a central one where ten draws did not fit."""
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return Crop(int(top), int(left), crop_height, crop_width)
    crop_width = min(width, max(1, round(height * CROP_RATIO[1])))
    crop_height = min(height, max(1, round(width / CROP_RATIO[0])))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def _draw_jitter(rng: np.random.Generator) -> tuple[tuple[Adjustment, float], ...]:
    names = list(JITTER)
    order = [names[place] for place in rng.permutation(len(names))]
    return tuple((name, float(rng.uniform(-JITTER[name], JITTER[name])) + (name != "hue")) for name in order)


def _draw_operations(rng: np.random.Generator, spec: AugmentationSpec) -> tuple[tuple[Operation, float], ...]:
    chosen = [OPERATIONS[place] for place in rng.integers(len(OPERATIONS), size=spec.random_ops)]
    applied = rng.random(spec.random_ops) < OPERATION_PROBABILITY
    signs = np.where(rng.random(spec.random_ops) < 0.5, -1.0, 1.0)
    arguments = [operation_argument(name, magnitude=spec.random_magnitude) for name in chosen]
    return tuple(
        (name, argument * float(sign) if name in SIGNED_RANGES else argument)
        for name, argument, sign, use in zip(chosen, arguments, signs, applied, strict=True)
        if use
    )


def operation_argument(name: Operation, *, magnitude: int) -> float:
    """The (positive) argument of a RandAugment operation at a magnitude of 0 to 10; 0 for those that take none."""
    if name in ENHANCEMENTS:
        return magnitude / 10 * 1.8 + 0.1
    return magnitude / 10 * SIGNED_RANGES.get(name, 0.0)


# Crop, jitter, grayscale and blur with OpenCV


def _vary_fast(pixels: Pixels, view: ViewParameters, image_size: int) -> Pixels:
    varied = _crop_and_resize(pixels, view.crop, image_size)
    for name, factor in view.jitter:
        varied = _adjust(varied, name, factor)
    if view.grayscale:
        varied = _spread(cv2.cvtColor(varied, cv2.COLOR_RGB2GRAY))
    if view.blur_sigma is not None:
        varied = _as_pixels(cv2.GaussianBlur(varied, (0, 0), view.blur_sigma, borderType=cv2.BORDER_REPLICATE))
    return varied


def _crop_and_resize(pixels: Pixels, crop: Crop, image_size: int) -> Pixels:
    part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return _resize(part, image_size)


def _resize(pixels: Pixels, side: int) -> Pixels:
    """Shrink what is longer than `side`, then enlarge what is shorter; OpenCV's cubic alone would alias when it shrinks.

    Mean distance from Pillow's bicubic on photographs: 0.4 to 1.9 of 255. Below a reduction of 1.5, linear is as close as
    area at a sixth of its cost.
    """
    height, width = pixels.shape[:2]
    kept = min(width, side), min(height, side)
    if kept != (width, height):
        mild = max(width, height) < LINEAR_REDUCTION * side
        pixels = _as_pixels(cv2.resize(pixels, kept, interpolation=cv2.INTER_LINEAR if mild else cv2.INTER_AREA))
    if kept != (side, side):
        pixels = _as_pixels(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC))
    return pixels


def _adjust(pixels: Pixels, name: Adjustment, factor: float) -> Pixels:
    if name == "brightness":
        return _as_pixels(cv2.convertScaleAbs(pixels, alpha=factor))
    if name == "contrast":
        mean = round(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0])
        return _as_pixels(cv2.LUT(pixels, _as_bytes(np.arange(256) * factor + mean * (1 - factor))))
    if name == "saturation":
        gray = _spread(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        return _as_pixels(cv2.addWeighted(pixels, factor, gray, 1 - factor, 0))
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(factor * 255) % 256)  # uint8 wraps around as the colour circle does
    return _as_pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def _spread(gray: NDArray[np.uint8] | cv2.typing.MatLike) -> Pixels:
    return _as_pixels(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))


# The same with Pillow


def _vary_with_pillow(pixels: Pixels, view: ViewParameters, image_size: int) -> Pixels:
    image = _crop_and_resize_with_pillow(pixels, view.crop, image_size)
    for name, factor in view.jitter:
        image = _adjust_with_pillow(image, name, factor)
    if view.grayscale:
        image = image.convert("L").convert("RGB")
    if view.blur_sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(view.blur_sigma))
    return np.asarray(image)


def _crop_and_resize_with_pillow(pixels: Pixels, crop: Crop, image_size: int) -> Image.Image:
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    return Image.fromarray(pixels).crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)


def _adjust_with_pillow(image: Image.Image, name: Adjustment, factor: float) -> Image.Image:
    if name == "hue":
        hue, saturation, value = image.convert("HSV").split()
        shift = round(factor * 255)
        return Image.merge("HSV", (hue.point(lambda angle: (angle + shift) % 256), saturation, value)).convert("RGB")
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}[name]
    return enhance(image).enhance(factor)


# RandAugment's operations


def apply_operation(pixels: Pixels, name: Operation, argument: float, *, official: bool = False) -> Pixels:
    """One RandAugment operation; all but Sharpness are the official ones pixel for pixel.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        argument: a factor (Brightness, Sharpness), slope, number of pixels or angle in degrees; the others ignore it.
        official: let Sharpness overflow as the official code does, which turns 256 into black; else it saturates.
    """
    height, width = pixels.shape[:2]
    match name:
        case "Identity":
            return pixels
        case "AutoContrast":
            return _per_channel(pixels, _stretch_table)
        case "Equalize":
            return _per_channel(pixels, _equalize_table)
        case "Brightness":
            return _as_pixels(cv2.LUT(pixels, _as_bytes(np.arange(256, dtype=np.float32) * argument)))
        case "Sharpness":
            return _sharpen(pixels, argument, overflow=official)
        case "Rotate":
            return _warp(pixels, cv2.getRotationMatrix2D((width / 2, height / 2), argument, 1))
        case "ShearX":
            return _warp(pixels, [[1, argument, 0], [0, 1, 0]])
        case "ShearY":
            return _warp(pixels, [[1, 0, 0], [argument, 1, 0]])
        case "TranslateX":
            return _translate(pixels, argument, 0)
        case "TranslateY":
            return _translate(pixels, 0, argument)


def _translate(pixels: Pixels, left: float, up: float) -> Pixels:
    """By whole pixels the rest is copied, which gives what warping gives in a tenth of its time."""
    height, width = pixels.shape[:2]
    x, y = round(left), round(up)
    if (x, y) != (left, up) or abs(x) >= width or abs(y) >= height:
        return _warp(pixels, [[1, 0, -left], [0, 1, -up]])
    kept = pixels[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
    above, beside = max(-y, 0), max(-x, 0)
    return _as_pixels(cv2.copyMakeBorder(kept, above, max(y, 0), beside, max(x, 0), borderType=cv2.BORDER_CONSTANT, value=FILL))


def _warp(pixels: Pixels, matrix: cv2.typing.MatLike | list[list[float]]) -> Pixels:
    height, width = pixels.shape[:2]
    return _as_pixels(cv2.warpAffine(pixels, np.asarray(matrix, np.float64), (width, height), borderValue=FILL))


def _per_channel(pixels: Pixels, make_table: TableMaker) -> Pixels:
    histograms = [cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel().astype(np.int64) for channel in range(3)]
    tables = np.stack([make_table(histogram) for histogram in histograms], axis=-1)
    return _as_pixels(cv2.LUT(pixels, tables[None]))


def _stretch_table(histogram: NDArray[np.int64]) -> NDArray[np.uint8]:
    """From the darkest and brightest value present to 0 and 255."""
    present = np.flatnonzero(histogram)
    low, high = present[0], present[-1]
    if low == high:
        return np.arange(256, dtype=np.uint8)
    scale = 255 / (high - low)
    return _as_bytes(np.arange(256) * scale - low * scale)


def _equalize_table(histogram: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Towards a uniform distribution of values, in whole numbers as Pillow does it."""
    present = histogram[histogram > 0]
    step = int(present[:-1].sum()) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate(([0], np.cumsum(histogram[:-1])))
    return _as_bytes((below + step // 2) // step)


def _sharpen(pixels: Pixels, factor: float, *, overflow: bool) -> Pixels:
    """Away from (factor > 1) or towards the image smoothed with 3 x 3 weights of 1, 5 in the middle; the border stays."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = _as_pixels(cv2.filter2D(pixels, -1, kernel / 13))
    sharpened = np.empty_like(pixels)
    for start in range(0, len(pixels), BAND):
        band = np.s_[start : start + BAND]
        near = smooth[band].astype(np.float32)
        values = pixels[band].astype(np.float32)
        values -= near
        values *= np.float32(factor)
        values += near
        sharpened[band] = (values.astype(np.int32) & 255) if overflow else _as_bytes(values)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharpened[border] = pixels[border]
    return sharpened


def _as_pixels(array: cv2.typing.MatLike) -> Pixels:
    """OpenCV's stubs say any dtype; 8-bit input gives 8-bit output."""
    pixels: Pixels = array.astype(np.uint8, copy=False)
    return pixels


def _as_bytes(values: NDArray[np.floating | np.integer]) -> NDArray[np.uint8]:
    """Values as bytes, fractions cut off as the official code does."""
    return values.clip(0, 255).astype(np.uint8)
