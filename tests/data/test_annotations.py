from __future__ import annotations

import json
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
    assert [read.images[number] for number in read.image_of_row] == ["a.jpg", "b.jpg", "a.jpg"]
    assert read.image_index.tolist() == [0, 1, 0]
    assert read.num_empty_captions == 1


def test_the_retrieval_form_tells_images_apart_by_image_id(tmp_path: Path) -> None:
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
        ({"image": "", "caption": "x"}, "row 1: `image` is empty (expected the image's path)"),
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
        ("", "rows.json is empty (expected rows with an image and its captions"),
        (" \n", "rows.json is empty"),
        ('[{"image": "a",\n "caption" "x"}]', "rows.json:2:12: not valid JSON: Expecting ':' delimiter"),
        ('{"image": "a"}\n{"image": "b"}', "rows.json:2: row 1: `caption` is missing (the row has: image)"),
        ('{"image": "a"}', "rows.json:1: row 0: `caption` is missing"),
        ("{}", "rows.json holds an empty object"),
        ('{"model": {}, "data": []}', "rows.json holds one object with the keys model, data"),
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("indent", [None, 1])
def test_files_as_windows_writes_them_are_read(tmp_path: Path, encoding: str, indent: int | None) -> None:
    rows = [{"image": f"Übung {number}.jpg", "caption": "日本 🙂\r\n"} for number in range(3)]
    source = files_source(tmp_path, "")
    text = json.dumps(rows, ensure_ascii=False, indent=indent).replace("\n", "\r\n") + "\r\n"
    Path(source.files[0]).write_bytes(text.encode(encoding))
    read = read_annotations(source, key="data.train", training=True)
    assert list(read.images) == [row["image"] for row in rows]
    assert set(read.captions) == {"日本 🙂\r\n"}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_fault_deep_in_a_long_file_has_its_line_and_column(tmp_path: Path, indent: int | None) -> None:
    """Over several pieces, with characters of two bytes on their borders."""
    rows: list[dict[str, Any]] = [{"image": f"{number}.jpg", "caption": "ü" * (number % 97)} for number in range(30_000)]
    rows[29_000]["caption"] = 7
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    assert len(text.encode()) > 3 << 20
    line = text.count("\n", 0, text.index('"29000.jpg"'))
    assert f"rows.json:{line if indent else 1}: row 29000: `caption` is a number" in problems(tmp_path, text)
    place = text.index('"29500.jpg"') - 2
    broken = text[:place] + ";" + text[place + 1 :]
    column = place - text.rfind("\n", 0, place)
    expected = f"rows.json:{text.count(chr(10), 0, place) + 1}:{column}: not valid JSON: Expecting ':' delimiter (row 29500)"
    assert expected in problems(tmp_path, broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2,]", "rows.json:1:7: not valid JSON: a comma before the end of the list"),
        (b"[{}] []", "rows.json:1:6: not valid JSON: the list ends and something follows (one list a file)"),
        (b"[{}", "rows.json:1:4: not valid JSON: the file ends within the list: it was cut short"),
        (b'[\n{"image": "a', "(the file ends within a row: it was cut short)"),
        (b"[{'image': 'a'}]", "(this is Python's own notation: write it with json.dump)"),
        (b'[{"image": "a",\n"image": "b"}]', "rows.json:1:2: row 0: `image` stands there twice (which of the two is meant?)"),
        (b'[{"image": "a", "caption": NaN}]', "`caption` is nan, a missing value as pandas writes it"),
        (b'[{"image": "a", "caption": "x", "image_id": true}]', "`image_id` is true or false"),
        (b'[{"image": "a\\u0000", "caption": "x"}]', "`image` holds a NUL character"),
        (b'[{"image": "a", "caption": ["x", "\\ud83d"]}]', "`caption` holds half a character"),
        (b'[{"image": "a", "image_id": ' + b"1" * 5000 + b"}]", "rows.json:1:2: row 0 holds a number of thousands of digits"),
        (b"\x1f\x8b\x08", "rows.json is a gzip archive, no annotation file (unpack it first)"),
        (b"PAR1....", "rows.json is a Parquet table that cannot be read"),
        (b"\xff\xd8\xff\xe0", "rows.json is a JPEG image, no annotation file"),
        (b"<!DOCTYPE html><html>", "rows.json is a web page (HTML)"),
        (b"- image: a.jpg\n", "rows.json:1:1: looks like YAML, which holds no rows"),
        (b"once upon a time\nthere was\n", "rows.json:1: is of no known format: 'once upon a time'"),
        (b'{"image": {"0": "a"}, "caption": {"0": "x"}}', "a table of pandas is written with orient='records'"),
    ],
)
def test_what_else_people_have_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    source = files_source(tmp_path, "")
    Path(source.files[0]).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_annotations(source, key="data.train", training=True)
    assert message in str(caught.value)


def test_a_row_without_end_is_refused_before_memory_is(tmp_path: Path) -> None:
    assert "row 0 is longer than 16,777,216 characters" in problems(tmp_path, '[{"image": "' + "x" * (40 << 20))
