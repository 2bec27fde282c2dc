"""What each format can say about how it is to be seen (the table in docs/data.md), against images made by construction."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from tclx.data.images import BadImage, Decoder, decode_image
from tclx.data.rendering import FORMATS
from tests.data.small import encoded, photograph

DECODERS: tuple[Decoder, ...] = ("fast", "pil")
IMAGE = photograph(40, 60)
GREY = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint8)
DEEP = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)


def shown(content: bytes, **options: Any) -> np.ndarray:
    """Both decoders show the same, to libjpeg's rounding."""
    images = [decode_image(content, "image", decoder=one, max_pixels=1_000_000, **options) for one in DECODERS]
    assert images[0].shape == images[1].shape
    assert np.abs(images[0].astype(int) - images[1]).max() <= 2
    return images[0]


def refusal(content: bytes) -> str:
    reasons = set()
    for decoder in DECODERS:
        with pytest.raises(BadImage) as caught:
            decode_image(content, "image", decoder=decoder, max_pixels=1_000_000)
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
    return reasons.pop()


def distance(content: bytes, expected: np.ndarray, **options: Any) -> int:
    pixels = shown(content, **options)
    expected = np.repeat(expected[..., None], 3, -1) if expected.ndim == 2 else expected
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected).max())


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


# Depth


def test_sixteen_bit_grey_keeps_its_gradient() -> None:
    for file_format in ("PNG", "TIFF"):
        assert distance(encoded(Image.fromarray(DEEP), file_format), (DEEP >> 8).astype(np.uint8)) == 0


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples: bytes, *, bits: int, colour: int, width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG of rows of bytes as they are stored, unfiltered."""
    stride = len(samples) // height
    rows = b"".join(b"\0" + samples[row * stride : (row + 1) * stride] for row in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(*, colour: int, channels: np.ndarray, extra: bytes = b"") -> bytes:
    return png(channels.astype(">u2").tobytes(), bits=16, colour=colour, width=60, height=40, extra=extra)


def test_sixteen_bit_colour_and_alpha_are_cut_to_eight() -> None:
    colours = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], -1)
    assert distance(deep_png(colour=2, channels=colours), (colours >> 8).astype(np.uint8)) == 0
    alpha = DEEP.T.reshape(40, 60)
    seen = over_white(np.repeat((DEEP >> 8)[..., None], 3, -1), alpha >> 8)
    assert distance(deep_png(colour=4, channels=np.stack([DEEP, alpha], -1)), seen) <= 1
    seen = over_white(colours >> 8, alpha >> 8)
    assert distance(deep_png(colour=6, channels=np.concatenate([colours, alpha[..., None]], -1)), seen) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_span_black_to_white_and_the_transparent_one_is_named_in_them(bits: int) -> None:
    per_byte = 8 // bits
    values = np.arange(40 * 64).reshape(40, 64) % 2**bits
    packed = sum(values[:, place::per_byte] << (8 - bits * (place + 1)) for place in range(per_byte)).astype(np.uint8)
    grey = (values * (255 // (2**bits - 1))).astype(np.uint8)
    options = {"bits": bits, "colour": 0, "width": 64, "height": 40}
    assert distance(png(packed.tobytes(), **options), grey) == 0
    transparent = chunk(b"tRNS", struct.pack(">H", 1))
    assert distance(png(packed.tobytes(), **options, extra=transparent), np.where(values == 1, 255, grey).astype(np.uint8)) == 0


@pytest.mark.parametrize("values", [DEEP.astype(np.int32), (DEEP / 65535).astype(np.float32), DEEP.astype(np.int16)])
def test_numbers_without_a_stated_white_are_refused(values: np.ndarray) -> None:
    content = encoded(Image.fromarray(values.astype(np.int32) if values.dtype == np.int16 else values), "TIFF")
    assert "does not say which of them is white" in refusal(content)


def test_one_bit_images_are_black_and_white() -> None:
    bilevel = Image.fromarray(GREY).convert("1")
    expected = np.asarray(bilevel.convert("L"))
    assert {*np.unique(expected)} == {0, 255}
    for file_format, options in (("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"}), ("GIF", {})):
        assert distance(encoded(bilevel, file_format, **options), expected) == 0


# Transparency


ALPHA = np.tile(np.array([0, 255, 128, 255], np.uint8), (40, 15))
HIDDEN = np.where(ALPHA[..., None] == 0, np.array([200, 30, 200], np.uint8), IMAGE)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_transparency_is_laid_over_white(file_format: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(np.dstack([HIDDEN, ALPHA]))
    pixels = shown(encoded(image, file_format, **options))
    expected = over_white(HIDDEN, ALPHA)
    assert np.abs(pixels.astype(int) - expected)[ALPHA == 0].max() == 0
    assert np.abs(pixels.astype(int) - expected).mean() <= (4 if file_format == "AVIF" else 1)


def test_grey_with_alpha_is_laid_over_white() -> None:
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    for file_format in ("PNG", "TIFF"):
        assert distance(encoded(image, file_format), over_white(np.repeat(GREY[..., None], 3, -1), ALPHA)) <= 1


def test_transparent_palette_entries_and_colours_are_laid_over_white() -> None:
    indices = (np.arange(40 * 60).reshape(40, 60) % 5).astype(np.uint8)
    image = Image.fromarray(indices).convert("L")
    image.putpalette([10, 20, 30, 200, 30, 200, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    colours = np.array([[10, 20, 30], [200, 30, 200], [40, 50, 60], [70, 80, 90], [1, 2, 3]], np.uint8)[indices]
    some = over_white(colours, np.array([255, 0, 128, 255, 255])[indices])
    assert distance(encoded(image, "PNG", transparency=bytes([255, 0, 128])), some) <= 1
    one = over_white(colours, np.array([255, 0, 255, 255, 255])[indices])
    assert distance(encoded(image, "PNG", transparency=1), one) == 0
    assert distance(encoded(image, "GIF", transparency=1), one) == 0
    assert distance(encoded(Image.fromarray(colours), "PNG", transparency=(200, 30, 200)), one) == 0


def test_a_transparent_colour_of_sixteen_bits_is_honoured_in_grey_and_refused_in_colour() -> None:
    extra = chunk(b"tRNS", struct.pack(">H", int(DEEP[20, 30])))
    seen = (DEEP >> 8).astype(np.uint8)
    seen[20, 30] = 255
    assert distance(deep_png(colour=0, channels=DEEP, extra=extra), seen) == 0
    extra = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert "transparent" in refusal(deep_png(colour=2, channels=np.dstack([DEEP] * 3), extra=extra))


def test_an_opaque_alpha_channel_changes_no_pixel() -> None:
    image = Image.fromarray(IMAGE).convert("RGBA")
    assert distance(encoded(image, "PNG"), IMAGE) == 0


# Orientation


TURNED = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
"""From EXIF 2.3, tag 274: where row 0 and column 0 of what is stored are to be seen."""


@pytest.mark.parametrize("value", [*TURNED])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ],
)
def test_all_orientations_are_turned(value: int, file_format: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[274] = value
    plain = shown(encoded(IMAGE, file_format, **options))
    assert np.array_equal(shown(encoded(IMAGE, file_format, exif=exif, **options)), TURNED[value](plain))


def test_the_published_code_ignores_orientation_and_profiles() -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(IMAGE, exif=exif, icc_profile=profile(DISPLAY_P3))
    assert np.array_equal(shown(content, as_stored=True), shown(encoded(IMAGE)))


def test_damaged_exif_and_orientations_that_do_not_exist_are_ignored() -> None:
    for value in (0, 9):
        exif = Image.Exif()
        exif[274] = value
        assert np.array_equal(shown(encoded(IMAGE, exif=exif)), shown(encoded(IMAGE)))
    content = encoded(IMAGE, exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert np.array_equal(shown(content), shown(encoded(IMAGE)))


# Colour


D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
"""x and y of red, green and blue (SMPTE EG 432-1)."""


def to_xyz(primaries: Any) -> np.ndarray:
    """SMPTE RP 177: the matrix under which red, green and blue add up to white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def linear(levels: np.ndarray) -> np.ndarray:
    part = levels / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def levels(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(np.uint8)


def from_p3(pixels: np.ndarray) -> np.ndarray:
    return levels(linear(pixels) @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(DISPLAY_P3)).T)


def profile(primaries: Any, *, space: bytes = b"RGB ") -> bytes:
    """A version 2 matrix profile with the power 2.2, as scanners' and screens' are (ICC.1:2001-04)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8249]), np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    columns = (adapt @ to_xyz(primaries)).T
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(d50)}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, columns), strict=True))
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", *(round(one * 65536) for one in d50))
    return header.ljust(128, b"\0") + rest


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_an_embedded_profile_is_honoured(file_format: str, options: dict[str, Any]) -> None:
    plain = shown(encoded(IMAGE, file_format, **options))
    light = (plain / 255) ** 2.2 @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(DISPLAY_P3)).T
    content = encoded(IMAGE, file_format, icc_profile=profile(DISPLAY_P3), **options)
    difference = np.abs(shown(content).astype(int) - levels(light))
    assert difference.max() <= 3
    assert np.abs(levels(light).astype(int) - plain).max() > 20


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    content = encoded(IMAGE, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.array_equal(shown(content), shown(encoded(IMAGE)))


@pytest.mark.parametrize("wrong", [b"", b"no profile", profile(DISPLAY_P3)[:300], profile(DISPLAY_P3, space=b"CMYK")])
def test_damaged_profiles_and_those_of_other_images_are_ignored(wrong: bytes) -> None:
    assert np.array_equal(shown(encoded(IMAGE, icc_profile=wrong)), shown(encoded(IMAGE)))
    assert distance(encoded(IMAGE, "PNG", icc_profile=wrong), IMAGE) == 0


def with_chunks(*chunks: bytes) -> bytes:
    content = encoded(IMAGE, "PNG")
    return content[:33] + b"".join(chunks) + content[33:]


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def test_gamma_of_a_png_is_honoured_unless_the_png_says_srgb() -> None:
    assert distance(with_chunks(gamma(1.0)), levels(IMAGE / 255)) == 0
    assert distance(with_chunks(gamma(1 / 1.8)), levels((IMAGE / 255) ** 1.8)) <= 1
    assert distance(with_chunks(gamma(0.45455)), IMAGE) == 0
    assert distance(with_chunks(gamma(1.0), chunk(b"sRGB", b"\0")), IMAGE) == 0
    assert distance(with_chunks(gamma(0)), IMAGE) == 0


def test_primaries_of_a_png_are_honoured_beside_its_gamma() -> None:
    primaries = chunk(
        b"cHRM", b"".join(struct.pack(">I", round(value * 100_000)) for pair in (D65, *DISPLAY_P3) for value in pair)
    )
    light = (IMAGE / 255) ** 2.2 @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(DISPLAY_P3)).T
    assert distance(with_chunks(gamma(1 / 2.2), primaries), levels(light)) <= 1
    assert distance(with_chunks(primaries), IMAGE) == 0
    nonsense = chunk(b"cHRM", bytes(32))
    assert distance(with_chunks(gamma(1 / 2.2), nonsense), IMAGE) == 0


def test_colours_in_videos_terms_are_honoured_and_high_range_is_refused() -> None:
    assert distance(with_chunks(chunk(b"cICP", bytes([1, 13, 0, 1]))), IMAGE) == 0
    assert distance(with_chunks(chunk(b"cICP", bytes([12, 13, 0, 1]))), from_p3(IMAGE)) <= 1
    assert "high dynamic range (PQ)" in refusal(with_chunks(chunk(b"cICP", bytes([9, 16, 0, 1]))))
    assert "high dynamic range (HLG)" in refusal(with_chunks(chunk(b"cICP", bytes([9, 18, 0, 1]))))
    assert "primaries 99" in refusal(with_chunks(chunk(b"cICP", bytes([99, 13, 0, 1]))))


def test_an_avif_of_high_range_is_refused() -> None:
    content = encoded(IMAGE, "AVIF", quality=100)
    place = content.index(b"colrnclx") + 8
    assert "high dynamic range" in refusal(content[: place + 2] + struct.pack(">H", 16) + content[place + 4 :])
    wide = content[:place] + struct.pack(">H", 12) + content[place + 2 :]
    assert distance(wide, from_p3(shown(content))) <= 1


def test_inks_become_colours_as_if_without_a_profile() -> None:
    """Adobe's JPEGs hold the inks inverted; a TIFF's lie as they are."""
    inks = np.full((40, 60, 4), [0, 255, 255, 0], np.uint8)  # magenta and yellow: red
    image = Image.frombytes("CMYK", (60, 40), inks.tobytes())
    for file_format in ("JPEG", "TIFF"):
        pixels = shown(encoded(image, file_format))
        assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


def test_lab_becomes_the_colours_that_it_names() -> None:
    """L* 53.2, a* 78, b* 62 is about sRGB's red relative to D50 (54.3, 80.8, 69.9 in full)."""
    lab = Image.merge("LAB", [Image.new("L", (8, 8), round(value)) for value in (54.3 * 2.55, 128 + 80.8, 128 + 69.9)])
    assert np.abs(shown(encoded(lab, "TIFF")).astype(int) - [255, 0, 0]).max() <= 12


def test_jpegs_and_tiffs_that_store_rgb_or_luminance_and_chrominance_are_told_apart() -> None:
    assert distance(encoded(IMAGE, quality=100, subsampling=0, keep_rgb=True), IMAGE) <= 3
    assert distance(encoded(Image.fromarray(IMAGE).convert("YCbCr"), "TIFF"), IMAGE) <= 3


# TIFF


def tiff(samples: bytes, tags: dict[int, tuple[int, ...]], *, order: str = "<", num_strips: int = 1) -> bytes:
    """An uncompressed TIFF, 60 x 40; tags hold short numbers."""
    size = len(samples) // num_strips
    strips = {279: (size,) * num_strips, 273: (0,) * num_strips}
    kinds = {256: (60,), 257: (40,), 259: (1,), 278: (40,), **strips, **tags}
    end = 8 + 2 + 12 * len(kinds) + 4 + sum(4 * len(v) if t in strips else 2 * len(v) for t, v in kinds.items() if len(v) > 2)
    kinds |= {273: tuple(end + size * number for number in range(num_strips))} if num_strips > 1 else {}
    start = 8 + 2 + 12 * len(kinds) + 4
    entries, extra = b"", b""
    for tag, values in sorted(kinds.items()):
        long = tag in (273, 279)
        packed = struct.pack(order + ("I" if long else "H") * len(values), *values)
        if tag == 273 and num_strips == 1:
            entries += struct.pack(order + "HHI4s", tag, 4, 1, b"HERE")
        elif len(packed) <= 4:
            entries += struct.pack(order + "HHI", tag, 4 if long else 3, len(values)) + packed.ljust(4, b"\0")
        else:
            entries += struct.pack(order + "HHII", tag, 4 if long else 3, len(values), start + len(extra))
            extra += packed
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    directory = struct.pack(order + "H", len(kinds)) + entries + bytes(4)
    return (header + directory + extra).replace(b"HERE", struct.pack(order + "I", start + len(extra))) + samples


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiffs_byte_order_and_white_is_zero_are_honoured(order: str) -> None:
    deep = {258: (16,), 277: (1,)}
    assert (
        distance(tiff(DEEP.astype(order + "u2").tobytes(), {**deep, 262: (1,)}, order=order), (DEEP >> 8).astype(np.uint8)) == 0
    )
    grey = {258: (8,), 277: (1,)}
    assert distance(tiff(GREY.tobytes(), {**grey, 262: (0,)}, order=order), 255 - GREY) == 0
    if order == "<":  # Pillow opens no other
        assert distance(tiff(DEEP.astype("<u2").tobytes(), {**deep, 262: (0,)}), (~DEEP >> 8).astype(np.uint8)) == 0


def test_a_tiff_of_twelve_bits_spans_black_to_white() -> None:
    values = DEEP >> 4
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1).astype(np.uint8)
    assert distance(tiff(packed.tobytes(), {258: (12,), 262: (1,), 277: (1,)}), (values >> 4).astype(np.uint8)) <= 1


def test_planes_of_a_tiff_are_put_together() -> None:
    planes = np.ascontiguousarray(IMAGE.transpose(2, 0, 1)).tobytes()
    tags = {258: (8, 8, 8), 262: (2,), 277: (3,), 284: (2,)}
    assert distance(tiff(planes, tags, num_strips=3), IMAGE) == 0
    assert "stores each channel by itself" in refusal(tiff(planes, tags))
    assert "stores each channel by itself" in refusal(tiff(planes * 2, {**tags, 258: (16, 16, 16)}, num_strips=3))


def test_the_first_page_is_shown_and_a_thumbnail_before_it_is_refused() -> None:
    first, second = Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1])
    for file_format, options in (("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        content = encoded(first, file_format, save_all=True, append_images=[second], **options)
        assert np.array_equal(shown(content), shown(encoded(first, file_format, **options)))
    thumbnail = tiff(GREY.tobytes(), {254: (1,), 258: (8,), 262: (1,), 277: (1,)})
    assert "thumbnail" in refusal(thumbnail)
    assert "of a kind that is not read" in refusal(tiff(GREY.tobytes(), {258: (8,), 262: (32803,), 277: (1,)}))


def test_a_jpeg_of_several_images_shows_its_first() -> None:
    first, second = Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1])
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(shown(content), shown(encoded(first)))


# GIF and BMP


def test_what_a_gifs_first_frame_leaves_open_is_white() -> None:
    content = bytearray(encoded(Image.fromarray(np.full((10, 10), 3, np.uint8)).convert("P"), "GIF"))
    content[6:10] = struct.pack("<HH", 30, 20)  # the canvas
    frame = content.index(b",", 13 + 768 if content[10] & 0x80 and content[10] & 7 == 7 else 13)
    content[frame + 1 : frame + 5] = struct.pack("<HH", 5, 4)
    pixels = shown(bytes(content))
    assert pixels.shape == (20, 30, 3)
    inside = np.zeros((20, 30), bool)
    inside[4:14, 5:15] = True
    assert (pixels[~inside] == 255).all()
    assert (pixels[inside] == 3).all()


def test_a_bmp_is_the_same_from_top_or_bottom_and_run_lengths_are_read() -> None:
    content = bytearray(encoded(IMAGE, "BMP"))
    assert distance(bytes(content), IMAGE) == 0
    content[22:26] = struct.pack("<i", -40)
    assert distance(bytes(content), IMAGE[::-1]) == 0
    palette = b"".join(bytes([value, value, value, 0]) for value in range(256))
    runs = b"".join(bytes([60, row]) + b"\0\0" for row in range(40)) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 60, 40, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    run_length = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs
    assert distance(run_length, np.repeat(np.arange(39, -1, -1, dtype=np.uint8)[:, None], 60, 1)) == 0


def test_the_fourth_byte_of_a_bmp_is_alpha_only_where_it_says_so() -> None:
    pixels = np.dstack([IMAGE[..., ::-1], ALPHA])[::-1].tobytes()
    plain = struct.pack("<IiiHHIIiiII", 40, 60, 40, 1, 32, 0, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    with_alpha = struct.pack("<IiiHHIIiiII", 108, 60, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + bytes(52)
    for header, expected in ((plain, IMAGE), (with_alpha, over_white(IMAGE, ALPHA))):
        content = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels
        assert distance(content, expected) <= 1


# What is read


def test_only_the_stated_formats_are_opened_and_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(IMAGE)
    for file_format, name in (
        ("PPM", "a PPM"),
        ("JPEG2000", "a JPEG 2000 image"),
        ("ICO", "a Windows icon"),
        ("EPS", "PostScript"),
    ):
        assert name in refusal(encoded(image, file_format))
    assert "a HEIF or HEIC image" in refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert "an SVG drawing" in refusal(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>')
    assert "a web page (HTML)" in refusal(b"<!DOCTYPE html><html><body>404</body></html>")
    assert "AppleDouble" in refusal(b"\0\x05\x16\7\0\2\0\0Mac OS X        " + bytes(60))
    assert "Git LFS pointer" in refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    assert issubclass(ImageFile.ImageFile, Image.Image)
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"} == {*FORMATS}
