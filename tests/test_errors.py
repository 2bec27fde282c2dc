"""A mistake is named once, in one line, at the place that the user has in hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tclx.errors import MAX_OF_A_KIND, InputError, Location, Problem, distance, nearest_place, placed
from tclx.spec.merging import SET

OWN, BASE = Path("own.yaml"), Path("base.yaml")
IN_OWN, IN_BASE = Location(OWN, 3, 5), Location(BASE, 7, 9)
ORIGINS = {"": Location(OWN, 1, 1)}


def test_a_problem_is_a_line_of_place_key_words_and_cure() -> None:
    assert str(Problem("a.b", "is wrong", "take 3", IN_OWN)) == "own.yaml:3:5: a.b: is wrong (take 3)"
    assert str(Problem("", "is wrong")) == "is wrong"


def test_what_was_written_nowhere_stands_at_the_section_around_it() -> None:
    origins = {**ORIGINS, "a": IN_OWN, "a.files[2]": IN_BASE}
    assert nearest_place("a.b.c", origins) == IN_OWN
    assert nearest_place("a.files[2]", origins) == IN_BASE
    assert nearest_place("a.files[1]", origins) == IN_OWN
    assert nearest_place("z.y", origins) == ORIGINS[""]


def test_the_command_line_is_nearest_then_the_named_file_then_those_that_it_extends() -> None:
    own = ORIGINS[""]
    assert [distance(where, own) for where in (SET, IN_OWN, IN_BASE, None)] == [0, 1, 2, 3]
    assert distance(IN_OWN, None) == 2


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (IN_BASE, IN_OWN, "own.yaml:3:5: other: at odds with one (base.yaml:7:9): too many (fewer)"),
        (IN_OWN, IN_BASE, "own.yaml:3:5: one: too many (fewer)"),
        (IN_OWN, IN_OWN, "own.yaml:3:5: one: too many (fewer)"),
        (IN_OWN, SET, "--set: other: at odds with one (own.yaml:3:5): too many (fewer)"),
        (None, IN_OWN, "own.yaml:1:1: one: too many (fewer)"),
    ],
)
def test_of_two_keys_at_odds_the_one_that_the_user_wrote_is_where_it_stands(
    one: Location | None, other: Location, said: str
) -> None:
    origins = {**ORIGINS, **({"one": one} if one is not None else {}), "other": other}
    assert str(placed(Problem("one", "too many", "fewer", others=("other", "another")), origins)) == said


def test_of_one_kind_twenty_are_printed_and_the_others_counted() -> None:
    problems = [Problem(f"k{number}", f"`x{number}` is {number} too many") for number in range(MAX_OF_A_KIND + 2)]
    error = InputError(*problems, Problem("z", "something else"))
    lines = str(error).splitlines()
    assert len(lines) == MAX_OF_A_KIND + 2
    assert lines[MAX_OF_A_KIND] == "z: something else"
    assert lines[-1] == "and 2 more like these: is too many"
    assert "more like these" not in str(InputError(*problems[:MAX_OF_A_KIND]))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
