"""What every test may lean on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool
from xdist.scheduler import LoadScopeScheduling

from tclx.train.stopping import REQUESTS
from tests.postgres import Server
from tests.track.wandb_server import WandbServer

PROJECT = Path(__file__).resolve().parents[1]

CLUSTER = "tests/slurm/"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `just check` has it: tests share the cores, and some fork
os.environ.setdefault("TCLX_RUNS", "/nonexistent/tests-name-their-own-runs-folder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the cluster waits for long, so it is first."""
    items.sort(key=lambda item: _shared_by(item.nodeid) == CLUSTER, reverse=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where several processes test, a file stays in one of them, and all that needs the one cluster does."""
    config.option.loadscopereorder = False

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared_by(nodeid)

    return Scheduling(config, log)


def _shared_by(nodeid: str) -> str:
    """What a test shares with its neighbours: its file, or the cluster."""
    return CLUSTER if nodeid.startswith(CLUSTER) else nodeid.partition("::")[0]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What trains in this process takes the requests to stop for itself, for good."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded official numbers and real images beside the project."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project: the official numbers are not at hand")
    return folder


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A torch.device: the CPU, and a GPU where there is one, with its products in plain fp32."""
    import torch  # many a test needs none

    if request.param == "cpu":
        yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("no GPU: `just gpu` runs this where there is one")
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda")
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def numerics() -> Iterator[None]:
    """Puts torch's process-wide switches back; what trained in this process before has left no deterministic algorithms on."""
    import torch

    deterministic, products = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    convolutions, filling = torch.backends.cudnn.allow_tf32, torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.utils.deterministic.fill_uninitialized_memory = filling


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """What an unmodified W&B client takes for its own, on loopback; the client's environment is this one's."""
    with WandbServer() as server:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.unknown == []
