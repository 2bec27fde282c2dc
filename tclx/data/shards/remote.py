"""Shards that lie in a web or object store, read in parts through fsspec (extra `tclx[remote]`).

What a store's client raises is of its own kind, and differs from store to store: here it becomes `Unreachable`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tclx.errors import InputError
from tclx.spec.stores import client_problem

T = TypeVar("T")

TRIES = 4
FIRST_PAUSE_SECONDS = 0.5
"""Before the second try; twice as long before each further one."""
PART_BYTES = 16 << 20
"""Of a large file, what one request asks for: a failure costs no more than that."""


class Unreachable(Exception):
    """A store does not give what is there; completes `ADDRESS: `."""


def size_of(address: str) -> int:
    """Bytes.

    Raises:
        Unreachable: it does not exist, or the store does not answer.
    """
    return int(info_of(address)["size"])


def read_part(address: str, offset: int, length: int) -> bytes:
    """So many bytes from a place on; fewer at the end of the file.

    Raises:
        Unreachable: as `size_of`, or the server answers with other parts than it is asked for.
    """
    content: bytes = _asked(lambda: _store(address).cat_file(address, start=offset, end=offset + length))
    if len(content) > length:
        raise Unreachable("the server sends whole files where a part is asked for (no range requests): copy the shards here")
    return content


def info_of(address: str) -> dict[str, str]:
    """What tells a file from a later one of its name, its size among it; raises as `size_of`."""
    found = _asked(lambda: _store(address).info(address))
    if found.get("size") is None:
        raise Unreachable("the server does not say how large it is")
    return {name: str(found[name]) for name in ("size", "ETag", "LastModified", "mtime") if found.get(name) is not None}


def _store(address: str) -> Any:
    """One a process: fsspec makes another after a fork."""
    import fsspec

    if problem := client_problem(address, key=""):
        raise InputError(problem)
    return fsspec.core.url_to_fs(address)[0]


def _asked(question: Callable[[], T]) -> T:
    for pause in [*(FIRST_PAUSE_SECONDS * 2**number for number in range(TRIES - 1)), None]:
        try:
            return question()
        except FileNotFoundError as error:
            # fsspec says so of whatever a web server answers that is an error.
            if getattr(error.__cause__, "status", 404) in (404, 410):
                raise Unreachable("it does not exist") from None
            failure: BaseException = error.__cause__ or error
        except PermissionError as error:
            raise Unreachable(f"it may not be read: {error or 'permission denied'}") from error
        except InputError:
            raise
        except Exception as error:  # each store's client has its own
            failure = error
        if pause is not None:
            time.sleep(pause)
    raise Unreachable(f"it cannot be read, at the {TRIES}th try: {failure or type(failure).__name__}") from failure
