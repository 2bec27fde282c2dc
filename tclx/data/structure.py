"""What does an image's file hold besides pixels, and may it be opened at all? Its structure is walked before it is decoded.

Pillow walks segments, chunks and blocks in Python and libjpeg decodes every scan of a JPEG over the whole image, so that a
small file can take minutes. Each walk here is bounded, and refuses what no camera and no program writes.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

MAX_JPEG_SCANS = 32
"""Progressive JPEGs have about 10; 100 of them took 6.5 s at 50 million pixels."""
MAX_PARTS = 100_000
"""Segments, chunks or blocks: those of a PNG of 50 million pixels in chunks of 8 KiB five times over, 0.5 s in Pillow."""
MAX_TIFF_VALUES = 1_000_000
"""Numbers of one TIFF tag: an offset for each strip or tile."""
MAX_FILLER_BYTES = 65_536
"""Bytes between the segments of a JPEG's header that belong to none of them."""
MAX_RUN_LENGTH_BYTES = 4_000_000
"""Pillow decodes a BMP's run lengths in Python, at about 2 million bytes a second."""

# A marker in or after entropy-coded data; 0 is a stuffed byte there, D0 to D7 restart within a scan, FF fills.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


class Excessive(Exception):
    """A file whose structure would take too long to decode; the message completes `PATH: `."""


class Jpeg(NamedTuple):
    """What a JPEG's segments say."""

    has_exif: bool
    has_profile: bool
    """Whether there is a colour profile (ICC)."""


def walk_jpeg(content: bytes) -> Jpeg:
    """Look at every segment of the first image in a JPEG file.

    Raises:
        Excessive: there are too many scans, segments or bytes that belong to neither.
    """
    position, num_scans, num_segments, filler = 2, 0, 0, 0
    has_exif = has_profile = False
    while (marker := _JPEG_MARKER.search(content, position)) and marker[1] != b"\xd9":
        filler += 0 if num_scans else marker.start() - position
        start = marker.end()
        without_length = marker[1] in b"\x01\xd8"
        position = start if without_length else start + max(int.from_bytes(content[start : start + 2]), 2)
        has_exif |= marker[1] == b"\xe1" and content.startswith(b"Exif\0", start + 2)
        has_profile |= marker[1] == b"\xe2" and content.startswith(b"ICC_PROFILE\0", start + 2)
        num_scans += marker[1] == b"\xda"
        num_segments += 1
        if num_scans > MAX_JPEG_SCANS:
            raise Excessive(f"is a JPEG of more than {MAX_JPEG_SCANS} scans: each costs as much time as a whole image")
        if num_segments > MAX_PARTS or filler > MAX_FILLER_BYTES:
            raise Excessive(f"is a JPEG of more than {MAX_PARTS:,} segments or {MAX_FILLER_BYTES:,} bytes of filler")
    return Jpeg(has_exif, has_profile)


def walk_png(content: bytes) -> bytes | None:
    """Look at every chunk of a PNG; returns the content of `cICP` (colour as video has it), which Pillow does not read.

    Raises:
        Excessive: there are too many chunks.
    """
    position, coding = 8, None
    for _ in range(MAX_PARTS):
        kind = content[position + 4 : position + 8]
        if kind in (b"", b"IEND"):
            return coding
        length = int.from_bytes(content[position : position + 4])
        if kind == b"cICP":
            coding = content[position + 8 : position + 8 + length]
        position += length + 12
    raise Excessive(f"is a PNG of more than {MAX_PARTS:,} chunks")


def walk_gif(content: bytes) -> None:
    """Look at every block before a GIF's first image.

    Raises:
        Excessive: there are too many.
    """
    flags = content[10] if len(content) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    inside = False  # of an extension, whose blocks end with an empty one
    for _ in range(MAX_PARTS):
        byte = content[position : position + 1]
        if byte == b"" or (not inside and byte != b"!"):
            return
        position += byte[0] + 1 if inside else 2
        inside = not inside or byte != b"\0"
    raise Excessive(f"is a GIF of more than {MAX_PARTS:,} blocks before its first image")


def walk_bmp(content: bytes) -> None:
    """Refuse run lengths that would take long.

    Raises:
        Excessive: there are too many.
    """
    if len(content) > MAX_RUN_LENGTH_BYTES and content[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        raise Excessive(f"is a run-length coded BMP of more than {MAX_RUN_LENGTH_BYTES:,} bytes: save it as PNG")


def walk_tiff(content: bytes) -> None:
    """Look at the tags of a TIFF's first page.

    Raises:
        Excessive: one of them claims to hold too many numbers.
    """
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    start, number, entry = (8, "Q", "HHQ8x") if big else (4, "I", "HHI4x")
    count_kind = "Q" if big else "H"
    try:
        (position,) = struct.unpack_from(order + number, content, start)
        (num_tags,) = struct.unpack_from(order + count_kind, content, position)
        position += struct.calcsize(order + count_kind)
        for place in range(min(num_tags, MAX_PARTS)):
            tag, kind, count = struct.unpack_from(order + entry, content, position + place * struct.calcsize(order + entry))
            if kind not in _BYTE_TYPES and count > MAX_TIFF_VALUES:
                raise Excessive(f"is a TIFF whose tag {tag} holds {count:,} numbers, more than {MAX_TIFF_VALUES:,}")
    except (struct.error, OverflowError):  # cut short: Pillow says where
        return


_BYTE_TYPES = {1, 2, 6, 7}
"""TIFF's types of one byte: profiles, texts and Photoshop's data are read at once, as they lie."""
