"""Promises of VQA's answers: compared as VQA's evaluation states, scored as it averages, and lists that are lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tclx.errors import InputError
from tclx.tasks.vqa.answers import most_frequent, normalised, read_answer_list, vqa_accuracy
from tclx.tasks.vqa.evaluation import answer_list
from tclx.tasks.vqa.task import VqaEvaluation
from tests.tasks.downstream import downstream_spec
from tests.tasks.test_downstream import evaluated


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("Yes", "yes"),
        ("a dog", "dog"),
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("dont know", "don't know"),
        ("isnt", "isn't"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("t-shirt", "t shirt"),
        ("what?!", "what"),
        ("  spaced   out ", "spaced out"),
    ],
)
def test_answers_are_compared_as_the_rules_say(answer: str, compared: str) -> None:
    assert normalised(answer) == compared


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # Each of ten left out in turn: min(1, others that say the same / 3), by hand.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_accuracy_is_the_mean_over_nine_of_ten(matches: int, accuracy: float) -> None:
    assert vqa_accuracy("Cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(accuracy)


def test_of_few_answers_what_is_left_divides() -> None:
    assert vqa_accuracy("cat", ["cat"]) == 1.0
    assert vqa_accuracy("cat", ["dog"]) == 0.0
    assert vqa_accuracy("cat", ["cat", "dog"]) == pytest.approx(0.5)
    assert most_frequent(["a dog", "Dog", "cat"]) == "dog"


def test_a_list_of_answers_is_chosen_from_and_what_it_lacks_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["yes", "no"]))
    found = evaluated("vqa", **{"evaluation.vqa": {"answer_list": str(path)}})
    assert {one["answer"] for one in found.predictions or ()} <= {"yes", "no"}
    assert 0 < found.metrics["unlisted"] < 100
    assert evaluated("vqa").metrics["unlisted"] < found.metrics["unlisted"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is an empty list"),
        ("{}", "it holds a dict, not a list"),
        ('["yes", 3]', "entry 1 is 3, not a text"),
        ('["yes", " "]', "entry 1 is ' ', not a text"),
        ('["yes", "no", "yes"]', "'yes' stands there 2 times"),
        ("nonsense", "it is damaged"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"^evaluation\.vqa\.answer_list: ") as refused:
        read_answer_list(str(path))
    assert message in str(refused.value)


def test_the_training_rows_are_read_once_for_all_evaluations_of_a_run_and_anew_when_their_file_changes(tmp_path: Path) -> None:
    """Counted as openings of the file, by the interpreter's own audit of `open`."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    path = tmp_path / "rows.json"
    row = {"image": "a.png", "question": "what?", "question_id": 1, "dataset": "vqa"}
    path.write_text(json.dumps([{**row, "answer": answer} for answer in ("red", "blue", "red")]))
    (tmp_path / "list.json").write_text(json.dumps(["red"]))
    source = {"source": "files", "form": "vqa", "files": [str(path)], "image_root": str(tmp_path)}
    spec = downstream_spec("vqa", **{"data.train": source})
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]) == str(path):
            opened.append(event)

    sys.addaudithook(hook)  # it cannot be taken away, and does nothing after this test
    assert answer_list(spec, VqaEvaluation(answer_list=str(tmp_path / "list.json"))) == ["red"]
    assert len(opened) == 0
    assert answer_list(spec, VqaEvaluation()) == ["red", "blue"]
    once = len(opened)
    assert once > 0
    assert answer_list(spec, VqaEvaluation()) == ["red", "blue"]
    assert len(opened) == once
    path.write_text(json.dumps([{**row, "answer": "green"}]))
    opened.clear()
    assert answer_list(spec, VqaEvaluation()) == ["green"]
    assert len(opened) == once
    watching = False
