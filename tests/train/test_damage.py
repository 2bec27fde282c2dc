"""A damaged checkpoint never gives other figures without a word: the run ends in the same bits, or the damage is named.

The long campaign is marked `faults`; a few of its trials stand in every check.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tclx.errors import InputError
from tclx.runs import RunFolder
from tclx.train import checkpoint
from tests.train.toy import REFUSED, Outcome, outcome, prepare, run, start, toy_spec, wait

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
NUM_TRIALS = 300


def put(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, bit: int) -> None:
    put(path, offset, bytes([path.read_bytes()[offset] ^ (1 << bit)]))


def swap(path: Path, other: Path) -> None:
    content = path.read_bytes()
    shutil.copyfile(other, path)
    other.write_bytes(content)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def beside(path: Path) -> Path:
    """The same file of another checkpoint."""
    return next(folder / path.name for folder in checkpoint.named(path.parents[1]) if folder != path.parent)


def next_to(path: Path) -> Path:
    """Another file of the same checkpoint."""
    return path.with_name(FILES[FILES.index(path.name) - 1])


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "first byte": lambda path, draw: flip(path, 0, draw.randrange(8)),
    "header": lambda path, draw: flip(path, draw.randrange(1, min(64, path.stat().st_size)), draw.randrange(8)),
    "middle": lambda path, draw: flip(path, path.stat().st_size // 2, draw.randrange(8)),
    "anywhere": lambda path, draw: flip(path, draw.randrange(path.stat().st_size), draw.randrange(8)),
    "last byte": lambda path, draw: flip(path, path.stat().st_size - 1, draw.randrange(8)),
    "zeroed start": lambda path, draw: put(path, 0, bytes(64)),
    "zeroed block": lambda path, draw: put(path, path.stat().st_size // 3, bytes(path.stat().st_size // 3)),
    "cut in half": lambda path, draw: os.truncate(path, path.stat().st_size // 2),
    "cut by one": lambda path, draw: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path, draw: os.truncate(path, 0),
    "appended to": lambda path, draw: put(path, path.stat().st_size, b"\0" * draw.randrange(1, 9)),
    "of another step": lambda path, draw: swap(path, beside(path)),
    "of another kind": lambda path, draw: swap(path, next_to(path)),
    "missing": lambda path, draw: path.unlink(),
    "a folder": lambda path, draw: as_folder(path),
    "a link to nowhere": lambda path, draw: (path.unlink(), path.symlink_to("nowhere"))[0],
}

MANIFESTS: dict[str, bytes] = {
    "nested": b"[" * 100_000,
    "huge": b'{"schema": ' + b"1" * 10_000 + b"}",
    "null": b"null",
    "a list": b"[]",
    "no files": b'{"schema": 1, "run_id": "x", "step": 12, "files": {}}',
    "no checksums": b'{"schema": 1, "run_id": "x", "step": 12, "files": {"model.safetensors": {"bytes": 1}}}',
    "not UTF-8": b'{"schema": "\xff"}',
}


class Trial(NamedTuple):
    """One damage to one file."""

    which: int
    """Of the checkpoints, newest first."""
    file: str
    damage: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.which}/{self.file}: {self.damage} ({self.seed})"


def trials() -> Iterator[Trial]:
    """Every damage to every file of every checkpoint; the rest are bits of manifests, which have the most to be misread."""
    for which in range(3):
        for damage in DAMAGES:
            yield from (Trial(which, file, damage) for file in FILES)
        yield from (Trial(which, "manifest.json", damage) for damage in MANIFESTS)
    for seed in range(1, NUM_TRIALS - 3 * (len(DAMAGES) * len(FILES) + len(MANIFESTS)) + 1):
        yield Trial(seed % 3, "manifest.json", "anywhere", seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose best checkpoint is not its newest one, and whose figures at the two differ."""
    folder = run(prepare(tmp_path_factory.mktemp("whole") / "run", toy_spec(seed=SEED)))
    steps = [checkpoint.step_of(one) for one in checkpoint.named(folder.checkpoints)]
    best = folder.read_best()
    assert best is not None
    assert (steps, best.step) == ([12, 9, 6], 6)
    return folder


SEED = 6


@pytest.fixture(scope="module")
def whole(finished: RunFolder) -> Outcome:
    return outcome(finished)


def used(folder: RunFolder) -> tuple[str, dict[str, Tensor]]:
    """What `tclx eval`, `tclx weights export` and `init` get of a run: why it is refused, or its best weights."""
    try:
        return "", checkpoint.weights_of(folder.path).tensors
    except InputError as error:
        return str(error), {}


def endure(trial: Trial, finished: RunFolder, whole: Outcome, place: Path) -> None:
    """Damage a copy of the run as it was before its final evaluation, use its weights, let it go on."""
    folder = RunFolder(place)
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    shutil.rmtree(folder.evaluation)
    (folder.path / "stderr0.txt").unlink()
    damaged = checkpoint.named(folder.checkpoints)[trial.which]
    best = checkpoint.place(folder.checkpoints, whole.best["step"])
    path = damaged / trial.file
    if trial.damage in MANIFESTS:
        path.write_bytes(MANIFESTS[trial.damage])
    else:
        DAMAGES[trial.damage](path, random.Random(trial.seed))

    refusal, weights = used(folder)
    expected = used(finished)[1]
    assert best.name in refusal or weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())

    (code,) = wait(start(folder))
    printed = (folder.path / "stderr0.txt").read_text()
    assert "Traceback" not in printed
    state = folder.read_state()
    assert state is not None
    if code == REFUSED:
        assert state.status == "failed"
        assert damaged.name in str(state.reason)
        return
    assert (code, state.status) == (0, "finished")
    named = {event["message"] for event in folder.read_events() if event["event"] == "checkpoint_damaged"}
    if outcome(folder) != whole:
        assert any(best.name in message and "instead" in message for message in named) or any(
            best.name in message and "missing or incomplete" in message for message in named
        )
        assert folder.read_evaluations()["test"].checkpoint != best.name
        found = folder.read_best()
        assert found is not None
        assert checkpoint.place(folder.checkpoints, found.step).name == folder.read_evaluations()["test"].checkpoint


@pytest.mark.parametrize(
    "trial",
    [
        Trial(0, "model.safetensors", "middle"),
        Trial(0, "manifest.json", "a folder"),
        Trial(2, "model.safetensors", "last byte"),
        Trial(2, "model.safetensors", "zeroed start"),
        Trial(2, "optimizer.safetensors", "missing"),
        Trial(2, "manifest.json", "nested"),
        Trial(2, "manifest.json", "of another step"),
        Trial(0, "manifest.json", "anywhere", 5),
    ],
    ids=str,
)
def test_a_damage_changes_no_bit_or_is_named(trial: Trial, finished: RunFolder, whole: Outcome, tmp_path: Path) -> None:
    endure(trial, finished, whole, tmp_path / "run")


@pytest.mark.faults
def test_300_damages_change_no_bit_or_are_named(finished: RunFolder, whole: Outcome, tmp_path: Path) -> None:
    all_trials = list(trials())
    assert len(all_trials) == NUM_TRIALS
    bad = []
    for number, trial in enumerate(all_trials):
        try:
            endure(trial, finished, whole, tmp_path / str(number))
        except AssertionError as error:
            bad.append(f"{trial}: {error}")
        shutil.rmtree(tmp_path / str(number))
    assert bad == []


def test_a_best_checkpoint_that_is_gone_is_named_and_the_next_best_is_evaluated(
    finished: RunFolder, whole: Outcome, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    shutil.rmtree(checkpoint.place(folder.checkpoints, 6))
    with pytest.raises(InputError, match=r"best checkpoint of .*run, step-00000006, is missing.*steps that are there: 12, 9"):
        checkpoint.weights_of(folder.path)
    run(folder)
    assert folder.read_evaluations()["test"].checkpoint == "step-00000012"
    assert folder.read_evaluations()["test"].metrics != whole.evaluation["metrics"]
    messages = [event["message"] for event in folder.read_events() if event["event"] == "checkpoint_damaged"]
    assert any("step-00000006" in message and "step-00000012" in message for message in messages)
    assert checkpoint.weights_of(folder.path).step == 12  # best.json says what was evaluated


@pytest.mark.parametrize("name", ["best.json", "state.json", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"[" * 5000, b'{"step": "x"}', b"\xff"], ids=["empty", "nested", "odd", "binary"])
def test_a_damaged_file_beside_the_checkpoints_changes_no_bit(
    finished: RunFolder, whole: Outcome, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    (folder.path / name).write_bytes(content)
    if name == "best.json":
        with pytest.raises(InputError, match=r"best\.json cannot be read"):
            checkpoint.weights_of(folder.path)
    assert outcome(run(folder)) == whole


def test_best_json_and_the_rows_must_agree(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    best = json.loads(folder.best.read_text())
    folder.write_json(folder.best, {**best, "step": 12})
    with pytest.raises(InputError, match=r"names step 12 with .* has no such row: one of them is damaged"):
        checkpoint.weights_of(folder.path)
    folder.best.unlink()  # the rows know
    assert checkpoint.weights_of(folder.path).step == 6


def test_a_changed_word_of_the_tokenizer_is_named(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    flip(folder.tokenizer / "tokenizer.json", (folder.tokenizer / "tokenizer.json").stat().st_size // 2, 0)
    assert wait(start(folder)) == [REFUSED]
    assert "the checksum of tokenizer.json is wrong" in (folder.path / "stderr0.txt").read_text()
    shutil.rmtree(folder.tokenizer)
    assert outcome(run(folder)) == outcome(finished)


def test_a_run_without_a_sound_checkpoint_at_its_end_fails_in_words(finished: RunFolder, tmp_path: Path) -> None:
    """And the same command trains it again, to the same figures."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    folder.state.unlink()
    for one in checkpoint.named(folder.checkpoints):
        (one / "manifest.json").write_bytes(b"{")
    assert outcome(run(folder)) == outcome(finished)
    assert sum(event["event"] == "checkpoint_damaged" for event in folder.read_events()) >= 3
