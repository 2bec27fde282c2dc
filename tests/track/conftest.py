"""A server that an unmodified W&B client takes for its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.track.wandb_server import WandbServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.unknown == []
