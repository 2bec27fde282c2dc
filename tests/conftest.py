"""What every test may lean on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

os.environ.setdefault("TCLX_RUNS", "/nonexistent/tests-name-their-own-runs-folder")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded official numbers and real pictures beside the project."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project: the official numbers are not at hand")
    return folder
