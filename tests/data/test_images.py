from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tclx.data.images import BadImage, Decoder, decode_image, read_image
from tests.data.small import encoded, jpeg_of_claimed_size, photograph, png_header

MAX_PIXELS = 1_000_000
both = pytest.mark.parametrize("decoder", ["fast", "pil"])


def decode(content: bytes, decoder: Decoder) -> np.ndarray:
    return decode_image(content, "image", decoder=decoder, max_pixels=MAX_PIXELS)


def odd_images() -> dict[str, bytes]:
    """Images that are none of 8-bit RGB JPEG."""
    pixels = photograph()
    image = Image.fromarray(pixels)
    return {
        "gray JPEG": encoded(image.convert("L")),
        "CMYK JPEG": encoded(image.convert("CMYK")),
        "progressive JPEG": encoded(pixels, progressive=True),
        "JPEG without subsampling": encoded(pixels, subsampling=0),
        "PNG": encoded(pixels, "PNG"),
        "gray PNG": encoded(image.convert("L"), "PNG"),
        "palette PNG": encoded(image.convert("P"), "PNG"),
        "bilevel PNG": encoded(image.convert("1"), "PNG"),
        "WebP": encoded(pixels, "WEBP", lossless=True),
        "GIF": encoded(pixels, "GIF"),
        "BMP": encoded(pixels, "BMP"),
    }


@both
@pytest.mark.parametrize(("kind", "content"), odd_images().items(), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # from decoding the expected value
def test_every_kind_of_image_becomes_rgb_as_pillow_makes_it(kind: str, content: bytes, decoder: Decoder) -> None:
    decoded = decode(content, decoder)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (60, 80, 3)
    # Chroma upsampling and the inverse DCT are libjpeg-turbo's in both; only versions may round apart.
    assert np.abs(decoded.astype(int) - expected).max() <= (2 if "JPEG" in kind else 0)


@both
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not an image in a known format"),
        (b"\xff\xd8\xff\xe0 nor is this", "cannot be decoded"),
        (encoded(photograph())[:-900], "cannot be decoded: .*truncated"),
        (encoded(photograph())[:60], "is not an image|cannot be decoded"),
        (encoded(photograph(), "PNG")[:-900], "cannot be decoded"),
        (png_header(14_000, 14_000), "has .*more than"),
        (png_header(4_000, 4_000), "has 4000 x 4000 pixels, more than the 1,000,000 of data.bad_images.max_pixels"),
        (jpeg_of_claimed_size(14_000, 14_000), "has .*more than"),
        (jpeg_of_claimed_size(60_000, 60_000), "has .*more than"),
        (png_header(10, 10), "cannot be decoded"),
    ],
)
def test_bad_images_are_refused_with_the_reason(content: bytes, reason: str, decoder: Decoder) -> None:
    with pytest.raises(BadImage, match=f"^image: .*({reason})"):
        decode(content, decoder)


@both
def test_a_image_above_the_limit_is_not_decoded(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("simplejpeg.decode_jpeg", explode)
    monkeypatch.setattr(Image.Image, "convert", explode)
    for content in (encoded(photograph()), encoded(photograph(), "PNG")):
        with pytest.raises(BadImage, match="80 x 60 pixels"):
            decode_image(content, "image", decoder=decoder, max_pixels=80 * 60 - 1)


@both
def test_missing_files_and_folders_are_bad_images(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="does not exist"):
        read_image(tmp_path / "absent.jpg", decoder=decoder, max_pixels=MAX_PIXELS)
    with pytest.raises(BadImage, match="cannot be read: it is a folder, not a file"):
        read_image(tmp_path, decoder=decoder, max_pixels=MAX_PIXELS)


def test_bytes_after_a_jpeg_harm_neither_decoder() -> None:
    content = encoded(photograph()) + b"trailing bytes"
    assert np.array_equal(decode(content, "fast"), decode(content, "pil"))


def test_nothing_is_said_of_oddities_that_decoding_settles(recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns of a broken EXIF block; ten thousand such images would be ten thousand lines."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # five entries are announced, and there is none
    content = encoded(photograph(), exif=exif)
    assert decode(content, "pil").shape == (60, 80, 3)
    assert [str(one.message) for one in recwarn] == []
