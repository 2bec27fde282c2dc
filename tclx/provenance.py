"""Which code and which packages make a run? Read without importing torch, at submission and where the run trains.

A snapshot carries its origin in `code.json`: the copy itself has no repository any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tclx

PACKAGES = ("tclx", "torch", "transformers", "timm", "tokenizers", "numpy", "opencv-python-headless", "simplejpeg", "pillow")
CODE_FILE = "code.json"
"""Beside the package in a snapshot: what `describe_code` said of the original."""

_LONGEST_DIFF = 200_000
"""Characters of a dirty tree's diff that are kept; its hash covers all of it."""


def code_folder() -> Path:
    """The folder that the running tclx is imported from."""
    return Path(tclx.__file__).resolve().parents[1]


def package_versions() -> dict[str, str | None]:
    """Versions as installed, None where one is not."""
    return {name: _version(name) for name in PACKAGES}


def describe_code() -> dict[str, Any]:
    """The commit tclx is at and what is changed beside it; all None where it is installed without its repository."""
    snapshot = code_folder() / CODE_FILE
    if snapshot.is_file():
        origin = json.loads(snapshot.read_text(encoding="utf-8"))
        return {name: origin[name] for name in ("commit", "diff", "diff_sha256")}
    commit = _git("rev-parse", "HEAD")
    diff = _git("diff", "HEAD", "--", ".") if commit else None
    return {
        "commit": commit.strip() if commit else None,
        "diff": diff[:_LONGEST_DIFF] if diff else None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def packages_at_submission() -> dict[str, str | None]:
    """The versions that a snapshot was submitted with; empty for code that is no snapshot."""
    snapshot = code_folder() / CODE_FILE
    return dict(json.loads(snapshot.read_text(encoding="utf-8"))["packages"]) if snapshot.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    # Without this a tclx in somebody's virtual environment would report the commit of the project that the environment lies in.
    if not (code_folder() / ".git").exists():
        return None
    try:
        # A hook of another repository's sets GIT_DIR, and git would speak of that one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            ["git", *arguments],
            cwd=code_folder(), env=environment, capture_output=True, text=True, errors="replace", timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):  # no git, or a tree too slow to ask: the run matters more
        return None
    return done.stdout if done.returncode == 0 else None
