"""What earlier checks saw, so that a check goes on where it was interrupted, and looks only at images that are new or changed.

A file for each folder of images and each way of reading them, in the user's cache under `checked/`: records of 56 bytes, added
as images are looked at. A record counts only where its checksum fits, so that a file that was cut short, written by two at once
or damaged costs looking again, and nothing else. Images that cannot be used are not kept: they are looked at again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray

from tclx.data.checking.look import LOOK, Looks
from tclx.data.kinds import open_ordinary
from tclx.system import user_cache

if TYPE_CHECKING:
    from tclx.data.images import Decoder

_SCHEMA = 1
_RECORD = np.dtype([("stamp", "<u8", 2), ("look", LOOK), ("crc", "<u4"), ("", "<u4")])
_CHECKED_BYTES = _RECORD["stamp"].itemsize + LOOK.itemsize
_READERS = (cv2.__version__, PIL.__version__, version("simplejpeg"))
"""With another version of one of these an image may be another."""

Stamps = NDArray[np.uint64]
"""[N, 2] digests of stamps; 0 where there is none."""


class Known(NamedTuple):
    """Looks by the stamp that their image had, sorted by it."""

    stamps: Stamps
    looks: Looks

    def find(self, stamps: Stamps) -> tuple[NDArray[np.bool_], Looks]:
        """Of each stamp whether it is known, and its look where it is."""
        looks = np.zeros(len(stamps), LOOK)
        if not len(self.stamps):
            return np.zeros(len(stamps), bool), looks
        places = np.searchsorted(self.stamps[:, 0], stamps[:, 0])
        places = np.minimum(places, len(self.stamps) - 1)
        known = (self.stamps[places] == stamps).all(axis=1)
        looks[known] = self.looks[places[known]]
        return known, looks


class Kept:
    """The file of one folder of images.

    Args:
        place: the folder.
        decoder, max_pixels: how its images are read.
    """

    def __init__(self, place: str, *, decoder: Decoder, max_pixels: int) -> None:
        how = json.dumps([_SCHEMA, place, decoder, max_pixels, _READERS])
        self.path = user_cache() / "checked" / f"{hashlib.sha256(how.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.looks"
        self._aligned = False

    def read(self) -> Known:
        """What is kept; nothing where the file is missing, cannot be read or is damaged throughout."""
        content = b""
        with suppress(OSError), open_ordinary(self.path) as file:
            content = file.read()
        view = memoryview(content)
        starts = range(0, len(content) - _RECORD.itemsize + 1, _RECORD.itemsize)
        records = np.frombuffer(content, _RECORD, count=len(starts))
        sums = np.fromiter((zlib.crc32(view[start : start + _CHECKED_BYTES]) for start in starts), np.uint32, len(starts))
        records = records[(sums == records["crc"]) & (records["look"]["width"] > 0)]
        stamps: Stamps = records["stamp"]
        first = np.unique(stamps[:, 0], return_index=True)[1]
        return Known(np.ascontiguousarray(stamps[first]), records["look"][first])

    def add(self, stamps: Stamps, looks: Looks) -> None:
        """Keep more; where the cache cannot be written, less is kept."""
        usable = (looks["width"] > 0) & stamps.any(axis=1)
        records = np.zeros(int(usable.sum()), _RECORD)
        if not len(records):
            return
        records["stamp"], records["look"] = stamps[usable], looks[usable]
        view = memoryview(records.tobytes())
        records["crc"] = [zlib.crc32(view[start : start + _CHECKED_BYTES]) for start in range(0, len(view), _RECORD.itemsize)]
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if not self._aligned:  # what a killed process had begun to write
                    file.write(b"\0" * (-file.tell() % _RECORD.itemsize))
                    self._aligned = True
                file.write(records.tobytes())


def stamps_of(stamps: Sequence[bytes | None]) -> Stamps:
    """Digests of stamps."""
    digests = [bytes(16) if stamp is None else hashlib.blake2b(stamp, digest_size=16).digest() for stamp in stamps]
    found: Any = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    return found  # type: ignore[no-any-return]
