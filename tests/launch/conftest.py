"""Fixtures of the launch room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.handed import Commands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Stand-ins for SLURM's commands; each refuses until a test says what it answers."""
    return Commands(tmp_path / "commands", monkeypatch)
