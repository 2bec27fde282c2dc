"""Where it runs."""

from __future__ import annotations

from typing import Literal

from tclx.spec.base import Count, Section


class LocalLaunch(Section):
    """Processes on this machine."""

    backend: Literal["local"] = "local"
    """This machine."""
    num_processes: Count = 1
    """Training processes, one per GPU (or several on the CPU); more than one trains through torchrun with DDP."""
