"""What planning says of data that are the same where they should differ, and of images that are elsewhere."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tclx.data.checking.check import check_data
from tclx.data.facts import examine, refuse_bad_images
from tclx.errors import InputError
from tests.data.small import data_section, encoded, files_source, photograph

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for number in range(20):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(encoded(photograph(seed=number)))
    return tmp_path


def source(folder: Path, rows: Any, name: str, *, form: str = "pretrain", **changes: Any) -> dict[str, Any]:
    return {**files_source(folder, rows, name=name, form=form).model_dump(mode="json"), **changes}


def rows(numbers: range, *, captions: int = 1) -> list[dict[str, Any]]:
    return [{"image": f"img/{number}.jpg", "caption": [f"{number} {one}" for one in range(captions)]} for number in numbers]


def warnings(**sources: Any) -> str:
    return "\n".join(examine(data_section(**sources)).warnings)


# Overlap


def test_separate_splits_get_no_warning(photos: Path) -> None:
    train = source(photos, rows(range(10)), "train.json")
    assert (
        warnings(
            train=train, val=source(photos, rows(range(10, 15)), "v.json"), test=source(photos, rows(range(15, 20)), "t.json")
        )
        == ""
    )


def test_images_of_val_and_test_that_are_trained_on_are_counted(photos: Path) -> None:
    train = source(photos, rows(range(10)), "train.json")
    val = source(photos, rows(range(5, 15)), "val.json")
    said = warnings(train=train, val=val)
    assert said.startswith("5 of 10 images of data.val are in data.train as well: img/5.jpg, img/6.jpg, img/7.jpg and others.")
    test = source(photos / "img", [{"image": "./../img/9.jpg", "caption": "x"}], "test.json")
    assert "1 of 1 images of data.test are in data.train as well: ./../img/9.jpg" in warnings(train=train, test=test)


def test_val_and_test_that_are_the_same_are_told(photos: Path) -> None:
    train, val = source(photos, rows(range(10)), "train.json"), source(photos, rows(range(10, 20)), "val.json")
    assert "data.test reads files that data.val reads: " in warnings(train=train, val=val, test=val)
    copied = source(photos, rows(range(10, 20)), "test.json")
    assert "10 of 10 images of data.test are in data.val as well" in warnings(train=train, val=val, test=copied)


def test_ids_that_do_not_fit_the_images_are_told_across_files(photos: Path) -> None:
    first = [{"image": f"img/{number}.jpg", "image_id": number, "caption": f"a {number}"} for number in range(4)]
    second = [{"image": f"img/{number + 4}.jpg", "image_id": number, "caption": f"b {number}"} for number in range(3)]
    files = [source(photos, made, name, form="retrieval")["files"][0] for made, name in ((first, "1.json"), (second, "2.json"))]
    said = warnings(train=source(photos, [], "x.json", form="retrieval", files=files))
    assert said.startswith("data.train: 3 image ids stand for different images, which are taken for one: img/0.jpg, img/1.jpg")
    first[3]["image"] = "img/0.jpg"
    said = warnings(train=source(photos, first, "1.json", form="retrieval"))
    assert said == "data.train: 1 images have different image ids, and are taken for different ones: img/0.jpg"


def test_repeated_rows_are_told_and_a_few_are_not(photos: Path) -> None:
    repeated = [*rows(range(10)), *rows(range(3))]
    said = warnings(train=source(photos, repeated, "train.json"))
    assert said == "data.train: 3 of 13 rows repeat another's image and caption: img/0.jpg, img/1.jpg, img/2.jpg"
    official = [{"image": "img/0.jpg", "caption": f"{number}"} for number in range(3000)] + rows(range(1)) * 3
    assert warnings(train=source(photos, official, "train.json")) == ""


def test_scenes_of_one_split_are_told() -> None:
    scenes = {"source": "scenes", "num_images": 10, "split": "train"}
    assert warnings(train=scenes, val={**scenes, "split": "val"}) == ""
    assert "data.val draws from the same scenes as data.train" in warnings(train=scenes, val={**scenes, "seed": 7})


def test_images_with_the_same_bytes_under_other_names_are_found_by_opening_them(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "cache"))
    (photos / "img" / "19.jpg").write_bytes((photos / "img" / "3.jpg").read_bytes())
    (photos / "img" / "18.jpg").write_bytes((photos / "img" / "17.jpg").read_bytes())
    train, val = source(photos, rows(range(10)), "train.json"), source(photos, rows(range(15, 20)), "val.json")
    data = data_section(train=train, val=val)
    assert examine(data).warnings == ()
    copied, twice = check_data(data, num_processes=1).warnings()
    assert copied.startswith(
        f"1 images of data.val have the bytes of others in data.train: {photos}/img/19.jpg = {photos}/img/3.jpg"
    )
    assert twice.startswith("data.val: 1 images have the bytes of another")


def test_the_official_forms_of_real_data_get_no_warning(shared: Path) -> None:
    folder = shared / "real-bench" / "flickr8k"
    if not folder.is_dir():
        pytest.skip("no real photos beside the project")
    sources = {
        split: {"source": "files", "form": "retrieval", "files": [str(folder / f"{split}.json")], "image_root": str(folder)}
        for split in ("train", "val", "test")
    }
    assert warnings(**sources) == ""


# Where the images are


def refused(**sources: Any) -> str:
    with pytest.raises(InputError) as caught:
        examine(data_section(**sources))
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.mark.parametrize("root", ["img", "img/deeper/still"])
def test_an_image_root_too_deep_is_named_with_the_right_one(photos: Path, root: str) -> None:
    (photos / "img/deeper/still").mkdir(parents=True)
    said = refused(train=source(photos, rows(range(9)), "train.json", image_root=str(photos / root)))
    assert said.startswith(
        f"data.train.image_root: none of 9 images looked for is there: {photos}/{root}/img/0.jpg does not exist"
    )
    assert said.endswith(f"(image_root: {photos}: found there)")


def test_an_image_root_too_shallow_is_named_with_the_right_one(photos: Path) -> None:
    made = [{"image": f"{number}.jpg", "caption": "x"} for number in range(5)]
    said = refused(train=source(photos, made, "train.json", image_root=str(photos)))
    assert said.endswith(f"(image_root: {photos}/img: found there)")
    (photos / "outer" / "inner").mkdir(parents=True)
    (photos / "outer" / "inner" / "only.jpg").write_bytes(encoded(photograph()))
    said = refused(train=source(photos, [{"image": "only.jpg", "caption": "x"}], "train.json"))
    assert said.endswith(f"(image_root: {photos}/outer/inner: found there)")


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (r"img\{}.jpg", "backslashes, as written on Windows: write img/0.jpg"),
        ("https://a.b/{}.jpg", "these are web addresses"),
        ("/nowhere/{}.jpg", "the paths are absolute"),
        ("photos/img/{}.jpg", "/img/0.jpg exists: the rows' paths begin with a folder too much"),
        ("img/{}.JPG", "/img holds 0.jpg: capital letters count"),
        ("img/{}.png", "/img holds 0.jpg"),
        ("img/{}", "/img holds 0.jpg"),
    ],
)
def test_paths_of_another_machine_get_one_message_with_the_cure(photos: Path, image: str, hint: str) -> None:
    made = [{"image": image.format(number), "caption": "x"} for number in range(20)]
    said = refused(train=source(photos, made, "train.json"))
    assert hint in said
    assert "skip" not in said


def test_names_in_another_unicode_form_are_explained(photos: Path) -> None:
    (photos / unicodedata.normalize("NFD", "Übung.jpg")).write_bytes(encoded(photograph()))
    said = refused(train=source(photos, [{"image": unicodedata.normalize("NFC", "Übung.jpg"), "caption": "x"}], "train.json"))
    assert "holds the same name in another Unicode form (NFD, as macOS writes it)" in said


def test_some_missing_images_are_refused_unless_they_are_skipped(photos: Path) -> None:
    (photos / "img" / "9.jpg").unlink()
    train = source(photos, rows(range(10)), "train.json")
    assert "1 of 10 images looked for do not exist, the first: " in refused(train=train)
    examine(data_section(train=train, bad_images={"policy": "skip"}))
    with pytest.raises(InputError, match=r"data\.val\.files: 1 of 10 images"):
        examine(data_section(train=train, val=train, bad_images={"policy": "skip"}))


def test_the_first_and_last_image_of_every_file_are_looked_for(photos: Path) -> None:
    made = [{"image": f"img/{number % 8}.jpg", "caption": str(number)} for number in range(100)]
    second = [{"image": "img/0.jpg", "caption": "x"}, {"image": "img/gone.jpg", "caption": "x"}]
    files = [source(photos, one, name)["files"][0] for one, name in ((made, "1.json"), (second, "2.json"))]
    assert "img/gone.jpg" in refused(train=source(photos, [], "x.json", files=files))


def test_nobody_is_led_past_images_that_are_all_missing(photos: Path) -> None:
    train = source(photos, rows(range(10)), "train.json", image_root=str(photos / "img"))
    with pytest.raises(InputError) as caught:
        refuse_bad_images(data_section(train=train))
    assert "skip" not in str(caught.value)
    assert "image_root" in str(caught.value)
