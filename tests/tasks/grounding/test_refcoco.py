"""Promises of reading RefCOCO's form: what is read, and what is wrong with a row is said in a line."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tclx.data.images import BadImage, read_size
from tclx.errors import InputError
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.grounding.refcoco import Read, read_expressions
from tclx.tasks.grounding.task import GroundingSpec, ReferringExpressions
from tests.conftest import PROJECT
from tests.train.toy import toy_spec

from .data import BOXES, DETECTIONS, ROWS, write_refcoco

KEY = "evaluation.grounding.test"


def read(section: dict[str, Any]) -> Read:
    return read_expressions(ReferringExpressions(**section), key=KEY)


def task(section: dict[str, Any]) -> GroundingSpec:
    spec: ExperimentSpec = toy_spec(**{"evaluation.grounding": {"test": section}})
    assert spec.evaluation.grounding is not None
    return spec.evaluation.grounding


def test_rows_come_in_the_order_of_their_images(tmp_path: Path) -> None:
    found = read(write_refcoco(tmp_path))
    assert [item.text for item in found.items] == ["the red one", "left, please", "a blue thing"]
    assert [item.image for item in found.items] == [0, 0, 1]
    assert [item.box for item in found.items] == [(2, 3, 10, 12.5), (0, 0, 8, 8), (20, 0, 20, 30)]
    assert [item.part for item in found.items] == ["testA", "testA", "testB"]
    assert found.items[0].candidates == ((1, 3, 10, 12), (20, 3, 9, 9), (0, 0, 8, 8)), "a score behind a box is no part of it"
    assert found.sizes == [(48, 32), (40, 30)]
    assert [path.name for path in found.paths] == ["COCO_train2014_000000000007.png", "other_000000000009.png"]


def test_true_boxes_may_be_a_list_of_annotations(tmp_path: Path) -> None:
    listed = [{"ref_id": int(number), "bbox": box, "category_id": 1} for number, box in BOXES.items()]
    assert read(write_refcoco(tmp_path / "a", boxes=listed)).items == read(write_refcoco(tmp_path / "b")).items


@pytest.mark.parametrize("name", ["COCO_train2014_000000000007.png", "COCO_train2014_000000000007", "7"])
def test_detections_are_found_under_path_name_or_number(tmp_path: Path, name: str) -> None:
    section = write_refcoco(tmp_path, rows=ROWS[:1], detections={name: DETECTIONS["7"]})
    assert read(section).items[0].candidates == ((1, 3, 10, 12), (20, 3, 9, 9), (0, 0, 8, 8))


def test_an_image_id_says_which_detections_are_meant(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path, rows=[{**ROWS[0], "image_id": 9}], detections={"7": [[0, 0, 3, 3]], "9": [[1, 1, 5, 5]]})
    assert read(section).items[0].candidates == ((1, 1, 5, 5),)


def test_what_reaches_out_by_rounding_is_cut(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path, rows=ROWS[:1], boxes={"11": [-0.5, 20, 48.8, 13]}, detections={"7": [[40, 0, 8.2, 9]]})
    assert read(section).items[0].box == pytest.approx((0, 20, 48, 12))
    assert read(section).items[0].candidates == (pytest.approx((40, 0, 8, 9)),)


def test_a_turned_photograph_has_the_size_that_is_seen(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path, rows=[{**ROWS[0], "image": "turned.jpg"}], detections=None)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "images" / "turned.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read(section).sizes == [(20, 40)]
    assert read_expressions(ReferringExpressions(**section), key=KEY, as_stored=True).sizes == [(40, 20)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"no image", "is not an image in a known format"), (b"\xff\xd8\xff", "known format")],
)
def test_the_size_of_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        read_size(path)


def changed(**changes: Any) -> dict[str, Any]:
    """The rows, boxes and detections of which one is changed: `rows`, `boxes`, `detections` at a place."""
    all_of = {"rows": copy.deepcopy(ROWS), "boxes": dict(BOXES), "detections": dict(DETECTIONS)}
    for name, change in changes.items():
        all_of[name].update(change) if name != "rows" else all_of["rows"][1].update(change)
    return all_of


def without(name: str) -> dict[str, Any]:
    rows = [{key: value for key, value in row.items() if key != name} for row in ROWS]
    return {**changed(), "rows": [ROWS[0], rows[1], ROWS[2]]}


FILE, ROW = rf"{KEY}.file: .*/rows\.json", "row 1"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no text": (without("text"), rf"{FILE}: {ROW}: `text` is missing \(the row has: image, ref_id, split\)"),
    "no image": (without("image"), f"{FILE}: {ROW}: `image` is missing"),
    "no ref_id": (without("ref_id"), f"{FILE}: {ROW}: `ref_id` is missing"),
    "number for text": (changed(rows={"text": 3}), f"{FILE}: {ROW}: `text` is 3 "),
    "no word": (changed(rows={"text": " ... "}), f"{FILE}: {ROW}: `text` is .*an expression with a word"),
    "true for ref_id": (changed(rows={"ref_id": True}), f"{FILE}: {ROW}: `ref_id` is true"),
    "number for image": (changed(rows={"image": 9}), f"{FILE}: {ROW}: `image` is 9"),
    "number for split": (changed(rows={"split": 9}), f"{FILE}: {ROW}: `split` is 9"),
    "list for image_id": (changed(rows={"image_id": [1]}), rf"{FILE}: {ROW}: `image_id` is \[1\]"),
    "missing image": (changed(rows={"image": "gone.png"}), f"{FILE}: {ROW}: image .*gone.png: does not exist"),
    "another task": (
        {**changed(), "rows": [{"image": "a", "caption": ["x"]}]},
        "row 0: `text` is missing .`caption` is of pre-training or retrieval: an annotation of another task",
    ),
    "VQA": ({**changed(), "rows": [{"image": "COCO_train2014_000000000007.png", "question": "x"}]}, "`question` is of VQA"),
    "no object": ({**changed(), "rows": ["x"]}, 'row 0: is "x"'),
    "no list": ({**changed(), "rows": {"a": 1}}, f"{KEY}.file: .* `image`, `text` and `ref_id`"),
    "no rows": ({**changed(), "rows": []}, "rows.json has no rows"),
    "no true box": (
        changed(rows={"ref_id": 99}),
        rf"{KEY}.boxes: .*boxes\.json: {ROW} of .*: there is no true box of ref_id 99",
    ),
    "three numbers": (changed(boxes={"12": [1, 2, 3]}), r"the true box of ref_id 12 is \[1, 2, 3\]"),
    "five numbers": (changed(boxes={"12": [1, 2, 3, 4, 5]}), "the true box of ref_id 12 is"),
    "text in a box": (changed(boxes={"12": [1, 2, "3", 4]}), "the true box of ref_id 12 is"),
    "no area": (changed(boxes={"12": [1, 2, 0, 4]}), "the true box of ref_id 12, .*has no area"),
    "negative": (changed(boxes={"12": [5, 5, -3, 4]}), "has no area"),
    "outside": (changed(boxes={"12": [30, 0, 20, 10]}), "is not within its image of 40 x 30 pixels"),
    "before the corner": (changed(boxes={"12": [-2, 0, 20, 10]}), "is not within its image"),
    "below": (changed(boxes={"12": [0, 25, 20, 10]}), "is not within its image"),
    "no boxes": ({**changed(), "boxes": {}}, rf"{KEY}.boxes: .*boxes\.json holds {{}}"),
    "boxes of nothing": ({**changed(), "boxes": 3}, "boxes.json holds 3"),
    "no bbox": ({**changed(), "boxes": [{"ref_id": 1}]}, "boxes.json: row 0 is"),
    "two boxes": (
        {**changed(), "boxes": [{"ref_id": 1, "bbox": [0, 0, 1, 1]}, {"ref_id": 1, "bbox": [0, 0, 2, 2]}]},
        "row 1: ref_id 1 has another box before",
    ),
    "no detections of an image": (
        {**changed(), "detections": {"7": DETECTIONS["7"]}},
        rf'{KEY}.detections: .*dets\.json: {ROW} of .*: there are no boxes of image other_000000000009\.png, under .*"9"',
    ),
    "empty detections": (changed(detections={"9": []}), "there are no boxes of image other"),
    "number for detections": (changed(detections={"9": 3}), 'what stands under "9" is 3'),
    "a detection outside": (changed(detections={"9": [[0, 0, 9, 9], [0, 0, 99, 9]]}), 'box 1 of image "9", .*is not within'),
    "a detection of text": (changed(detections={"9": ["x"]}), 'box 0 of image "9" is "x"'),
    "detections in a list": ({**changed(), "detections": [1]}, r"dets.json holds \[1\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line_before_training(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    section = write_refcoco(tmp_path, **content)
    with pytest.raises(InputError, match=message) as refused:
        task(section).images("test")
    assert len(str(refused.value).splitlines()) == 1


def test_every_wrong_row_is_named(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path, rows=[{**row, "text": 0} for row in ROWS])
    with pytest.raises(InputError) as refused:
        task(section).images("test")
    assert re.findall(r"row (\d)", str(refused.value)) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["rows", "boxes", "dets"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, name: str) -> None:
    section = write_refcoco(tmp_path)
    (tmp_path / f"{name}.json").write_text('{"a": ')
    with pytest.raises(InputError, match=rf"{name}\.json"):
        task(section).images("test")


def test_the_files_of_both_splits_must_be_there(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path)
    paths = list(task(section).paths())
    assert [each.key for each in paths] == ["test.file", "test.image_root", "test.boxes", "test.detections"]
    assert [each.kind for each in paths] == ["file", "folder", "file", "file"]
    assert all(Path(each.path).exists() for each in paths)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # open() in a line
def test_what_the_docs_make_of_refers_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_refcoco(tmp_path / "made")
    sentences = [{"sent": "the red one", "sent_id": 1}, {"sent": "left", "sent_id": 2}]
    refs = [{"ref_id": 11, "ann_id": 5, "image_id": 7, "split": "testA", "sentences": sentences}]
    Path("refs(unc).p").write_bytes(pickle.dumps(refs))
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.png", "width": 48, "height": 32}]
    Path("instances.json").write_text(json.dumps({"images": images, "annotations": [{"id": 5, "bbox": [2, 3, 10, 12.5]}]}))
    Path("res101_coco_minus_refer_notime_dets.json").write_text(json.dumps([{"image_id": 7, "box": [1, 3, 10, 12]}]))
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs" / "evaluation.md").read_text(), re.DOTALL | re.MULTILINE)
    (block,) = (one for one in blocks if "refs(unc).p" in one)
    exec(compile(block, "evaluation.md", "exec"), {})
    section = {"file": "test.json", "image_root": "made/images", "boxes": "boxes.json", "detections": "dets.json"}
    found = read({"source": "refcoco", **section})
    assert [(item.text, item.box, item.candidates, item.part) for item in found.items] == [
        (text, (2, 3, 10, 12.5), ((1, 3, 10, 12),), "testA") for text in ("the red one", "left")
    ]
