"""One image within a shard, and the open shards that it is read from."""

from __future__ import annotations

import os
import resource
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tclx.data.images import BadImage, check_num_bytes
from tclx.data.kinds import open_ordinary
from tclx.data.shards.cache import ShardCache
from tclx.data.shards.remote import Unreachable, read_part
from tclx.data.sources.source import stamp_of
from tclx.spec.stores import scheme_of


@dataclass(frozen=True, slots=True)
class Member:
    """An image's place; a `StoredImage`."""

    shard: Path | str
    """A string where it lies in a store."""
    offset: int
    length: int
    crc32: int | None
    """Of its bytes; None where it is not known."""
    name: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read_bytes(self, *, max_pixels: int) -> bytes:
        shards = OpenShards()
        try:
            return shards.read(self, max_pixels=max_pixels)
        finally:
            shards.close()

    def stamp(self) -> bytes | None:
        shard = stamp_of(Path(self.shard)) if scheme_of(self.shard) is None else None
        return None if shard is None else shard + f"\0{self.offset}\0{self.length}".encode()


class OpenShards:
    """Shards that stay open once they were read from, as many as the process may have; the one unused longest goes first.

    Reading names its place, so that forked processes may use what was opened before; a copy that is sent to another process
    begins with none.

    Args:
        cache: that shards are read from; without one, those in a store are asked for each image.
    """

    def __init__(self, cache: ShardCache | None = None) -> None:
        self._descriptors: OrderedDict[Path | str, int] = OrderedDict()
        self._cache = cache
        self.num_opened = 0
        # The other half is for the loader's tensors, which travel as open files, and for everything else.
        self._most = max(8, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536) // 2)
        if cache is not None:  # a copy that had to go takes room as long as somebody has it open
            self._most = 1

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, member: Member, *, max_pixels: int) -> bytes:
        """An image as it was stored; raises as `StoredImage.read_bytes`.

        Raises:
            MachineError: the cache cannot fetch its shard.
        """
        check_num_bytes(str(member), member.length, max_pixels=max_pixels)
        try:
            if self._cache is None and scheme_of(member.shard) is not None:
                content = read_part(str(member.shard), member.offset, member.length)
            else:
                content = _read_at(self._descriptor(member.shard), member.offset, member.length)
        except FileNotFoundError:
            raise BadImage(str(member), "the shard does not exist", "missing") from None
        except OSError as error:
            raise BadImage(str(member), f"cannot be read: {error.strerror}") from error
        except Unreachable as error:
            raise BadImage(str(member), str(error)) from error
        if len(content) < member.length:
            raise BadImage(str(member), "the shard ends before it: it was cut short")
        if member.crc32 is not None and zlib.crc32(content) != member.crc32:
            raise BadImage(str(member), "is damaged: its checksum is another than when it was packed")
        return content

    def _descriptor(self, shard: Path | str) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        path = Path(shard) if self._cache is None else self._cache.copy_of(shard)
        if len(self._descriptors) >= self._most:
            os.close(self._descriptors.popitem(last=False)[1])
        with open_ordinary(path) as file:
            self._descriptors[shard] = os.dup(file.fileno())
        self.num_opened += 1
        return self._descriptors[shard]


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    content = os.pread(descriptor, length, offset)
    while len(content) < length:  # one call may give less than there is
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content
