"""Where did this run run? Code, packages and machine, so that a number can be traced and a resumed run compared."""

from __future__ import annotations

import os
import platform
import sys
import time
from typing import Any

import torch

from tclx import distributed
from tclx.files import Unreadable
from tclx.provenance import code_folder, describe_code, package_versions, packages_at_submission
from tclx.runs import RunFolder

# What a bit-exact continuation needs to be equal: another order of additions or another kernel gives other last bits.
_DECIDES_BITS = ("python", "packages", "cpu", "cpu_capability", "gpu", "world_size", "num_threads", "commit", "diff_sha256")


def describe(device: torch.device) -> dict[str, Any]:
    """This process's code, packages and machine, as JSON."""
    return {
        "started_at": time.time(),
        "argv": sys.argv,
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "code": str(code_folder()),
        "cpu": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": _gpu_name(device),
        "world_size": distributed.world_size(),
        **describe_code(),
    }


def _gpu_name(device: torch.device) -> str | None:
    if device.type == "mps":
        return "Apple GPU (mps)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What differs among the facts that decide the last bits: name -> [before, now]."""
    return {name: [before.get(name), now.get(name)] for name in _DECIDES_BITS if before.get(name) != now.get(name)}


def record(folder: RunFolder, device: torch.device) -> dict[str, list[Any]]:
    """Write environment.json; returns what changed since the process that trained this run before, if any did.

    A change is also an `environment_changed` event.
    """
    try:
        before = folder.read_json(folder.environment) if folder.environment.exists() else None
    except Unreadable as error:
        before = None
        folder.add_event("environment_unreadable", message=str(error))
    now = describe(device)
    folder.write_json(folder.environment, now)
    changed = changes(before, now) if before else _since_submission(now)
    if changed:
        folder.add_event("environment_changed", changed=changed)
    return changed


def _since_submission(now: dict[str, Any]) -> dict[str, list[Any]]:
    """Packages that are others than where the run was submitted: tclx itself was copied, they were not."""
    then = packages_at_submission()
    return {"packages": [then, now["packages"]]} if then and then != now["packages"] else {}
