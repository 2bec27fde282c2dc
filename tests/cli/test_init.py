"""Promises of `tclx init`: what it writes plans, splits by image, and overwrites nothing; what is wrong leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tclx.data.sources.opening import sources_of
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
    assert [line.split()[1] for line in ended.out.splitlines()[-3:]] == ["run", "run", "sweep"]
    (run,) = plan_runs([photos / "mine" / "my-photos.yaml"], runs_dir=photos)
    assert run.warnings == ()
    again = Ended(*arguments(photos, size=size))
    assert again.code == 2
    assert "nothing is overwritten" in again.err


def read(photos: Path) -> dict[str, set[str]]:
    """The images of each split of what was written."""
    (run,) = plan_runs([photos / "mine" / "my-photos.yaml"], runs_dir=photos)
    return {key: set(source.annotations.images) for key, source in sources_of(run.spec.data)}


def test_an_image_is_trained_on_or_evaluated_with_all_its_captions(photos: Path) -> None:
    ended = Ended(*arguments(photos))
    assert ended.code == 0, ended.err
    splits = read(photos)
    assert not splits["data.train"] & splits["data.val"]
    assert splits["data.train"] | splits["data.val"] == {f"{number}.png" for number in range(60)}
    assert f"{len(splits['data.val'])} images, {2 * len(splits['data.val'])} captions (2 an image)" in ended.out


def test_splits_that_the_captions_mark_are_used(photos: Path) -> None:
    rows = [f"{number}.png,number {number},{'val' if number < 7 else 'train'}" for number in range(60)]
    (photos / "captions.csv").write_text("\n".join(["file_name,text,split", *rows]))
    assert Ended(*arguments(photos, captions=str(photos / "captions.csv"))).code == 0
    assert read(photos)["data.val"] == {f"{number}.png" for number in range(7)}
    (photos / "captions.csv").write_text("\n".join(["file_name,text,split", *rows[7:]]))
    assert Ended(*arguments(photos, captions=str(photos / "captions.csv"), name="no-val")).code == 0
    (run,) = plan_runs([photos / "mine" / "no-val.yaml"], runs_dir=photos)
    assert dict(run.data)["data.val"].size.num_images > 0


def test_captions_may_lie_beside_the_images(photos: Path) -> None:
    for number in range(60):
        (photos / "photos" / f"{number}.txt").write_text(f"number {number}")
    ended = Ended("init", str(photos / "mine"), "--images", str(photos / "photos"), "--name", "my-photos")
    assert ended.code == 0, ended.err
    assert len(set.union(*read(photos).values())) == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": "captions.csv"}, "--captions"),
        ({"images": "nowhere"}, "--images: no such folder"),
        ({"name": "../x"}, "--name"),
        ({"val-share": "0"}, "--val-share: 0 leaves nothing"),
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
    assert "none of 16 images looked for is there" in ended.err
    assert list(photos.glob("mine/*")) == []


def test_without_a_name_it_is_called_as_its_folder(photos: Path) -> None:
    for number in range(60):
        (photos / "photos" / f"{number}.txt").write_text(f"number {number}")
    assert Ended("init", str(photos / "mine"), "--images", str(photos / "photos")).code == 0
    assert (photos / "mine" / "mine.yaml").exists()
    unfit = Ended("init", str(photos / "no name"), "--images", str(photos / "photos"))
    assert (unfit.code, "--name: `no name` is no name" in unfit.err) == (2, True)


def test_without_a_terminal_nothing_is_asked() -> None:
    ended = Ended("init")
    assert ended.code == 2
    assert "--images: is needed" in ended.err
