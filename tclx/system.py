"""What does this machine have? Cores, memory, file systems, asked through what works on Linux and on a Mac alike.

Every question to the operating system that not every one answers has its place here; imports nothing heavy.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How helper processes begin. Forked ones share what is loaded already; a Mac's own libraries do not survive a fork."""

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of `ru_maxrss`: Linux counts in KiB, a Mac in bytes."""

NETWORK_FILE_SYSTEMS = (
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs",
    "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "webdav", "wekafs",
)  # fmt: skip
"""As the system names them; one that ends with a dot is a beginning."""


def user_cache() -> Path:
    """Where this user's programs keep what they can make again, and tclx in there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tclx"


class Memory(NamedTuple):
    """Of the machine, in bytes."""

    total: int
    available: int


class Mount(NamedTuple):
    """What a folder lies on."""

    place: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_network(self) -> bool:
        """Whether other machines may see it, too."""
        return any(self.kind == name or (name.endswith(".") and self.kind.startswith(name)) for name in NETWORK_FILE_SYSTEMS)


UNKNOWN_MOUNT = Mount("/", "unknown", ())


def own_cores() -> set[int]:
    """The numbers of the cores that this process is bound to; all of them where the system binds nothing."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # a Mac binds nothing
        return set(range(os.cpu_count() or 1))


def num_cpus() -> int:
    """Cores that this process may use: those it is bound to where the system binds processes, else all."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(own_cores())


def memory() -> Memory:
    """What the machine has, and what programs can still get."""
    found = psutil.virtual_memory()
    return Memory(found.total, found.available)


def peak_memory_bytes() -> int:
    """The largest resident memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT


def mounts() -> list[Mount]:
    """Every file system that is mounted, in order; none where the system does not tell."""
    try:
        return [Mount(each.mountpoint, each.fstype, tuple(each.opts.split(","))) for each in psutil.disk_partitions(all=True)]
    except (OSError, psutil.Error):  # a container without /proc, for instance
        return []


def mount_of(folder: Path, mounted: list[Mount]) -> Mount:
    """The file system that a folder lies on.

    Args:
        folder: absolute, without links.
        mounted: as `mounts` gives them; a later one hides an earlier one at the same place.
    """
    best = UNKNOWN_MOUNT
    for mount in mounted:
        if folder.is_relative_to(mount.place) and len(mount.place) >= len(best.place):
            best = mount
    return best
