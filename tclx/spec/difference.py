"""In what do specs differ? Only the keys that are not the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_NAMES = ("name", "variant", "seed")
"""What the runs are called is not what they differ in."""


class Difference(NamedTuple):
    """One key, with its value in each spec."""

    key: str
    values: tuple[str, ...]


_ABSENT = object()


def differences(specs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The deepest keys in which specs differ, in the order of the specs.

    Args:
        specs: as spec.json has them.
    """
    plain = [{key: value for key, value in spec.items() if key not in _NAMES} for spec in specs]
    return list(_differing("", plain))


def flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values in words."""
    found: dict[str, str] = {}
    for key, value in spec.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = in_words(value)
    return found


def in_words(value: Any) -> str:
    """A value as YAML's flow style would have it; keys that are null inside a section are left out."""
    if value is _ABSENT:
        return "-"
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {in_words(one)}" for key, one in value.items() if one is not None)
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_words, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _differing(key: str, values: Sequence[Any]) -> Iterator[Difference]:
    if all(value == values[0] for value in values):
        return
    if not all(isinstance(value, dict) for value in values):
        yield Difference(key, tuple(map(in_words, values)))
        return
    for name in dict.fromkeys(name for value in values for name in value):
        yield from _differing(f"{key}.{name}" if key else name, [value.get(name, _ABSENT) for value in values])
