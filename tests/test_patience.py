"""Promises of waiting for what is away: it is told once, bounded, and an answer is an answer."""

from __future__ import annotations

from itertools import repeat

import pytest

from tclx.patience import retried


class Away(Exception):
    pass


def asked(*, times_away: int, seconds: float = 60.0, last: Exception | None = None) -> tuple[int, list[str]]:
    said: list[str] = []
    num_tries = 0

    def action() -> int:
        nonlocal num_tries
        num_tries += 1
        if num_tries <= times_away:
            raise Away(str(num_tries))
        if last is not None:
            raise last
        return num_tries

    try:
        found = retried(
            action,
            is_away=lambda error, took: isinstance(error, Away) and took < 60,
            seconds=seconds,
            waits=repeat(0.0),
            say=lambda error: said.append(str(error)),
        )
    except Away:
        found = -num_tries
    return found, said


def test_it_is_tried_until_it_answers_and_told_once() -> None:
    assert asked(times_away=0) == (1, [])
    assert asked(times_away=4) == (5, ["1"])


def test_patience_has_an_end() -> None:
    assert asked(times_away=10**9, seconds=0.0) == (-1, [])
    assert asked(times_away=10**9, seconds=0.05)[0] < -1


def test_another_error_is_an_answer() -> None:
    with pytest.raises(ZeroDivisionError):
        asked(times_away=2, last=ZeroDivisionError())


def test_what_waits_end_is_tried_once_more() -> None:
    tries = iter([Away(), 7])

    def action() -> object:
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    assert retried(action, is_away=lambda *_: True, seconds=60, waits=[0.0], say=lambda _: None) == 7
