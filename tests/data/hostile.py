"""Annotation files and images as attackers and accidents make them, by number: the same number, the same file."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.data.small import encoded, jpeg_of_claimed_size, photograph, png_header

# Annotation files


def rows(random: Random) -> list[dict[str, Any]]:
    return [
        {"image": f"{number}.jpg", "image_id": number, "caption": f"a cat {number}"} for number in range(random.randint(2, 9))
    ]


WRONG_VALUES: list[Any] = [
    None, True, 3, -1.5, float("nan"), float("inf"), "", "\0", "a\0b.png", "\ud83d", "x\udc00", [], [[]], {}, {"a": 1}, [None],
    ["x", 3], ["\ud800"], [""] * 3, "x" * 100_000, 10**400, "../" * 2000 + "x", "\u202e\x1b[31m",
]  # fmt: skip
"""Of a row's `image`, `image_id` or `caption`; some of them are fine for some keys."""


def one_value(random: Random) -> bytes:
    made = rows(random)
    random.choice(made)[random.choice(["image", "image_id", "caption"])] = random.choice(WRONG_VALUES)
    return json.dumps(made).encode()


def one_key(random: Random) -> bytes:
    made: list[Any] = rows(random)
    del random.choice(made)[random.choice(["image", "caption"])]
    return json.dumps(made).encode()


def one_row(random: Random) -> bytes:
    return json.dumps([*rows(random), random.choice(WRONG_VALUES)]).encode()


def one_byte(random: Random) -> bytes:
    content = bytearray(json.dumps(rows(random), indent=random.choice([None, 1])).encode())
    content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


def cut(random: Random) -> bytes:
    content = json.dumps(rows(random)).encode()
    return content[: random.randrange(len(content))]


def nested(random: Random) -> bytes:
    depth = random.randint(1000, 200_000)
    inner = random.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])
    return b'[{"image": "a.jpg", "caption": "x", "more": ' + inner + b"}]"


def digits(random: Random) -> bytes:
    return b'[{"image": "a.jpg", "caption": "x", "image_id": ' + b"9" * random.randint(4301, 100_000) + b"}]"


def twice(random: Random) -> bytes:
    return b'[{"image": "a.jpg", "image": "b.jpg", "image_id": 1, "caption": "x"}]'


def other_text(random: Random) -> bytes:
    return random.choice(
        [
            b"image,caption\na.jpg,x\n", b"a.jpg\tx\nb.jpg\ty\n", b"a.jpg#0\tx .\na.jpg#1\ty .\n", b"- image: a.jpg\n",
            b"[{'image': 'a.jpg', 'caption': 'x'}]", b"[\n{},\n]", b"[]]", b"[] []", b"null", b"3", b'"x"', b"{}", b"", b" \n",
            b'{"images": [], "annotations": []}', b'{"images": [{"sentences": []}], "dataset": "x"}', b'{"image": {"0": "a"}}',
            b'{"image": "a"}\n{"image": "b"}\n', b"<html><body>404</body></html>", b"NaN", b"[NaN]", b"\xef\xbb\xbf",
            b"\xff\xfe[\0]\0", b"\0\0\0[", b"[1 2]", b"[,]", b"{", b"[", b"// x\n[]", b"a|b\nc|d\n", b"PAR1" + bytes(50),
        ]
    )  # fmt: skip


def bytes_at_random(random: Random) -> bytes:
    return random.choice([b"", b"[", b"{", b'[{"', b"\x1f\x8b", b"PK\x03\x04"]) + random.randbytes(random.randint(0, 5000))


def long_text(random: Random) -> bytes:
    """Longer than a piece, so that pieces are put together: a character of several bytes lies on each boundary."""
    made = [{"image": "a.jpg", "image_id": 1, "caption": "ü" * random.randint(600_000, 1_500_000)}, *rows(random)]
    return json.dumps(made, ensure_ascii=False).encode() + random.choice([b"", b" x", b"\n" * 100, b"]"])


ANNOTATIONS: list[Callable[[Random], bytes]] = [
    one_value, one_key, one_row, one_byte, cut, nested, digits, twice, other_text, bytes_at_random, long_text,
]  # fmt: skip


def hostile_annotations(number: int) -> bytes:
    """Annotation file `number`, in turns of each kind."""
    return ANNOTATIONS[number % len(ANNOTATIONS)](Random(number))


# Images


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def ordinary(random: Random) -> bytes:
    image: Any = Image.fromarray(photograph(40, 60, seed=random.randrange(5)))
    image = image.convert(random.choice(["RGB", "L", "RGBA", "P", "1"]))
    file_format = random.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    return encoded(image.convert("RGB") if file_format in ("JPEG", "AVIF", "WEBP") else image, file_format)


def damaged(random: Random) -> bytes:
    content = bytearray(ordinary(random))
    for _ in range(random.choice([1, 3, 30])):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


def shortened(random: Random) -> bytes:
    content = ordinary(random)
    return content[: random.randrange(len(content))]


def many_scans(random: Random) -> bytes:
    content = encoded(photograph(400, 600), progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * random.randint(100, 2000) + content[-2:]


def many_segments(random: Random) -> bytes:
    content = encoded(photograph())
    kind = random.choice([b"\xff\xfe\0\2", b"\xff\xe5\0\2", b"\xff\xff\xff\xff"])
    return content[:2] + kind * 3_000_000 + content[2:]


def many_chunks(random: Random) -> bytes:
    content = encoded(photograph(), "PNG")
    return content[:33] + chunk(b"teXt", b"") * 1_000_000 + content[33:]


def bomb(random: Random) -> bytes:
    packed = zlib.compress(bytes(200_000_000), 1)
    kind = random.choice(
        [chunk(b"zTXt", b"k\0\0" + packed), chunk(b"iCCP", b"k\0\0" + packed), chunk(b"iTXt", b"k\0\1\0\0\0" + packed)]
    )
    content = encoded(photograph(), "PNG")
    return content[:33] + kind + content[33:]


def large(random: Random) -> bytes:
    side = random.choice([8_000, 20_000, 60_000])
    return random.choice([png_header(side, side), jpeg_of_claimed_size(side, side)])


def wide_gif(random: Random) -> bytes:
    content = bytearray(encoded(photograph(), "GIF"))
    content[6:10] = struct.pack("<HH", 65535, random.choice([1, 65535]))
    return bytes(content)


def gif_of_blocks(random: Random) -> bytes:
    content = encoded(photograph(), "GIF")
    return content[:781] + b"!\xfe" + b"\1x" * 3_000_000 + b"\0" + content[781:]


def tiff_of_strips(random: Random) -> bytes:
    entries = [(256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 1, 8), (262, 3, 1, 1), (259, 3, 1, 1)]
    entries += [(random.choice([273, 279, 40_000]), 4, 3_000_000, 200), (322, 4, 1, 60_000), (323, 4, 1, 60_000)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)).ljust(200, b"\0") + bytes(12_000_000)


def run_lengths(random: Random) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 6000, 6000, 1, 8, 1, 0, 0, 0, 256, 0)
    runs = b"\1\7" * 18_000_000
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(runs), 0, 0, 14 + 40 + 1024) + header + bytes(1024) + runs


def another_kind(random: Random) -> bytes:
    image = Image.fromarray(photograph())
    made = [encoded(image, file_format) for file_format in ("PPM", "JPEG2000", "ICO", "EPS", "TGA", "PCX", "SGI", "DDS", "PDF")]
    deep = Image.fromarray(np.ones((8, 8), np.float32))
    made += [
        encoded(deep, "TIFF"),
        b"<svg/>",
        b"\0\x05\x16\7" + bytes(90),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"x",
    ]
    return random.choice(made)


IMAGES: list[Callable[[Random], bytes]] = [
    damaged, shortened, damaged, many_scans, another_kind, damaged, large, wide_gif, shortened, many_segments, bomb, damaged,
    many_chunks, gif_of_blocks, damaged, tiff_of_strips, run_lengths,
]  # fmt: skip


def hostile_image(number: int) -> bytes:
    """Image file `number`, in turns of each kind."""
    return IMAGES[number % len(IMAGES)](Random(number))
