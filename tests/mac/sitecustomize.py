"""Start-up file of a Python that is to find here what it would find on a Mac: no affinity, no /proc, no forked helpers.

Put its folder on PYTHONPATH; every process that is started from there takes it along. psutil goes on asking Linux, as it would
ask macOS there.
"""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import sys
import sysconfig
from multiprocessing import context
from typing import Any

import psutil  # noqa: F401  before the name of the system changes: it chooses by that

_ABSENT = ("sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fallocate", "posix_fadvise", "pidfd_open")
_LINUX_ONLY = ("/proc", "/dev/shm", "/sys")


def _asked_by_psutil() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("psutil"):
            return True
        frame = frame.f_back
    return False


def _refusing(function: Any) -> Any:
    def refused(path: Any, *arguments: Any, **options: Any) -> Any:
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if isinstance(text, str) and text.startswith(_LINUX_ONLY) and not _asked_by_psutil():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
        return function(path, *arguments, **options)

    return refused


def _no_fork(*arguments: Any) -> None:
    raise RuntimeError("a forked helper process: on a Mac it would die in Apple's libraries")


for _name in _ABSENT:
    if hasattr(os, _name):
        delattr(os, _name)
if hasattr(os, "process_cpu_count"):
    os.process_cpu_count = os.cpu_count
for _module, _name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "listdir"), (os, "scandir")):
    setattr(_module, _name, _refusing(getattr(_module, _name)))
multiprocessing.set_start_method("spawn", force=True)
sysconfig.get_config_vars()  # read from a file that is named after the system, and kept
context.ForkProcess._Popen = staticmethod(_no_fork)
sys.platform, _real = "darwin", sys.platform
import tclx.system  # noqa: E402, F401  what differs between systems is decided here alone

sys.platform = _real
