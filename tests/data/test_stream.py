"""Promises of the stream of training batches under SIGKILL: what follows is what would have followed, for any processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.data.packing import on_shards, packed, photographs, reading

NUM_MICRO_STEPS = 40
BATCH = 6
NUM_WORKERS = 8


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same 24 photographs as files, as shards, and both in a mixture with scenes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    files = reading(folder / "images", photographs(folder / "images", 24), num_workers=NUM_WORKERS)
    shards = on_shards(files, packed(files, folder / "shards").folder)
    trees = {"files": files.model_dump(mode="json"), "shards": shards.model_dump(mode="json")}
    trees["mixture"] = json.loads(json.dumps(trees["shards"]))
    sources = {"shards": {"share": 2, "data": trees["shards"]["data"]["train"]}}
    sources["files"] = {"share": 1, "data": trees["files"]["data"]["train"]}
    trees["mixture"]["data"]["train"] = {"source": "mixture", "rows_per_epoch": 48, "sources": sources}
    return trees


def start(path: Path, *numbers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.data.stream_worker", str(path), *map(str, numbers)]
    few_processors = {**os.environ, "PYTHONWARNINGS": "ignore"}  # torch finds eight workers too many for them
    return subprocess.Popen(command, cwd=PROJECT, env=few_processors, stdout=subprocess.PIPE, text=True)


def whole(*processes: subprocess.Popen[str]) -> list[list[list[str]]]:
    """What each printed, line by line, after it ended well."""
    printed = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [[line.split() for line in one] for one in printed]


def killed(path: Path, *, num_kills: int, seed: int) -> list[list[str]]:
    """What is learned from where the process is killed after a random number of batches, again and again."""
    draw, found = random.Random(seed), list[list[str]]()
    for _ in range(num_kills):
        until = len(found) + draw.randint(0, 2 * NUM_MICRO_STEPS // num_kills - 1)
        with start(path, 0, 1, len(found), NUM_MICRO_STEPS) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if len(found) == until:
                    break
                found.append(line.split())
            process.kill()
    (rest,) = whole(start(path, 0, 1, len(found), max(NUM_MICRO_STEPS - len(found), 0)))
    return [*found, *rest][:NUM_MICRO_STEPS]


def undisturbed(path: Path) -> list[list[str]]:
    (found,) = whole(start(path, 0, 1, 0, NUM_MICRO_STEPS))
    assert len(found) == NUM_MICRO_STEPS
    return found


@pytest.mark.parametrize(("kind", "num_kills"), [("shards", 3), ("mixture", 2)])
def test_after_kills_the_stream_is_the_undisturbed_one(
    kind: str, num_kills: int, specs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(specs[kind]))
    assert killed(path, num_kills=num_kills, seed=1) == undisturbed(path)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["files", "shards", "mixture"])
def test_twenty_kills_with_eight_workers(kind: str, specs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(specs[kind]))
    assert killed(path, num_kills=20, seed=7) == undisturbed(path)
    print(f"{kind}: 20 kills, {NUM_WORKERS} workers, {NUM_MICRO_STEPS} micro-steps: the undisturbed sequence")


def test_files_and_shards_give_the_same_stream(specs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    streams = []
    for kind in ("files", "shards"):
        (tmp_path / kind).write_text(json.dumps(specs[kind]))
        streams.append(undisturbed(tmp_path / kind))
    assert streams[0] == streams[1]


@pytest.mark.parametrize("kind", ["shards", "mixture"])
def test_four_processes_go_on_where_two_were_killed(kind: str, specs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """The global batch stays: 2 x 6 rows, then 4 x 3."""
    paths = {}
    for world_size in (2, 4):
        tree = json.loads(json.dumps(specs[kind]))
        tree["data"]["num_workers"] = 2
        tree["training"]["batch_size_per_gpu"] = 2 * BATCH // world_size
        paths[world_size] = tmp_path / f"{world_size}.json"
        paths[world_size].write_text(json.dumps(tree))

    def rows(world_size: int, *, first: int, count: int) -> list[list[str]]:
        """Of every global batch, in its order."""
        parts = whole(*(start(paths[world_size], rank, world_size, first, count) for rank in range(world_size)))
        return [[row for part in batch for row in part[1:-1]] for batch in zip(*parts, strict=True)]

    assert rows(2, first=0, count=7) + rows(4, first=7, count=9) == rows(2, first=0, count=16)
