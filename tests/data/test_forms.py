"""Promises of the rows of downstream tasks: what files may hold, and that what is made of scenes is true."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tclx.data.annotations import read_annotations
from tclx.data.forms.phrases import COUNTS, statement
from tclx.data.forms.table import FORMS
from tclx.data.forms.vqa import answers_of
from tclx.data.scenes import COLORS, SHAPES, Scene, Scenes, relation
from tclx.data.sources.opening import open_source
from tclx.errors import InputError
from tclx.spec.data import ScenesSource
from tests.data.small import files_source

GOOD: dict[str, dict[str, Any]] = {
    "entailment": {"image": "123", "sentence": "a man sleeps", "label": "neutral"},
    "nlvr": {"images": ["l.png", "r.png"], "sentence": "both are red", "label": "True"},
    "vqa": {"image": "a.jpg", "question": "what is it?", "answer": ["cat", "cat", "dog"], "question_id": 7, "dataset": "vqa"},
}


def refusal(folder: Path, form: str, *rows: Any, training: bool = True) -> str:
    with pytest.raises(InputError) as refused:
        read_annotations(files_source(folder, list(rows), form=form), key="data.train", training=training)
    return str(refused.value)


def without(form: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD[form], **changes}.items() if value is not ...}


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = {
        form: read_annotations(files_source(tmp_path, [row], form=form), key="data.train", training=True)
        for form, row in GOOD.items()
    }
    assert list(found["entailment"].images) == ["123.jpg"]  # the published files leave the ending out
    assert [json.loads(one.targets[0]) for one in found.values() if one.targets] == [1, 1, [["cat", "cat", "dog"], 7, False]]
    assert list(found["nlvr"].images) == ["l.png", "r.png"]
    assert found["nlvr"].images_of_row.tolist() == [[0, 1]]
    assert [list(one.captions) for one in found.values()] == [["a man sleeps"], ["both are red"], ["what is it?"]]


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (
            "entailment",
            without("entailment", label="maybe"),
            "row 0: `label` is 'maybe' (one of contradiction, neutral, entailment)",
        ),
        ("entailment", without("entailment", sentence=" "), "row 0: `sentence` is ' ' (expected text)"),
        ("entailment", GOOD["vqa"], "row 0: `sentence` is missing (it is a row of `form: vqa`)"),
        ("entailment", {"image": "a.jpg", "caption": "x"}, "row 0: `sentence` is missing (it is a row of `form: pretrain`)"),
        ("pretrain", GOOD["vqa"], "row 0: `caption` is missing (it is a row of `form: vqa`)"),
        ("nlvr", without("nlvr", images=["l.png"]), "row 0: `images` holds 1 image (a left and a right one)"),
        ("nlvr", without("nlvr", images="l.png"), "row 0: `images` is 'l.png' (a list of two paths, the left image first)"),
        ("nlvr", without("nlvr", label="yes"), "row 0: `label` is 'yes' (True or False)"),
        ("vqa", without("vqa", answer=...), "row 0: `answer` is missing (text, or a list of texts)"),
        ("vqa", without("vqa", answer=[]), "row 0: `answer` is an empty list (at least one text)"),
        ("vqa", without("vqa", answer=[3]), "row 0: `answer` is [3] (text, or a list of texts)"),
        ("vqa", without("vqa", question_id=[1]), "row 0: `question_id` is [1] (text or a whole number)"),
        ("vqa", "text", "row 0: is text (expected an object with `image` and `question`)"),
        ("vqa", without("vqa", question="nul\0"), "row 0: `question` holds a NUL character"),
    ],
)
def test_a_wrong_row_is_named_in_one_line(tmp_path: Path, form: str, row: Any, message: str) -> None:
    found = refusal(tmp_path, form, row)
    assert message in found
    assert found.count("\n") == 0


def test_answers_may_be_missing_where_only_a_server_has_them(tmp_path: Path) -> None:
    row = without("vqa", answer=...)
    read = read_annotations(files_source(tmp_path, [row], form="vqa"), key="data.test", training=False)
    assert read.targets is not None
    assert answers_of(json.loads(read.targets[0])).given == ()


@pytest.mark.parametrize(
    ("row", "weights"),
    [
        (GOOD["vqa"], {"cat": 2 / 3, "dog": 1 / 3}),
        ({**GOOD["vqa"], "answer": "cat", "dataset": "vg"}, {"cat": 0.5}),
        ({**GOOD["vqa"], "answer": "cat"}, {"cat": 1.0}),
    ],
)
def test_weights_of_answers_are_their_shares_and_a_half_for_visual_genome(
    row: dict[str, Any], weights: dict[str, float]
) -> None:
    assert answers_of(FORMS["vqa"].read(row, training=True).target).weights == pytest.approx(weights)


# --------------------------------------------------------------------------------------------------------------- made of scenes


def scenes(num_images: int = 400) -> list[Scene]:
    return Scenes(ScenesSource(source="scenes", split="train", num_images=num_images)).facts


def is_true(scene: Scene, said: str) -> bool:
    """A reader of its own for `statement`."""
    words = said.split()
    if words[-1] in ("shape", "shapes"):
        return COUNTS.index(words[-2]) == len(scene.objects)
    color, shape = words[-1 - len(["on", "a", "x", "background"]) - 1 :][:2] if words[-1] == "background" else words[-2:]
    there = any((item.color, item.shape) == (color, shape) for item in scene.objects)
    return there and (words[-1] != "background" or words[-2] == scene.background)


def test_statements_are_true_or_false_as_asked() -> None:
    random = Random(0)
    for scene in scenes():
        for truth in (True, False):
            for _ in range(5):
                said = statement(scene, random, truth=truth)
                assert is_true(scene, said) is truth, (scene, said)


def test_entailments_have_every_label_once_a_scene() -> None:
    items = list(FORMS["entailment"].of_scenes(scenes(50), Random(1)))
    assert Counter(item.target for item in items) == {0: 50, 1: 50, 2: 50}
    for item in items:
        scene = scenes(50)[int(item.images[0])]
        if item.target != 1:
            assert is_true(scene, item.text) is (item.target == 2)


def truth_of(left: Scene, right: Scene, said: str) -> bool:
    """A reader of its own for the statements about two scenes."""
    words = said.split()
    if said == "both images have the same number of shapes":
        return len(left.objects) == len(right.objects)
    if said == "the left image has more shapes than the right one":
        return len(left.objects) > len(right.objects)
    if said == "both images have the same background":
        return left.background == right.background
    if said.startswith("there are"):
        return len(left.objects) + len(right.objects) == COUNTS.index(words[2])
    if said.startswith("exactly one"):
        shows = [any([item.color, item.shape] == words[-2:] for item in scene.objects) for scene in (left, right)]
        return shows[0] != shows[1]
    side = left if words[1] == "left" else right
    if words[-1] == "shape":
        return any(item.color == words[-2] for item in side.objects)
    return any(item.shape == words[-1] for item in side.objects)


def test_statements_about_two_scenes_are_true_for_half_and_truth_cannot_be_told_from_their_words() -> None:
    facts = scenes()
    items = list(FORMS["nlvr"].of_scenes(facts, Random(2)))
    assert Counter(item.target for item in items) == {0: 400, 1: 400}
    for item in items:
        left, right = (facts[int(number)] for number in item.images)
        assert truth_of(left, right, item.text) is bool(item.target), item
    kinds: dict[str, Counter[int]] = {}
    for item in items:
        kinds.setdefault(" ".join(item.text.split()[:2]), Counter())[item.target] += 1
    assert all(0.35 < count[1] / count.total() < 0.65 for count in kinds.values()), kinds


def test_questions_have_the_answer_that_the_facts_give() -> None:
    facts = scenes()
    names = {name: shape for shape, words in SHAPES.items() for name in words}
    asked = Counter()
    for item in FORMS["vqa"].of_scenes(facts, Random(3)):
        scene = facts[int(item.images[0])]
        (answer,) = answers_of(item.target).given
        words = item.text.rstrip("?").split()
        asked[" ".join(words[:2])] += 1
        if item.text.startswith("what color is the background"):
            assert answer == scene.background
        elif item.text.startswith("what color"):
            assert [one.color for one in scene.objects if one.shape == names[" ".join(words[4:])]] == [answer]
        elif item.text.startswith("what shape"):
            assert [one.shape for one in scene.objects if one.color == words[3]] == [answer]
        elif item.text.startswith("how many"):
            assert COUNTS.index(answer) == len(scene.objects)
        elif item.text.startswith("is there"):
            there = any([one.color, one.shape] == words[-2:] for one in scene.objects)
            assert answer == ("yes" if there else "no")
        elif "from the" in item.text:
            first, second = (next(one for one in scene.objects if one.color == color) for color in (words[3], words[-2]))
            assert answer == relation(first, second)
        else:
            assert item.text.startswith("where is the")
            assert len([one for one in scene.objects if one.color == words[3]]) == 1
    assert set(asked) == {"what color", "what shape", "how many", "is there", "where is"}
    assert len(COLORS) == 8


@pytest.mark.parametrize("form", FORMS)
def test_a_source_of_scenes_gives_the_same_items_whenever_it_is_opened(form: str) -> None:
    spec = ScenesSource(source="scenes", split="val", num_images=20, form=form)  # type: ignore[arg-type]
    first, second = (open_source(spec, key="data.val") for _ in range(2))
    assert list(first.captions()) == list(second.captions())
    assert first.size.num_images == 20
    rows: Any = first.rows(None)  # type: ignore[arg-type]
    assert rows.num_rows == first.size.num_rows
    assert len(rows.images(0)) == FORMS[form].num_images
