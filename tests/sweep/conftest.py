"""Where a study may be kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server


@pytest.fixture
def postgres_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database of a real PostgreSQL, whose password is in the environment; `just postgres-up` starts it."""
    server = Server()
    if not server.is_up():
        pytest.skip("the test PostgreSQL is not up: `just postgres-up` starts it (Debian)")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = server.make_database()
    yield url
    server.drop_database(url)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """A sweep's `storage`, of each kind."""
    match request.param:
        case "journal":
            return None
        case "sqlite":
            return f"sqlite:///{tmp_path}/study.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
