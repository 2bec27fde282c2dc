"""A file of named arrays: written once, mapped when it is read, so that a million entries cost neither time nor memory.

The layout: a line that says what it is; the length and CRC-32 of the header, 8 bytes little-endian each; the header in JSON;
then every array, from a multiple of 64 bytes on. The same content gives the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tclx.data.kinds import open_ordinary
from tclx.files import Unreadable, parse_json, replacing

_MAGIC = b"tclx arrays 1\n"
_PREFIX = len(_MAGIC) + 16
_ALIGNED = 64
_MAX_HEADER = 64 << 20
"""100,000 shards take 10 MB."""


class Texts(Sequence[str]):
    """Strings in one UTF-8 buffer that may be a file; indexing decodes one.

    Args:
        ends: [N] where each ends.
        buffer: uint8.
    """

    def __init__(self, ends: NDArray[np.int64], buffer: NDArray[np.uint8]) -> None:
        self.ends, self.buffer = ends, buffer

    @classmethod
    def of(cls, strings: Iterable[str]) -> Texts:
        """Strings packed."""
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(encoded), np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return self.buffer[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")


class ArrayFile(NamedTuple):
    """What such a file holds."""

    about: dict[str, Any]
    """What the writer says of it."""
    arrays: dict[str, NDArray[Any]]
    """Mapped, not read."""


def write_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file whole or not at all.

    Raises:
        MachineError: it cannot be written.
    """
    table: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        start = _aligned(end)
        table[name] = {"dtype": array.dtype.str, "start": start, "length": len(array), "crc32": _crc(array)}
        end = start + array.nbytes
    header = json.dumps({"about": about, "arrays": table, "num_bytes": end}, sort_keys=True).encode()
    with replacing(path) as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(8, "little") + header)
        base = _aligned(file.tell())
        for name, array in arrays.items():
            file.write(b"\0" * (base + table[name]["start"] - file.tell()))
            file.write(np.ascontiguousarray(array).data)
        file.write(b"\0" * (base - file.tell()))


def read_arrays(path: Path) -> ArrayFile:
    """Map a file, after its checksums have been compared.

    Raises:
        Unreadable: it is missing, of another kind, cut short or damaged.
    """
    try:
        with open_ordinary(path) as file:
            prefix = file.read(_PREFIX)
            length = int.from_bytes(prefix[-16:-8], "little")
            if not prefix.startswith(_MAGIC) or len(prefix) < _PREFIX or length > _MAX_HEADER:
                raise Unreadable(path, "it is no index of shards, or one of another version")
            header = file.read(length)
            if zlib.crc32(header) != int.from_bytes(prefix[-8:], "little"):
                raise Unreadable(path, "it is damaged (its header has another checksum)")
            tree = parse_json(header)
            base, num_bytes = _aligned(_PREFIX + length), file.seek(0, 2)
            if num_bytes != base + tree["num_bytes"]:
                raise Unreadable(path, f"it has {num_bytes:,} bytes of {base + tree['num_bytes']:,}: it was cut short")
            content = np.asarray(np.memmap(file, np.uint8, mode="r"))
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from error
    arrays = {}
    for name, one in tree["arrays"].items():
        dtype, start = np.dtype(one["dtype"]), base + one["start"]
        array = content[start : start + one["length"] * dtype.itemsize].view(dtype)
        if _crc(array) != one["crc32"]:
            raise Unreadable(path, f"it is damaged (`{name}` has another checksum)")
        arrays[name] = array
    return ArrayFile(tree["about"], arrays)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNED) * _ALIGNED


def _crc(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data) if len(array) else 0
