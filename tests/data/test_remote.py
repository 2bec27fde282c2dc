"""Promises of shards that lie elsewhere: the same batches, each shard fetched once, failures said before training."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tclx.data.dataset import train_batches
from tclx.data.facts import check_images, examine, refuse_bad_images
from tclx.data.shards import cache as cache_module
from tclx.data.shards import remote
from tclx.data.shards.cache import ShardCache, own_disk
from tclx.data.shards.index import INDEX
from tclx.data.tokenizer import train_wordpiece
from tclx.errors import InputError, MachineError
from tclx.plan import run_id
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import load_experiments
from tclx.spec.rules import missing_packages
from tests.data.packing import on_shards, packed, photographs, reading
from tests.data.small import data_section, equal
from tests.data.store import Store, serving

TOKENIZER = train_wordpiece(["photograph no the second again"], vocab_size=64)


@pytest.fixture
def shards(tmp_path: Path) -> ExperimentSpec:
    """24 photographs in 8 shards of a folder."""
    (tmp_path / "images").mkdir()
    files = reading(tmp_path / "images", photographs(tmp_path / "images", 24), num_workers=0)
    return on_shards(files, packed(files, tmp_path / "bucket" / "train").folder)


@pytest.fixture
def store(shards: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.01)
    with serving(tmp_path) as store:
        yield store


def moved(spec: ExperimentSpec, folder: str, **changes: Any) -> ExperimentSpec:
    """The same experiment on shards elsewhere, kept in a cache of the test's own."""
    tree = spec.model_dump(mode="json")
    tree["data"]["train"] |= {"folder": folder, **changes}
    return ExperimentSpec.model_validate_json(json.dumps(tree))


def batches(spec: ExperimentSpec, *, number: int = 9, num_workers: int = 0) -> list[Any]:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"num_workers": num_workers})})
    stream = train_batches(spec, tokenizer=TOKENIZER)
    found = list(islice(stream, number))
    stream.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_folder_and_every_shard_is_fetched_once(
    num_workers: int, shards: ExperimentSpec, store: Store, tmp_path: Path
) -> None:
    there = moved(shards, f"{store.address}/bucket/train", cache={"folder": str(tmp_path / "kept")})
    for one, other in zip(batches(shards), batches(there, num_workers=num_workers), strict=True):
        assert equal(one, other)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "bucket" / "train").glob("*.tar")}
    assert {name: sent for name, sent in store.num_bytes.items() if name.endswith(".tar")} == sizes
    assert len(list((tmp_path / "kept").glob("*.tar"))) == len(sizes)


def test_a_slow_folder_is_kept_the_same_way(shards: ExperimentSpec, tmp_path: Path) -> None:
    folder = str(tmp_path / "bucket" / "train")
    near = moved(shards, folder, cache={"folder": str(tmp_path / "kept")})
    assert all(equal(one, other) for one, other in zip(batches(shards), batches(near), strict=True))
    assert len(list((tmp_path / "kept").glob("*.tar"))) == 8


def test_where_shards_are_kept_changes_no_run(shards: ExperimentSpec) -> None:
    near = moved(shards, shards.data.train.folder, cache={"max_gib": 3})  # type: ignore[union-attr]
    assert run_id(near, 6) == run_id(shards, 6)
    mixed = [
        shards.model_copy(update={"data": data_section(train={"source": "mixture", "sources": {"a": {"data": one}}})})
        for one in (spec.data.train.model_dump(mode="json") for spec in (shards, near))
    ]
    assert run_id(mixed[0], 6) == run_id(mixed[1], 6)


def test_s3_is_read_with_its_own_client(
    shards: ExperimentSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store.address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    there = moved(shards, "s3://bucket/train", cache={"folder": str(tmp_path / "kept")})
    assert all(equal(one, other) for one, other in zip(batches(shards), batches(there), strict=True))
    assert any(name.endswith(".tar") for name in store.num_bytes)


def test_images_in_a_store_are_checked_one_by_one(shards: ExperimentSpec, store: Store, tmp_path: Path) -> None:
    there = moved(shards, f"{store.address}/bucket/train")
    shard = tmp_path / "bucket" / "train" / "train-000003.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    check = check_images(there.data, num_processes=1)
    assert check.num_images == 24
    (bad,) = check.bad
    assert bad.reason == "is damaged: its checksum is another than when it was packed"
    assert bad.path.startswith(f"{store.address}/bucket/train/train-000003.tar: ")


def test_images_in_a_store_are_not_fetched_before_training(shards: ExperimentSpec, store: Store) -> None:
    """Ten million requests would be; each is compared with its checksum when it is read."""
    there = moved(shards, f"{store.address}/bucket/train")
    assert refuse_bad_images(there.data).num_images == 0
    assert refuse_bad_images(shards.data).num_images == 24


def test_a_store_that_fails_now_and_then_is_asked_again(shards: ExperimentSpec, store: Store, tmp_path: Path) -> None:
    there = moved(shards, f"{store.address}/bucket/train", cache={"folder": str(tmp_path / "kept")})
    store.failing = remote.TRIES - 1
    assert equal(batches(there, number=1)[0], batches(shards, number=1)[0])


WRONG = {
    "no shards there": ("bucket/val", "/bucket/val/index.tclx: it does not exist"),
    "a shard is missing": ("bucket/train", "train-000002.tar: it does not exist"),
    "a shard was cut short": ("bucket/train", r"train-000004.tar has 100 bytes where the index says [\d,]+: it was cut short"),
    "the store is out of order": ("bucket/train", r"index.tclx: it cannot be read, at the 4th try: 503"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_before_training(wrong: str, shards: ExperimentSpec, store: Store, tmp_path: Path) -> None:
    folder, message = WRONG[wrong]
    if "missing" in wrong:
        (tmp_path / "bucket/train/train-000002.tar").unlink()
    if "short" in wrong:
        path = tmp_path / "bucket/train/train-000004.tar"
        path.write_bytes(path.read_bytes()[:100])
    if "order" in wrong:
        store.failing = 10**6
    with pytest.raises(InputError, match=message) as refused:
        examine(moved(shards, f"{store.address}/{folder}").data)
    assert str(refused.value).startswith("data.train.folder: ")


def test_a_server_without_parts_is_refused(shards: ExperimentSpec, store: Store, tmp_path: Path) -> None:
    examine(moved(shards, f"{store.address}/bucket/train").data)
    store.ranges = False
    there = moved(shards, f"{store.address}/bucket/train")
    check = check_images(there.data, num_processes=1)
    assert {bad.reason for bad in check.bad} == {
        "the server sends whole files where a part is asked for (no range requests): copy the shards here"
    }


def test_the_index_is_fetched_again_when_the_store_has_another(shards: ExperimentSpec, store: Store, tmp_path: Path) -> None:
    there = moved(shards, f"{store.address}/bucket/train")
    for _ in range(2):
        assert examine(there.data).facts.num_train_images == 24
    size = (tmp_path / "bucket/train" / INDEX).stat().st_size
    assert store.num_bytes[INDEX] == size
    (tmp_path / "fewer").mkdir()
    files = reading(tmp_path / "fewer", photographs(tmp_path / "fewer", 9))
    for path in packed(files, tmp_path / "others").folder.iterdir():
        path.replace(tmp_path / "bucket/train" / path.name)
    assert examine(there.data).facts.num_train_images == 9


# ---------------------------------------------------------------------------------------------------------------- the cache


def some_shards(folder: Path, number: int = 6, size: int = 1000) -> dict[Path | str, int]:
    folder.mkdir()
    paths = [folder / f"{n}.tar" for n in range(number)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * size)
    return dict.fromkeys(paths, size)


def test_the_room_is_kept_and_those_unused_longest_go(tmp_path: Path) -> None:
    sizes = some_shards(tmp_path / "far")
    cache = ShardCache(tmp_path / "near", max_bytes=3000, sizes=sizes)
    paths = list(sizes)
    for n, path in enumerate(paths[:3]):
        os.utime(cache.copy_of(path), (n, n))
    first = cache.copy_of(paths[0])  # used again: it is the newest now
    cache.copy_of(paths[3])
    assert {path.read_bytes()[0] for path in (tmp_path / "near").glob("*.tar")} == {0, 2, 3}
    assert first.exists()
    assert sum(path.stat().st_size for path in (tmp_path / "near").glob("*.tar")) == 3000


def _copies(folder: Path, sizes: dict[Path | str, int], read: Any) -> None:
    cache = ShardCache(folder, max_bytes=10**9, sizes=sizes)
    part, parts = cache_module._part, 0

    def counted(*arguments: Any) -> bytes:
        nonlocal parts
        parts += 1
        time.sleep(0.05)
        return part(*arguments)

    cache_module._part = counted
    for path in sizes:
        assert cache.copy_of(path).read_bytes() == Path(path).read_bytes()
    read.put(parts)


def test_many_processes_fetch_each_shard_once(tmp_path: Path) -> None:
    sizes = some_shards(tmp_path / "far")
    context = get_context("fork")
    read = context.SimpleQueue()
    processes = [context.Process(target=_copies, args=(tmp_path / "near", sizes, read)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert sum(read.get() for _ in processes) == 6


def test_what_a_killed_process_left_is_fetched_anew(tmp_path: Path) -> None:
    sizes = some_shards(tmp_path / "far", number=1)
    (path,) = sizes
    cache = ShardCache(tmp_path / "near", max_bytes=10**9, sizes=sizes)
    copy = cache.copy_of(path)
    copy.rename(copy.with_name(f".{copy.name}.4711.tmp"))
    copy.with_name(f".{copy.name}.4711.tmp").write_bytes(b"half")
    assert cache.copy_of(path).read_bytes() == Path(path).read_bytes()
    assert not list((tmp_path / "near").glob(".*.tmp"))


def test_one_who_has_stopped_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(cache_module, "STILL_SECONDS", 0.2)
    sizes = some_shards(tmp_path / "far", number=1)
    (path,) = sizes
    cache = ShardCache(tmp_path / "near", max_bytes=10**9, sizes=sizes)
    copy = cache.copy_of(path)
    copy.unlink()
    with copy.with_suffix(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match=r"another process fetches .* and has got nothing of it for 0\.2 s"):
            cache.copy_of(path)


def test_a_shard_that_became_shorter_ends_the_run_in_words(tmp_path: Path) -> None:
    sizes = some_shards(tmp_path / "far", number=1)
    (path,) = sizes
    Path(path).write_bytes(b"short")
    with pytest.raises(MachineError, match=r"0\.tar has 5 of the 1,000 bytes that the index says: it was cut short"):
        ShardCache(tmp_path / "near", max_bytes=10**9, sizes=sizes).copy_of(path)


def test_a_cache_without_a_folder_is_on_the_nodes_own_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", "/two")
    monkeypatch.setenv("SLURM_TMPDIR", "/one")
    assert own_disk() == Path(f"/one/tclx-shards-{os.getuid()}")
    monkeypatch.delenv("SLURM_TMPDIR")
    assert own_disk() == Path(f"/two/tclx-shards-{os.getuid()}")


def test_a_cache_too_small_for_what_is_read_at_once_is_warned_of(shards: ExperimentSpec) -> None:
    folder = shards.data.train.folder  # type: ignore[union-attr]
    (said,) = examine(moved(shards, folder, cache={"max_gib": 1e-6}).data).warnings
    assert re.match(r"data\.train\.cache holds 1e-06 GiB of shards, and rows of all shards are mixed, [\d.e-]+ GiB: many", said)
    (said,) = examine(moved(shards, folder, cache={"max_gib": 1e-6}, shards_at_once=2).data).warnings
    assert "2 are mixed while the next are fetched" in said
    assert not examine(moved(shards, folder, cache={"max_gib": 1}).data).warnings


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "ftp://host/shards",
            "ftp:// is no store that is read (http://, https://, s3://, gs://, or a folder)",
        ),
        ("gs://bucket/shards", "the package gcsfs is not installed, which reads gs:// (pip install gcsfs)"),
    ],
)
def test_an_address_that_nothing_here_reads_is_refused(address: str, message: str, shards: ExperimentSpec) -> None:
    assert [str(problem) for problem in missing_packages(moved(shards, address))] == [f"data.train.folder: {message}"]


def test_an_address_stays_as_it_is_written(tmp_path: Path) -> None:
    train = {"source": "shards", "folder": "https://host/shards/train/"}
    (tmp_path / "spec.json").write_text(json.dumps({"name": "far", "extends": "tclx:quickstart", "data": {"train": train}}))
    (found,) = load_experiments(tmp_path / "spec.json")
    assert found.spec.data.train.folder == "https://host/shards/train/"  # type: ignore[union-attr]
