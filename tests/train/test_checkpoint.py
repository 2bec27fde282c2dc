"""Complete or not there: what a save, a kill, a full disk and a forged file leave behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tclx.errors import InputError, MachineError
from tclx.spec.optim import OptimSpec
from tclx.train import checkpoint
from tclx.train.checkpoint import Progress
from tclx.train.optim import build_optimizer
from tests import disk
from tests.train.toy import prepare, toy_spec

RUN = "toy-s0-00000000"


class Tied(nn.Module):
    """Like TCL's MLM head, two names for one tensor; a buffer; a scalar."""

    def __init__(self, width: int = 8, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(11, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.words.weight
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("queue", torch.randn(5, width))

    def forward(self, ids: Tensor) -> Tensor:
        return (self.head(self.words(ids)) / self.temperature).square().mean()


def trained(*, num_steps: int = 2, width: int = 8, seed: int = 0) -> tuple[Tied, torch.optim.AdamW]:
    model = Tied(width, seed=seed)
    optimizer = build_optimizer(model, OptimSpec(learning_rate=0.01), official=False)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.arange(11)).backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, *, num_steps: int = 2) -> Path:
    model, optimizer = trained(num_steps=num_steps)
    return checkpoint.save(folder, Progress(step), content=checkpoint.content_of(model, optimizer), run_id=RUN)


def resume(folder: Path, *, width: int = 8, run_id: str = RUN) -> tuple[Progress | None, Tied, torch.optim.AdamW, list[str]]:
    model, optimizer = trained(num_steps=0, width=width, seed=1)
    reports: list[str] = []
    progress = checkpoint.resume(folder, model=model, optimizer=optimizer, run_id=run_id, report=reports.append)
    return progress, model, optimizer, reports


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    told = Progress(step=2, num_bad_images=3, scaler={"scale": 65536.0, "_growth_tracker": 2})
    checkpoint.save(tmp_path, told, content=checkpoint.content_of(model, optimizer), run_id=RUN)
    progress, loaded, loaded_optimizer, reports = resume(tmp_path)
    assert (progress, reports) == (told, [])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert loaded.head.weight is loaded.words.weight
    before, after = (checkpoint.optimizer_tensors(each) for each in (optimizer, loaded_optimizer))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for net, moves in ((model, optimizer), (loaded, loaded_optimizer)):
        moves.zero_grad()
        net(torch.arange(11)).backward()
        moves.step()
    assert torch.equal(model.words.weight, loaded.words.weight)


def test_moments_follow_names_not_positions(tmp_path: Path) -> None:
    save(tmp_path, 2)
    model = Tied(seed=1)
    groups = [{"params": [model.temperature, model.words.weight], "param_names": ["temperature", "words.weight"]}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    checkpoint.resume(tmp_path, model=model, optimizer=optimizer, run_id=RUN, report=pytest.fail)
    assert optimizer.state[model.words.weight]["exp_avg"].shape == (11, 8)
    assert optimizer.state[model.temperature]["exp_avg"].shape == ()


def test_newest_complete_one_wins(tmp_path: Path) -> None:
    save(tmp_path, 9)
    save(tmp_path, 10)
    torn = save(tmp_path, 11)
    (torn / "manifest.json").unlink()
    (tmp_path / "step-12").mkdir()
    (tmp_path / "notes.txt").touch()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000010"
    assert checkpoint.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["missing", "short", "one bit"])
def test_a_damaged_one_is_set_aside_and_the_next_older_is_used(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, 1, num_steps=1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    {"missing": path.unlink, "short": lambda: os.truncate(path, 10), "one bit": lambda: path.write_bytes(content)}[harm]()
    progress, model, _, reports = resume(tmp_path)
    assert progress == Progress(1)
    assert torch.equal(model.words.weight, trained(num_steps=1)[0].words.weight)
    assert len(reports) == 1
    said = {"missing": f"{name} is missing", "short": f"{name} has 10 bytes", "one bit": f"checksum of {name} is wrong"}[harm]
    assert said in reports[0]
    assert (tmp_path / "step-00000002.damaged").is_dir()
    assert save(tmp_path, 2).is_dir()  # the step is saved again when it is reached again


def test_without_a_sound_one_the_model_stays_as_it_was(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").write_bytes(b"x" * (folder / "state.json").stat().st_size)
    progress, model, optimizer, reports = resume(tmp_path)
    assert progress is None
    assert len(reports) == 1
    assert torch.equal(model.words.weight, Tied(seed=1).words.weight)
    assert not optimizer.state


def test_another_runs_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match=f"saved by run {RUN}, and this is run other"):
        resume(tmp_path, run_id="other")


def test_another_models_checkpoint_is_refused_by_what_differs(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match=r"words.weight is \[11, 8\], here \[11, 16\]"):
        resume(tmp_path, width=16)
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"lacks bias, weight.*has head\.weight, queue, temperature, words\.weight besides"):
        checkpoint.put_weights(tmp_path, checkpoint.read_weights(tmp_path / "step-00000001"), model)


def change_manifest(folder: Path, **changes: object) -> None:
    """With its own checksum, as if it had been written so."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    manifest["sha256"] = checkpoint._sha256_of({name: value for name, value in manifest.items() if name != "sha256"})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    change_manifest(save(tmp_path, 1), schema=99)
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(InputError, match="checkpoint of format 99, and this version of tclx reads format 1"):
        resume(tmp_path)
    assert left_behind(tmp_path) == ["step-00000001"]


def test_a_checkpoint_from_before_manifests_had_a_checksum_is_used(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    progress, _, _, reports = resume(tmp_path)
    assert (progress, reports) == (Progress(1), [])


@pytest.mark.parametrize("has_own_checksum", [True, False])
def test_every_bit_of_a_manifest_that_changes_what_it_says_is_noticed(tmp_path: Path, has_own_checksum: bool) -> None:
    """Without its own checksum, the run id is the one thing that only its owner can judge."""
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    path = folder / "manifest.json"
    if not has_own_checksum:
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        path.write_text(json.dumps(manifest))
    whole = path.read_bytes()
    said = json.loads(whole)
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            checkpoint.read_weights(folder)
        except InputError:
            continue
        read = json.loads(content)
        ours = {name: read[name] for name in said if name in read and name not in ("sha256", "run_id")}
        assert ours == {name: value for name, value in said.items() if name not in ("sha256", "run_id")}
        assert not has_own_checksum or read.get("sha256") is None or read == said


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-00000002")
    assert resume(tmp_path)[3][0].startswith("checkpoint step-00000002 is damaged (manifest.json is that of step 1)")


def test_a_checkpoint_that_was_copied_elsewhere_is_still_verified(tmp_path: Path) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(save(tmp_path, 7), copy)
    assert checkpoint.weights_of(copy).step == 7
    assert checkpoint.weights_of(copy / "model.safetensors").path == copy
    os.truncate(copy / "optimizer.safetensors", 9)
    for path in (copy, copy / "model.safetensors"):
        with pytest.raises(InputError, match=r"the checkpoint .*kept is damaged: optimizer.safetensors has 9 bytes"):
            checkpoint.weights_of(path)


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:  # root, who may run this, is refused nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_sha256", refuse)
    with pytest.raises(MachineError, match=r"could not read model\.safetensors of a checkpoint: permission denied"):
        resume(tmp_path)
    assert left_behind(tmp_path) == ["step-00000001"]


def test_a_checkpoint_reaches_the_disk_before_it_gets_its_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    sync, rename = os.fsync, Path.rename

    def syncing(descriptor: int) -> None:
        order.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        order.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    folder = save(tmp_path, 1)
    before, after = order[: order.index("renamed")], order[order.index("renamed") + 1 :]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*checkpoint._FILES, "manifest.json"])
    assert {path.stat().st_ino for path in folder.iterdir()} < set(before)
    assert before[-2:] == [(folder / "manifest.json").stat().st_ino, folder.stat().st_ino]
    assert after == [tmp_path.stat().st_ino]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, keep_step=1)
    assert [checkpoint.step_of(folder) for folder in checkpoint.complete(tmp_path)] == [4, 3, 1]


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_removal_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def killed(path: Path) -> None:
        for file in sorted(path.iterdir(), reverse=True)[:killed_after]:  # the manifest late
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, keep_last=1, keep_step=None)
    monkeypatch.undo()
    assert checkpoint.named(tmp_path) == [tmp_path / "step-00000002"]
    checkpoint.clear_leftovers(tmp_path)
    assert left_behind(tmp_path) == ["step-00000002"]


def test_best_or_newest_follows_best_json_and_never_takes_the_newest_for_a_best_that_is_gone(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", toy_spec())
    assert checkpoint.best_or_newest(run) is None
    save(run.checkpoints, 1)
    save(run.checkpoints, 2)
    assert checkpoint.best_or_newest(run) == run.checkpoints / "step-00000002"
    run.metrics.write_text(json.dumps({"step": 1, "retrieval/val/r_mean": 3.0}) + "\n")
    run.write_json(run.best, {"step": 1, "metric": "retrieval/val/r_mean", "value": 3.0})
    assert checkpoint.best_or_newest(run) == run.checkpoints / "step-00000001"
    shutil.rmtree(run.checkpoints / "step-00000001")
    with pytest.raises(InputError, match=r"step-00000001, is missing .*steps that are there: 2"):
        checkpoint.best_or_newest(run)


# --------------------------------------------------------------------------------------------------------- disk and rights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB where this user may mount one."""
    with disk.small_disk(tmp_path / "disk", size="64k") as place:  # where there is none, the file-size limit below tests this
        yield place


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_keeps_the_checkpoints_before_and_leaves_nothing_half(small_disk: Path) -> None:
    step = 1
    while shutil.disk_usage(small_disk).free > 20_000:
        save(small_disk, step)
        step += 1
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096))
    with pytest.raises(MachineError, match="the disk is full: free some space and run the same command again"):
        save(small_disk, step)
    (small_disk / "filler").unlink()
    assert left_behind(small_disk) == [f"step-{done:08d}" for done in range(1, step)]
    assert resume(small_disk)[0] == Progress(step - 1)
    shutil.rmtree(small_disk / "step-00000001")
    assert save(small_disk, step).is_dir()


@pytest.mark.parametrize("limit", [0, 100, 600, 900])
def test_a_write_that_the_system_cuts_short_leaves_nothing_half(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(MachineError, match=r"step-00000002.*those before it are intact"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_behind(tmp_path) == ["step-00000001"]
    assert resume(tmp_path)[0] == Progress(1)


def test_a_place_that_cannot_be_written_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="could not save"):
        save(tmp_path / "file" / "checkpoints", 1)


# -------------------------------------------------------------------------------------------------------------- forgeries


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    folder = save(tmp_path / "checkpoints", 1)
    forged = pickle.dumps(Payload(marker))
    pickle.loads(forged)  # it would work
    marker.unlink()
    (folder / name).write_bytes(forged)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files={**files, name: {"bytes": len(forged), "sha256": checkpoint._sha256(folder / name)}})
    progress, _, _, reports = resume(tmp_path / "checkpoints")
    assert progress is None
    assert f"{name} cannot be read" in reports[0]
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------------------ kills


def save_for_ever(folder: Path, acknowledge: int, model: Tied, optimizer: torch.optim.AdamW) -> None:
    """Save step after step, telling each that is done; 2 MB a piece, long enough to be hit."""
    model.queue = torch.zeros(500_000)
    checkpoint.clear_leftovers(folder)
    newest = checkpoint.newest(folder)
    step = checkpoint.step_of(newest) if newest else 0
    while True:
        step += 1
        model.queue.fill_(step)
        checkpoint.save(folder, Progress(step), content=checkpoint.content_of(model, optimizer), run_id=RUN)
        checkpoint.prune(folder, keep_last=2, keep_step=None)
        os.write(acknowledge, b"%d\n" % step)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_killed_at_any_moment_of_saving_the_newest_always_loads(tmp_path: Path) -> None:
    """TCLX_KILLS=200 for a longer storm. No acknowledged save may be lost, no checkpoint may be torn or mixed."""
    draw = random.Random(0)
    acknowledged = 0
    model, optimizer = trained()
    for _ in range(int(os.environ.get("TCLX_KILLS", "10"))):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:  # pragma: no cover
            torch.set_num_threads(1)
            save_for_ever(tmp_path, writer, model, optimizer)
        os.close(writer)
        with os.fdopen(reader) as told:
            first = int(told.readline())
            began = time.perf_counter()
            second = int(told.readline())
            time.sleep(draw.uniform(0, 2 * (time.perf_counter() - began)))  # anywhere in one of the next two saves
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert first > acknowledged
            acknowledged = max([second, *map(int, told)])
        newest = checkpoint.newest(tmp_path)
        assert newest is not None
        step = checkpoint.step_of(newest)
        assert step >= acknowledged
        assert (checkpoint.read_weights(newest)["queue"] == step).all()
    checkpoint.clear_leftovers(tmp_path)
    assert left_behind(tmp_path) == sorted(folder.name for folder in checkpoint.complete(tmp_path))
