"""Where did this run run? Code, packages and machine, so that a number can be traced and a resumed run compared."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tclx import distributed
from tclx.runs import RunFolder

_PACKAGES = ("tclx", "torch", "transformers", "timm", "tokenizers", "numpy", "opencv-python-headless", "simplejpeg", "pillow")
_LONGEST_DIFF = 200_000
"""Characters of a dirty tree's diff that are kept; its hash covers all of it."""

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
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "world_size": distributed.world_size(),
        **_code(),
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What differs among the facts that decide the last bits: name -> [before, now]."""
    return {name: [before.get(name), now.get(name)] for name in _DECIDES_BITS if before.get(name) != now.get(name)}


def record(folder: RunFolder, device: torch.device) -> dict[str, list[Any]]:
    """Write environment.json; returns what changed since the process that trained this run before, if any did.

    A change is also an `environment_changed` event.
    """
    before = folder.read_json(folder.environment) if folder.environment.exists() else None
    now = describe(device)
    folder.write_json(folder.environment, now)
    changed = changes(before, now) if before else {}
    if changed:
        folder.add_event("environment_changed", changed=changed)
    return changed


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code() -> dict[str, Any]:
    """The commit tclx is at and what is changed beside it; all None where it is installed without its repository."""
    commit = _git("rev-parse", "HEAD")
    diff = _git("diff", "HEAD", "--", ".") if commit else None
    return {
        "commit": commit.strip() if commit else None,
        "diff": diff[:_LONGEST_DIFF] if diff else None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    # Without this a tclx in somebody's virtual environment would report the commit of the project that the environment lies in.
    if not (package.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=package, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a tree too slow to ask: the run matters more
        return None
    return done.stdout if done.returncode == 0 else None
