"""Web and object stores by their addresses: which are read, and what does it take?"""

from __future__ import annotations

import re
from importlib.util import find_spec

from tclx.errors import Problem

CLIENTS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""The package that fsspec needs, by the scheme of an address."""
_IN_EXTRA = ("aiohttp", "s3fs")

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://")


def scheme_of(place: object) -> str | None:
    """Of an address in a store; None of a path."""
    match = _ADDRESS.match(place) if isinstance(place, str) else None
    return match[1] if match else None


def client_problem(place: str, *, key: str) -> Problem | None:
    """What is missing to read from there."""
    scheme = scheme_of(place)
    if scheme is None:
        return None
    if scheme not in CLIENTS:
        return Problem(
            key, f"{scheme}:// is no store that is read", f"{', '.join(f'{one}://' for one in CLIENTS)}, or a folder"
        )
    client = CLIENTS[scheme]
    if find_spec(client) is None or find_spec("fsspec") is None:
        hint = "pip install 'tclx[remote]'" if client in _IN_EXTRA else f"pip install {client}"
        return Problem(key, f"the package {client} is not installed, which reads {scheme}://", hint)
    return None
