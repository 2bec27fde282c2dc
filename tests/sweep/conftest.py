"""Where a study may be kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from tests.postgres import Server


@pytest.fixture
def closing() -> Iterator[None]:
    """Studies leave their connections to the end of the process; here they end with the test."""
    connections: list[Any] = []

    def note(connection: Any, record: Any) -> None:
        connections.append(connection)

    event.listen(Pool, "connect", note)
    yield
    event.remove(Pool, "connect", note)
    for connection in connections:
        connection.close()


@pytest.fixture
def postgres_url(monkeypatch: pytest.MonkeyPatch, closing: None) -> Iterator[str]:
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
def storage(request: pytest.FixtureRequest, tmp_path: Path, closing: None) -> str | None:
    """A sweep's `storage`, of each kind."""
    match request.param:
        case "journal":
            return None
        case "sqlite":
            return f"sqlite:///{tmp_path}/study.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
