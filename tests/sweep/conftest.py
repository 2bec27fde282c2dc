"""Where a study may be kept."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, closing: None) -> str | None:
    """A sweep's `storage`, of each kind."""
    match request.param:
        case "journal":
            return None
        case "sqlite":
            return f"sqlite:///{tmp_path}/study.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
