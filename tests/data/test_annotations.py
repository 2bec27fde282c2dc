from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclx.data.annotations import PackedStrings, read_annotations
from tclx.errors import InputError
from tests.data.small import files_source


def problems(folder: Path, rows: Any, *, form: str = "pretrain", training: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        read_annotations(files_source(folder, rows, form=form), key="data.train", training=training)
    assert all(problem.key == "data.train.files" for problem in caught.value.problems)
    return str(caught.value)


@given(st.lists(st.text(st.characters(codec=None, exclude_categories=[]), max_size=5)))
def test_packed_strings_come_back(strings: list[str]) -> None:
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert packed[1:] == strings[1:]
    assert [packed[-number - 1] for number in range(len(strings))] == strings[::-1]


def test_the_pretrain_form_has_a_row_per_item_with_one_caption_or_several(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "one"},
        {"image": "b.jpg", "caption": ["two", "three"]},
        {"image": "a.jpg", "caption": "."},
    ]
    read = read_annotations(files_source(tmp_path, rows), key="data.train", training=True)
    assert read.num_rows == 3
    assert [[read.captions[number] for number in read.captions_of(row)] for row in range(3)] == [
        ["one"],
        ["two", "three"],
        ["."],
    ]
    assert [read.pictures[number] for number in read.picture_of_row] == ["a.jpg", "b.jpg", "a.jpg"]
    assert read.image_index.tolist() == [0, 1, 0]
    assert read.num_empty_captions == 1


def test_the_retrieval_form_tells_pictures_apart_by_image_id(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "image_id": identity, "caption": "x"} for n, identity in enumerate(["p", 7, "p", "7"])]
    read = read_annotations(files_source(tmp_path, rows, form="retrieval"), key="data.train", training=True)
    assert read.image_index.tolist() == [0, 1, 0, 2]


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    first = files_source(tmp_path, [{"image": "a", "caption": "1"}], name="1.json")
    second = files_source(tmp_path, [{"image": "b", "caption": "2"}], name="2.json")
    both = first.model_copy(update={"files": (*second.files, *first.files)})
    assert list(read_annotations(both, key="data.train", training=True).captions) == ["2", "1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"imgae": "a", "caption": "x"}, "row 1: `image` is missing (did the row's `imgae` mean that?)"),
        ({"image": "a"}, "row 1: `caption` is missing (the row has: image)"),
        ({"image": "", "caption": "x"}, "row 1: `image` is empty (expected the picture's path)"),
        ({"image": 3, "caption": "x"}, "row 1: `image` is a number"),
        ({"image": "a", "caption": None}, "row 1: `caption` is null (expected text or a list of texts)"),
        ({"image": "a", "caption": []}, "row 1: `caption` is an empty list (expected at least one text)"),
        ({"image": "a", "caption": ["x", 4]}, "row 1: `caption[1]` is a number (expected text)"),
        ({"image": "a", "caption": "x", "image_id": [1]}, "row 1: `image_id` is a list"),
        ("a.jpg", "row 1: is text (expected an object"),
        (["a.jpg"], "row 1: is a list"),
    ],
)
def test_a_wrong_row_is_named_with_what_would_be_right(tmp_path: Path, row: Any, message: str) -> None:
    assert message in problems(tmp_path, [{"image": "a", "caption": "fine"}, row])


def test_retrieval_training_needs_one_caption_and_an_image_id_per_row(tmp_path: Path) -> None:
    text = problems(tmp_path, [{"image": "a", "caption": ["x"]}], form="retrieval")
    assert "`image_id` is missing" in text
    assert "`form: pretrain` takes lists" in text


def test_the_retrieval_form_is_evaluated_on_without_image_ids(tmp_path: Path) -> None:
    source = files_source(tmp_path, [{"image": "a", "caption": ["x", "y"]}], form="retrieval")
    assert len(read_annotations(source, key="data.val", training=False).captions) == 2


def test_all_problems_are_counted_and_twenty_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_annotations(files_source(tmp_path, [{}] * 30), key="data.train", training=True)
    assert len(caught.value.problems) == 21
    assert "60 problems in all; the first 20 are shown" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.json:1:1: not valid JSON: Expecting value (the file is empty)"),
        ('[{"image": "a",\n "caption" "x"}]', "rows.json:2:12: not valid JSON: Expecting ':' delimiter"),
        ('{"image": "a"}\n{"image": "b"}', "rows.json:2:1: not valid JSON: Extra data (one object per line"),
        ('{"image": "a"}', "holds an object with the keys image (expected a list of objects"),
        ("[]", "the files hold no rows"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in problems(tmp_path, content)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    source = files_source(tmp_path, "")
    Path(source.files[0]).write_bytes(b"[\xff\xd8\xff\xe0]")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_annotations(source, key="data.train", training=True)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    source = files_source(tmp_path, [], name="train.json").model_copy(update={"files": (str(tmp_path / "trian.json"),)})
    with pytest.raises(InputError, match=r"trian.json does not exist \(did you mean train.json\?\)"):
        read_annotations(source, key="data.train", training=True)


def test_indices_are_dense_from_zero(tmp_path: Path) -> None:
    rows = [{"image": f"{number % 7}.jpg", "caption": "x"} for number in range(40)]
    index = read_annotations(files_source(tmp_path, rows), key="data.train", training=True).image_index
    assert np.array_equal(np.unique(index), np.arange(7))
