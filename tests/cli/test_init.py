"""Promises of `tclx init`: what it writes plans, splits by image, and overwrites nothing; what is wrong leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tclx.launch.order import plan_runs
from tests.cli.test_cli import Ended


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    rows = []
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
        rows += [{"image": f"{number}.png", "caption": f"number {number} {word}"} for word in ("one", "two")]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return tmp_path


def arguments(photos: Path, **changes: str) -> list[str]:
    given = {"images": str(photos / "photos"), "captions": str(photos / "captions.json"), "name": "my-photos", **changes}
    return ["init", str(photos / "mine"), *(word for key, value in given.items() for word in (f"--{key}", value))]


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_what_it_writes_plans_and_is_never_overwritten(size: str, photos: Path) -> None:
    ended = Ended(*arguments(photos, size=size))
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 3
    (run,) = plan_runs([photos / "mine" / "my-photos.yaml"], runs_dir=photos)
    assert run.warnings == ()
    again = Ended(*arguments(photos, size=size))
    assert again.code == 2
    assert "nothing is overwritten" in again.err


def test_an_image_is_trained_on_or_evaluated_with_all_its_captions(photos: Path) -> None:
    assert Ended(*arguments(photos)).code == 0
    train, val = (json.loads((photos / "mine" / f"my-photos-{split}.json").read_text()) for split in ("train", "val"))
    assert sorted(row["image"] for row in train + val) == sorted(f"{number}.png" for number in range(60))
    assert all(len(row["caption"]) == 2 for row in train + val)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": "captions.csv"}, "--captions"),
        ({"images": "nowhere"}, "--images: no such folder"),
        ({"name": "../x"}, "--name"),
        ({"val-share": "0"}, "--val-share"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_stays(changes: dict[str, str], message: str, photos: Path) -> None:
    ended = Ended(*arguments(photos, **changes))
    assert ended.code == 2
    assert message in ended.err
    assert not list(photos.glob("mine/*"))


def test_images_that_are_not_there_leave_nothing(photos: Path) -> None:
    for path in (photos / "photos").iterdir():
        path.unlink()
    ended = Ended(*arguments(photos))
    assert ended.code == 2
    assert [path.name for path in photos.glob("mine/*")] == [".schema"]


def test_without_a_terminal_nothing_is_asked() -> None:
    ended = Ended("init")
    assert ended.code == 2
    assert "--images: is needed" in ended.err
