"""How long is something waited for that is away for a while: a controller, a database, a full disk?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def retried(
    action: Callable[[], T],
    *,
    is_away: Callable[[Exception, float], bool],
    seconds: float,
    waits: Iterable[float],
    say: Callable[[Exception], None],
) -> T:
    """What an action gives, which is tried again as long as what it asks is away.

    Args:
        is_away: whether an error says so, which came after so many seconds; any other error is an answer.
        seconds: from the first try; what fails after them is not tried again.
        waits: seconds before each further try.
        say: told of the first time.

    Raises:
        Exception: whatever the action raised last.
    """
    deadline, told = time.monotonic() + seconds, False
    for wait in waits:
        asked_at = time.monotonic()
        try:
            return action()
        except Exception as error:
            now = time.monotonic()
            if not is_away(error, now - asked_at) or now >= deadline:
                raise
            if not told:
                say(error)
            told = True
        time.sleep(wait)
    return action()
