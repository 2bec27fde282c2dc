from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tclx.data.checking import looking
from tclx.data.facts import check_images, collect_facts, refuse_bad_images
from tclx.errors import InputError
from tclx.plan import DataFacts
from tests.data.small import data_section, encoded, files_source, photograph, png_header


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(photograph(seed=number)))
    return tmp_path


def on(folder: Path, rows: list[dict[str, Any]] | None = None, **source: Any) -> dict[str, Any]:
    rows = rows if rows is not None else [{"image": f"{number}.jpg", "caption": ["x", "y"]} for number in range(10)]
    return {**files_source(folder, rows).model_dump(mode="json"), **source}


def test_scenes_are_counted_without_being_drawn() -> None:
    train = {"source": "scenes", "num_images": 4_000_000, "split": "train"}
    data = data_section(train=train, test={"source": "scenes", "num_images": 7, "split": "test"})
    assert collect_facts(data) == DataFacts(4_000_000, 4_000_000, None, None, 7, 35)


def test_rows_images_and_captions_of_files_are_counted(photos: Path) -> None:
    rows = [{"image": f"{number % 4}.jpg", "caption": ["x", "y"]} for number in range(10)]
    data = data_section(train=on(photos, rows), val=on(photos, rows))
    assert collect_facts(data) == DataFacts(10, 4, 4, 20, None, None)


def test_planning_without_the_data_believes_approximate_rows(tmp_path: Path) -> None:
    gone = on(tmp_path, files=[str(tmp_path / "gone.json")])
    data = data_section(train={**gone, "approximate_rows": 5_000_000}, val=gone)
    assert collect_facts(data, without_data=True) == DataFacts(5_000_000, 5_000_000, None, None, None, None)
    with pytest.raises(InputError, match=r"data\.train\.approximate_rows: is needed to plan without the data"):
        collect_facts(data_section(train=gone), without_data=True)


def test_problems_of_all_splits_are_told_at_once(tmp_path: Path) -> None:
    gone = on(tmp_path, files=[str(tmp_path / "gone.json")])
    with pytest.raises(InputError) as caught:
        collect_facts(data_section(train=gone, test=gone))
    assert [problem.key for problem in caught.value.problems] == ["data.train.files", "data.test.files"]


def spoil(folder: Path) -> None:
    (folder / "0.jpg").unlink()
    (folder / "2.jpg").write_bytes(encoded(photograph())[:-800])
    (folder / "5.jpg").write_text("a page that says 404")
    (folder / "7.jpg").write_bytes(png_header(14_000, 14_000))
    (folder / "9.jpg").write_bytes(b"")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_bad_image_is_found_in_order(photos: Path, num_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "IMAGES_PER_TASK", 3)
    spoil(photos)
    seen: list[tuple[int, int]] = []
    check = check_images(
        data_section(train=on(photos)), num_processes=num_processes, report=lambda done, total: seen.append((done, total))
    )
    assert [Path(bad.path).stem for bad in check.bad] == ["0", "2", "5", "7", "9"]
    assert {bad.key for bad in check.bad} == {"data.train"}
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]
    assert check.summary().startswith("10 images checked in ")


def test_a_image_named_by_many_rows_is_opened_once(photos: Path) -> None:
    rows = [{"image": "1.jpg", "caption": str(number)} for number in range(50)]
    assert check_images(data_section(train=on(photos, rows))).num_images == 1


def test_scenes_need_no_check() -> None:
    assert refuse_bad_images(data_section()).num_images == 0


def test_refuse_names_the_bad_images_and_the_way_past_them(photos: Path) -> None:
    spoil(photos)
    with pytest.raises(InputError) as caught:
        refuse_bad_images(data_section(train=on(photos)))
    text = str(caught.value)
    assert f"data.train: {photos}/0.jpg: does not exist" in text
    assert "5 of 10 images cannot be used (mend or remove them, or train past them with data.bad_images.policy: skip)" in text


def test_at_most_twenty_bad_images_are_shown(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.jpg", "caption": "x"} for number in range(30)]
    with pytest.raises(InputError) as caught:
        refuse_bad_images(data_section(train=on(tmp_path, rows)))
    assert len(caught.value.problems) == 21
    assert "30 of 30" in str(caught.value)


def test_skip_checks_only_what_is_evaluated_on(photos: Path) -> None:
    spoil(photos)
    skip = {"policy": "skip"}
    assert refuse_bad_images(data_section(train=on(photos), bad_images=skip)).num_images == 0
    with pytest.raises(InputError, match=r"data.val: .*0.jpg"):
        refuse_bad_images(data_section(train=on(photos), val=on(photos), bad_images=skip))


def test_good_images_pass(photos: Path) -> None:
    assert refuse_bad_images(data_section(train=on(photos))).bad == []


def test_counting_and_checking_never_load_torch() -> None:
    code = "import sys, tclx.data.facts, tclx.data.scenes, tclx.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
