"""What stands in a `.wandb` file? wandb 0.31 ships no reader of its own format any more.

The file is a LevelDB log: a header of seven bytes, then blocks of 32 KiB with records of CRC-32, length, type and content; a
record that does not fit into a block is continued in the next. A content is one protobuf `Record`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32_768
_HEADER = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_history(path: Path) -> list[dict[str, Any]]:
    """The logged rows in the file's order, without the client's own columns.

    Raises:
        ValueError: the file is torn or damaged.
    """
    from wandb.proto import wandb_internal_pb2

    rows = []
    for content in _contents(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            values = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in values.items() if not name.startswith("_")})
    return rows


def _contents(data: bytes) -> Iterator[bytes]:
    if data[:4] != b":W&B":
        raise ValueError("not a .wandb file")
    place, parts = 7, b""
    while place < len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < _HEADER.size:  # too small for a record: filled with zeros
            place += left
            continue
        checksum, length, kind = _HEADER.unpack_from(data, place)
        content = data[place + _HEADER.size : place + _HEADER.size + length]
        if len(content) != length or zlib.crc32(bytes([kind]) + content) != checksum:
            raise ValueError(f"a damaged record at byte {place}")
        place += _HEADER.size + length
        parts = content if kind in (_WHOLE, _FIRST) else parts + content
        if kind in (_WHOLE, _LAST):
            yield parts
