from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tclx.data.augment import draw_view
from tclx.data.images import BadImage, Decoder, decode_image, image_reader, needed_side, read_image
from tclx.data.sources.opening import open_source
from tests.data.small import encoded, experiment, jpeg_of_claimed_size, photograph, png_header

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


# ------------------------------------------------------------------------------------------------------------ large photographs


@pytest.mark.parametrize(
    ("size", "shorter_side", "expected"),
    [
        ((600, 800), 0, (600, 800)),
        ((600, 800), 301, (600, 800)),
        ((600, 800), 300, (300, 400)),
        ((600, 800), 151, (300, 400)),
        ((600, 800), 150, (150, 200)),
        ((600, 800), 75, (75, 100)),
        ((600, 800), 10, (75, 100)),
        ((800, 601), 300, (400, 301)),
    ],
)
@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_a_jpeg_is_decoded_at_the_smallest_size_that_is_large_enough(
    size: tuple[int, int], shorter_side: int, expected: tuple[int, int], decoder: Decoder
) -> None:
    content = encoded(photograph(*size), quality=95)
    reduced = decode_image(content, "image", decoder=decoder, max_pixels=MAX_PIXELS, shorter_side=shorter_side)
    assert reduced.shape == (*expected, 3)
    whole = decode_image(content, "image", decoder=decoder, max_pixels=MAX_PIXELS)
    averaged = cv2.resize(whole, expected[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - averaged).mean() < 5  # two independent photographs: 60


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_a_photograph_that_is_turned_is_reduced_and_turned(decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photograph(400, 800), exif=exif.tobytes())
    reduced = decode_image(content, "image", decoder=decoder, max_pixels=MAX_PIXELS, shorter_side=100)
    assert reduced.shape == (200, 100, 3)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_come_in_full(file_format: str) -> None:
    content = encoded(photograph(200, 300), file_format)
    shapes = {
        decode_image(content, "image", decoder=decoder, max_pixels=MAX_PIXELS, shorter_side=20).shape
        for decoder in get_args(Decoder)
    }
    assert shapes == {(200, 300, 3)}


@given(
    height=st.integers(8, 4000),
    width=st.integers(8, 4000),
    low=st.floats(0.02, 1),
    seed=st.integers(0, 10**6),
    size=st.integers(16, 512),
)
def test_the_smallest_crop_of_what_is_needed_has_as_many_pixels_as_are_shown(
    height: int, width: int, low: float, seed: int, size: int
) -> None:
    """Drawn from an image whose shorter side is what `needed_side` says, or longer."""
    spec = experiment(data={"augmentation": {"crop_scale": [low, 1.0]}})
    encoder = spec.model.image_encoder.model_copy(update={"image_size": size})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"image_encoder": encoder})})
    shorter = needed_side(spec)
    scale = max(1.0, shorter / min(height, width))
    height, width = math.ceil(height * scale), math.ceil(width * scale)
    crop = draw_view(np.random.default_rng(seed), spec.data.augmentation, height=height, width=width).crop
    assert min(crop.height, crop.width) >= size - 1  # rounded to whole pixels


def test_only_what_is_cropped_and_resized_is_reduced(tmp_path: Path) -> None:
    """Boxes of a grounding task are in pixels of the whole image."""
    (tmp_path / "a.jpg").write_bytes(encoded(photograph(600, 800)))
    rows = {"source": "files", "files": [str(tmp_path / "rows.json")], "image_root": str(tmp_path)}
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.jpg", "caption": "a photograph"}]))
    spec = experiment(data={"train": rows, "reduce_jpegs": True})
    assert needed_side(spec) == 83  # 32 / sqrt(0.2 x 3 / 4)
    assert open_source(spec.data.train, key="data.train").rows(spec).image(0).shape == (150, 200, 3)
    assert image_reader(spec)(tmp_path / "a.jpg").shape == (600, 800, 3)
    whole = experiment(data={"train": rows})
    assert open_source(whole.data.train, key="data.train").rows(whole).image(0).shape == (600, 800, 3)
