"""Tar files: members written so that the same content gives the same bytes, and found by their headers alone.

POSIX.1-1988 (ustar) is written; ustar, POSIX.1-2001 (pax) and GNU long names are read.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_MAX_NAME = 1 << 20
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"


class Damaged(Exception):
    """What is wrong with a tar, and at which byte (completes `PATH`)."""


class Place(NamedTuple):
    """A member."""

    name: str
    offset: int
    """Of its content."""
    length: int


def write_member(file: BinaryIO, name: str, content: bytes) -> int:
    """Add a member without an owner or a time.

    Args:
        file: to write to, at its end.
        name: of at most 100 ASCII characters.

    Returns:
        Where its content begins.
    """
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(content + b"\0" * (-len(content) % BLOCK))
    return offset


def write_end(file: BinaryIO) -> None:
    """Two empty blocks, and what fills a record, as tar does."""
    file.write(b"\0" * (2 * BLOCK))
    file.write(b"\0" * (-file.tell() % tarfile.RECORDSIZE))


def places(descriptor: int) -> Iterator[Place]:
    """The ordinary files of a tar, in order; of their content nothing is read.

    Args:
        descriptor: of the file, open for reading.

    Raises:
        Damaged: a header is none, or the file ends too early.
    """
    size, position, long_name = os.fstat(descriptor).st_size, 0, None
    while True:
        block = os.pread(descriptor, BLOCK, position)
        if len(block) < BLOCK:
            raise Damaged(f" ends at byte {size:,} without the end mark of a tar: it was cut short")
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Damaged(f": no header of a tar at byte {position:,} ({error})") from None
        content, length = position + BLOCK, header.size
        if length < 0 or content + length > size:
            raise Damaged(f": the member at byte {position:,} ends beyond the file's {size:,} bytes: it was cut short")
        position = content + -(-length // BLOCK) * BLOCK
        if header.type in (_LONG_NAME, _PAX):
            if length > _MAX_NAME:
                raise Damaged(f": the name at byte {content:,} has {length:,} bytes")
            text = os.pread(descriptor, length, content)
            long_name = text.rstrip(b"\0") if header.type == _LONG_NAME else _pax_name(text, content) or long_name
            continue
        if header.type == _SPARSE:
            raise Damaged(f": the member at byte {content - BLOCK:,} is sparse, which is not read")
        if header.type in (b"0", b"\0", b"7"):
            name = header.name if long_name is None else long_name.decode("utf-8", "surrogateescape")
            yield Place(name, content, length)
        long_name = None


def _pax_name(records: bytes, offset: int) -> bytes | None:
    """The `path` of `LENGTH KEY=VALUE` records."""
    name, position = None, 0
    while position < len(records):
        length, space, _ = records[position : position + 20].partition(b" ")
        if not space or not length.isdigit() or int(length) <= len(length):
            raise Damaged(f": the extended header at byte {offset:,} is none")
        key, _, value = records[position + len(length) + 1 : position + int(length)].rstrip(b"\n").partition(b"=")
        if key in (b"size", b"GNU.sparse.major"):
            raise Damaged(f": the extended header at byte {offset:,} gives another size, which is not read")
        name = value if key == b"path" else name
        position += int(length)
    return name
