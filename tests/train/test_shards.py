"""The same spec on files and on what was packed of them trains to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tclx.data.scenes import write_scenes
from tclx.data.shards.packing import PackSettings, pack
from tests.data.packing import few_a_shard
from tests.train.toy import NUM_SCENES, Outcome, kill, outcome, prepare, run, start, toy_spec, wait_until


def on_files(folder: Path) -> dict[str, Any]:
    """Every split of the toy spec as files."""
    data, files = toy_spec().data, {}
    for split, section in (("train", data.train), ("val", data.val), ("test", data.test)):
        path = write_scenes(folder, section)  # type: ignore[arg-type]
        files[f"data.{split}"] = {"source": "files", "form": "pretrain", "files": [str(path)], "image_root": str(folder)}
    return files


def what_was_learned(found: Outcome) -> tuple[Any, ...]:
    """Without the run's id, which names the data's paths."""
    weights = {name: digest for name, digest in found.checksums.items() if name.endswith(".safetensors")}
    assert len(weights) == 2
    return weights, found.rows, found.best.get("value"), found.evaluation["metrics"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Any]:
    return on_files(folder)


@pytest.fixture(scope="module")
def shards(folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    spec = toy_spec(**files)
    with few_a_shard():
        for split in ("train", "val", "test"):
            found = pack(spec, split, folder / split, settings=PackSettings(shard_mib=4))  # type: ignore[arg-type]
            assert found.num_shards > 2 or split != "train"
    return {
        f"data.{split}": {"source": "shards", "folder": str(folder / split), "form": "pretrain"}
        for split in ("train", "val", "test")
    }


@pytest.fixture(scope="module")
def learned(folder: Path, files: dict[str, Any]) -> tuple[Any, ...]:
    return what_was_learned(outcome(run(prepare(folder / "files-run", toy_spec(**files)))))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_on_shards_gives_the_bits_of_training_on_files(
    tmp_path: Path, shards: dict[str, Any], learned: tuple[Any, ...], num_workers: int
) -> None:
    spec = toy_spec(**shards, **{"data.num_workers": num_workers})
    assert what_was_learned(outcome(run(prepare(tmp_path / "run", spec)))) == learned
    assert spec.training.batch_size_per_gpu * 8 == NUM_SCENES


def test_a_run_on_shards_that_is_killed_goes_on_to_the_same_bits(
    tmp_path: Path, shards: dict[str, Any], learned: tuple[Any, ...]
) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**shards, **{"data.num_workers": 2}))
    processes = start(folder)
    wait_until(lambda: folder.metrics.exists() and '{"step": 6,' in folder.metrics.read_text(), processes)
    kill(processes)
    assert what_was_learned(outcome(run(folder))) == learned
