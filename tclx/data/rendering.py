"""What does a viewer show of an image's file? Depth, transparency, colour and orientation become plain RGB, or are refused.

docs/data.md has the table of what each format can say; here it is done.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageFile, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of what is read; a JPEG with several images (MPO) is a JPEG to it. Pillow's other readers stay shut: some
start programs (EPS), some take minutes in Python (PPM), some drop what the file says (JPEG 2000's profiles)."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB = ImageCms.createProfile("sRGB")
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and still be taken for it: the pixels then stay."""


class Unshowable(Exception):
    """The file says something about how it is to be seen that cannot be honoured; the message completes `PATH: `."""


class Coding(NamedTuple):
    """Colour as video names it (ITU-T H.273): in PNG's `cICP` and AVIF's `nclx`."""

    primaries: int
    transfer: int


def rendered(image: Image.Image, *, coding: Coding | None = None, as_stored: bool = False) -> Image.Image:
    """An opened image as a viewer shows its first frame or page, in RGB.

    Args:
        image: of one of `FORMATS`, not decoded yet; or one that is in memory, of which its file tells no more.
        coding: the file's colour in video's terms.
        as_stored: leave orientation and colour as they are stored, as the published code does.

    Raises:
        Unshowable: with the reason.
        Exception: whatever a decoder raises.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    tile = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    frame = tile[0][1] if image.format == "GIF" and tile else None
    stored_as = str(tile[0][3]) if tile else ""
    image.load()
    alpha = _alpha(image, stored_as)
    image.info.pop("transparency", None)  # Pillow would look for another colour to put in its place
    if frame is not None and frame != (0, 0, *image.size):
        covered = Image.new("L", image.size, 0)
        covered.paste(255, frame)
        alpha = covered if alpha is None else ImageChops.darker(alpha, covered)
    shown = _coloured(_opaque(image), image, None if as_stored else coding, as_stored=as_stored)
    if alpha is not None:
        shown = Image.composite(shown, Image.new("RGB", shown.size, "white"), alpha)
    turn = None if as_stored else _TURNS.get(orientation(image))
    return shown if turn is None else shown.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the EXIF data are damaged, as viewers do.

    A TIFF's own was applied when it was loaded. Orientation in XMP is ignored: browsers do not look there.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises what its parser meets: struct.error, SyntaxError, ValueError
        return 1
    return value if isinstance(value, int) else 1


def has_other_colours(image: Image.Image) -> bool:
    """Whether the image has a colour profile that can be honoured and is not sRGB's."""
    base = "CMYK" if image.mode == "CMYK" else "L" if image.mode == "L" else "RGB"
    profile = image.info.get("icc_profile")
    return bool(profile) and _to_srgb(profile, base) is not None


# Depth and transparency


def _opaque(image: Image.Image) -> Image.Image:
    """L, RGB or CMYK of 8 bits a channel, without the alpha channel: what lies below transparency included."""
    if image.mode in ("I", "F"):
        held = "whole numbers of 32 bits" if image.mode == "I" else "floating-point numbers"
        raise Unshowable(f"holds {held}, and does not say which of them is white: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        return Image.fromarray((_sixteen_bits(image) >> 8).astype(np.uint8))
    if image.mode in ("L", "CMYK"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode == "La":
        return image.convert("LA").convert("L")
    if image.mode == "RGBa":
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _alpha(image: Image.Image, stored_as: str) -> Image.Image | None:
    """The image's opacity as L, None where all of it is opaque.

    PNG names its one transparent grey in the file's depth; Pillow spreads 2 and 4 bits over 8, and keeps 8 of a colour's 16.
    """
    transparent = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        alpha = image.getchannel(image.mode[-1])
    elif transparent is None:
        return None
    elif image.mode == "P":
        table = np.full(256, 255, np.uint8)
        if isinstance(transparent, int):
            table[transparent] = 0
        else:
            table[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
        alpha = Image.fromarray(table[np.asarray(image)])
    elif stored_as == "RGB;16B":
        raise Unshowable(
            "makes one colour of 16 bits a channel transparent, of which 8 are read: save it with an alpha channel"
        )
    else:
        stored = np.asarray(image.convert("L") if image.mode == "1" else image)
        spread = {"L;2": 85, "L;4": 17}.get(stored_as, 1)
        same = (stored == np.multiply(transparent, spread)).reshape(*stored.shape[:2], -1).all(axis=-1)
        alpha = Image.fromarray(np.where(same, 0, 255).astype(np.uint8))
    return alpha if alpha.getextrema()[0] != 255 else None


def _sixteen_bits(image: Image.Image) -> NDArray[Any]:
    """[H, W] uint16 on the scale 0 to 65535."""
    values: NDArray[Any] = np.asarray(image).astype(np.uint16)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(258) == (12,):
            values = values << 4 | values >> 8
        if image.tag_v2.get(262) == 0:  # white is zero: Pillow turns 8 bits and fewer
            values = ~values
    return values


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse what Pillow opens and shows as something else."""
    tags = image.tag_v2
    formats = tags.get(339, (1,))
    if {*(formats if isinstance(formats, tuple) else (formats,))} - {1, 4}:
        raise Unshowable(
            "holds signed or floating-point numbers, and does not say which of them is white: save it with 8 or 16 bits"
        )
    if 50706 in tags or tags.get(254, 0) & 1:
        raise Unshowable(
            "is a raw photograph or begins with a thumbnail of another page: save the image itself, as JPEG or PNG"
        )
    if tags.get(284) == 2 and (max(tags.get(258, (1,))) > 8 or len(tags.get(273, tags.get(324, ()))) < len(tags.get(258, ()))):
        raise Unshowable("stores each channel by itself, with more than 8 bits or in too few strips: save it as PNG")
    if tags.get(262) == 5 and tags.get(332, 1) != 1:
        raise Unshowable("is printed with other inks than cyan, magenta, yellow and black")


# Colour


def _coloured(opaque: Image.Image, image: Image.Image, coding: Coding | None, *, as_stored: bool) -> Image.Image:
    """RGB in sRGB, the colours of screens."""
    profile = image.info.get("icc_profile")
    if as_stored:
        return opaque.convert("RGB")
    if coding is not None and coding != _UNSPECIFIED:
        return _from_primaries(opaque.convert("RGB"), *_video_colours(coding))
    if profile and (transform := _to_srgb(profile, opaque.mode)) is not None:
        return ImageCms.applyTransform(opaque, transform)  # type: ignore[return-value]
    gamma = image.info.get("gamma")
    if image.format == "PNG" and gamma and not profile and "srgb" not in image.info:
        white_and_primaries = image.info.get("chromaticity")
        return _from_primaries(opaque.convert("RGB"), white_and_primaries or _D65_BT709, 1 / gamma)
    return opaque.convert("RGB")


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile's colours to sRGB; None for what is sRGB, is damaged, or is for another kind of image.

    Viewers ignore the last two as well.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, AttributeError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    seen = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform)).astype(int)
    return transform if np.abs(seen - grid.reshape(1, len(seen[0]), -1)).max() > _SAME else None


_D65_BT709 = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue: sRGB's."""
_PRIMARIES = {
    1: _D65_BT709,
    2: _D65_BT709,  # unspecified
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_EXPONENTS = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
"""Of a transfer function; None is sRGB's curve, which browsers take for BT.709's as well."""
_HIGH_RANGE = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = Coding(2, 2)


def _video_colours(coding: Coding) -> tuple[tuple[float, ...], float | None]:
    if coding.transfer in _HIGH_RANGE:
        name = _HIGH_RANGE[coding.transfer]
        raise Unshowable(
            f"is in high dynamic range ({name}), which has no one look on an ordinary screen: save it as JPEG or PNG"
        )
    if coding.primaries not in _PRIMARIES or coding.transfer not in _EXPONENTS:
        raise Unshowable(
            f"has colours of another kind (primaries {coding.primaries}, transfer {coding.transfer}): save it in sRGB"
        )
    return _PRIMARIES[coding.primaries], _EXPONENTS[coding.transfer]


def _from_primaries(image: Image.Image, chromaticities: tuple[float, ...], exponent: float | None) -> Image.Image:
    """sRGB from colours with other primaries, and a power in place of sRGB's curve (None has that).

    A power within 5 % of 2.2, and primaries within 0.01 of sRGB's, are taken for sRGB, as by libpng.
    """
    same_curve = exponent is None or abs(exponent / 2.2 - 1) <= 0.05
    same_primaries = np.abs(np.subtract(chromaticities, _D65_BT709)).max() <= 0.01
    if same_curve and same_primaries:
        return image
    levels = np.arange(256) / 255
    linear = _decoded(levels) if exponent is None else levels**exponent
    if same_primaries:
        return image.point(list(_encoded(linear)) * 3)
    try:
        matrix = np.linalg.inv(_to_xyz(_D65_BT709)) @ _to_xyz(chromaticities)
    except np.linalg.LinAlgError:
        return image  # they span no colours: viewers ignore them
    pixels = np.asarray(image).copy()
    for start in range(0, len(pixels), 64):  # floating-point rows of the whole image would take 12 bytes a channel
        pixels[start : start + 64] = _encoded(linear[pixels[start : start + 64]] @ matrix.T)
    return Image.fromarray(pixels)


def _decoded(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light from sRGB's levels, both on the scale 0 to 1 (IEC 61966-2-1)."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _encoded(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    """sRGB's levels of 255 from light on the scale 0 to 1."""
    light = np.clip(light, 0, 1)
    levels = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    encoded: NDArray[np.uint8] = np.rint(levels * 255).astype(np.uint8)
    return encoded


def _to_xyz(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """[3, 3] from linear RGB to CIE XYZ, relative to D65: white is adapted as by Bradford (Lindbloom, lindbloom.com)."""
    x, y = np.array(chromaticities).reshape(4, 2).T
    if min(y) <= 0:
        raise np.linalg.LinAlgError("a colour without light")
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    matrix = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65 = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    gain = (bradford @ d65) / (bradford @ xyz[:, 0])
    adapted: NDArray[np.float64] = np.linalg.inv(bradford) @ (gain[:, None] * (bradford @ matrix))
    return adapted
