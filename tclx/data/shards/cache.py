"""Shards kept on this machine while they are read: fetched whole when first asked for, the ones unused longest go first.

Processes of a machine share a cache; each shard is fetched by one of them, the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tclx.data.kinds import open_ordinary
from tclx.data.shards.remote import PART_BYTES, Unreachable, read_part
from tclx.errors import MachineError
from tclx.files import holding, machine_error, replacing
from tclx.spec.stores import scheme_of

STILL_SECONDS = 300.0
"""Another process fetches a shard and has got nothing more of it for so long: it will not."""
POLL_SECONDS = 0.1
_SHARED = ("SLURM_TMPDIR", "TMPDIR")
"""Where a cluster says a node's own disk is, in the order of preference."""


def own_disk() -> Path:
    """A folder for the cache on the machine that this process runs on."""
    place = next((os.environ[name] for name in _SHARED if os.environ.get(name)), tempfile.gettempdir())
    return Path(place) / f"tclx-shards-{os.getuid()}"


class ShardCache:
    """Copies of shards in a folder of this machine.

    Args:
        folder: made if needed.
        max_bytes: of all copies; one shard is kept even where it is larger.
        sizes: of every shard that will be asked for, in bytes.
    """

    def __init__(self, folder: Path, *, max_bytes: int, sizes: Mapping[Path | str, int]) -> None:
        self._folder, self._max_bytes, self._sizes = folder, max_bytes, sizes

    def copy_of(self, shard: Path | str) -> Path:
        """The copy of a shard, fetched if it is not there.

        Raises:
            MachineError: it cannot be fetched, or the cache cannot be written.
        """
        copy = self._folder / f"{hashlib.sha256(f'{shard} {self._sizes[shard]}'.encode()).hexdigest()[:32]}.tar"
        try:
            os.utime(copy)  # it was used: others go before it
            return copy
        except FileNotFoundError:
            pass
        except OSError as error:
            raise machine_error(error, f"could not read {copy}") from error
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for mine in self._turns(copy):
                if mine and not copy.exists():
                    self._make_room(self._sizes[shard])
                    self._fetch(shard, copy)
        except OSError as error:
            raise machine_error(error, f"could not keep shards in {self._folder}") from error
        return copy

    def _turns(self, copy: Path) -> Iterator[bool]:
        """True once this process may fetch; False while another one does. Ends when the copy is there.

        Raises:
            MachineError: the other one has stopped.
        """
        seen, since = -1, time.monotonic()
        while not copy.exists():
            with holding(copy.with_suffix(".lock")) as mine:
                yield mine
            if mine:
                continue
            size = sum(part.stat().st_size for part in self._folder.glob(f".{copy.name}.*.tmp"))
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > STILL_SECONDS:
                raise MachineError(f"another process fetches {copy} and has got nothing of it for {STILL_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _make_room(self, size: int) -> None:
        kept = []
        for path in self._folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process made room, too
                status = path.stat()
                kept.append((status.st_mtime_ns, status.st_size, path))
        kept.sort()
        total = sum(each for _, each, _ in kept)
        for _, each, path in kept:
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= each

    def _fetch(self, shard: Path | str, copy: Path) -> None:
        size = self._sizes[shard]
        for left in self._folder.glob(f".{copy.name}.*.tmp"):  # of a process that was killed: the lock is free
            left.unlink(missing_ok=True)
        with replacing(copy) as file:
            for offset in range(0, size, PART_BYTES):
                try:
                    part = _part(shard, offset, min(PART_BYTES, size - offset))
                except (Unreachable, OSError) as error:
                    raise MachineError(f"{shard}: {error}") from error
                if len(part) < min(PART_BYTES, size - offset):
                    found = f"{offset + len(part):,} of the {size:,} bytes that the index says"
                    raise MachineError(f"{shard} has {found}: it was cut short")
                file.write(part)


def _part(shard: Path | str, offset: int, length: int) -> bytes:
    if scheme_of(shard) is not None:
        return read_part(str(shard), offset, length)
    with open_ordinary(Path(shard)) as file:
        return os.pread(file.fileno(), length, offset)
