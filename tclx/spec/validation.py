"""What is wrong with a spec, in the user's words? pydantic's errors -> problems with place, key and the nearest right one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tclx.errors import MAX_OF_A_KIND, Problem, distance
from tclx.section import PATTERN_WORDS, Conflict
from tclx.spec.cures import cure
from tclx.spec.fields import ROOT, Place, nearest, nearest_key
from tclx.spec.yaml import Node

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "model_type": "a section with keys",
    "dict_type": "a section with keys",
    "tuple_type": "a list",
    "string_too_short": "text that is not empty",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
    "too_short": ("min_length", "a list of at least {}"),
    "too_long": ("max_length", "a list of at most {}"),
}


class _Spot(NamedTuple):
    """Where in the spec an error belongs."""

    key: str
    place: Place | None
    """What the spec allows there; None at an unknown key."""
    section: Place
    """The section around it."""
    node: Node
    """What stands there, or the section in which it is missing."""


def problems_of(error: ValidationError, tree: Node, root: Place = ROOT) -> list[Problem]:
    """One problem a key, in the order in which pydantic found them.

    Args:
        error: of validating `tree`.
        tree: the mapping that was validated.
        root: what it may hold.
    """
    found: dict[str, tuple[_Spot, list[ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        spot = _spot(detail, tree, root)
        found.setdefault(spot.key, (spot, []))[1].append(detail)
    own = {key: spot for key, spot in found.items() if not _echoes(key, spot[1], found)}
    said = Counter[str]()
    problems = []
    for spot, details in own.values():
        said[details[0]["type"]] += 1
        is_counted_only = said[details[0]["type"]] > MAX_OF_A_KIND  # looking for what was meant takes its time
        problems.append(_problem(spot, details, tree, root) if not is_counted_only else _briefly(spot, details))
    return problems


def _briefly(spot: _Spot, details: list[ErrorDetails]) -> Problem:
    kind = details[0]["type"]
    return Problem(spot.key, "unknown key" if kind == "extra_forbidden" else details[0]["msg"], where=spot.node.where)


def _echoes(key: str, details: list[ErrorDetails], found: dict[str, Any]) -> bool:
    """A list whose items are wrong is also reported as too short."""
    return details[0]["type"] == "too_short" and any(other.startswith(f"{key}[") for other in found)


def _follow(loc: Sequence[str | int], tree: Node, root: Place) -> _Spot:
    """Walk pydantic's location, which mixes keys with names of union members, along the spec and the tree."""
    place: Place | None = root
    section, node, key, parent = root, tree, "", ""
    for part in loc:
        if place is None:
            break
        if part in place.kinds:
            place = place.narrowed(str(part))
        elif isinstance(part, int):
            key, node = f"{key}[{part}]", _item(node, part)
        elif place.sections:
            section, place = place, place.child(part)
            key, node = f"{key}.{part}" if key else part, _entry(node, part)
        elif part == "[key]":  # the name itself is wrong
            node = replace(node, value=key.removeprefix(f"{parent}."))
        elif isinstance(node.value, dict) and part in node.value:  # a section with names of the user's own
            parent, key, node = key, f"{key}.{part}", _entry(node, part)
    return _Spot(key, place, section, node)


def _spot(detail: ErrorDetails, tree: Node, root: Place) -> _Spot:
    if detail["type"].startswith("union_tag"):
        return _tag_spot(detail, tree, root)
    loc = detail["loc"]
    is_short_list = detail["type"] == "missing" and isinstance(loc[-1], int)
    return _follow(loc[:-1] if is_short_list else loc, tree, root)


def _tag_spot(detail: ErrorDetails, tree: Node, root: Place) -> _Spot:
    spot = _follow(detail["loc"], tree, root)
    tag = detail["ctx"]["discriminator"].strip("'")
    return _Spot(f"{spot.key}.{tag}", spot.place, spot.place or root, _entry(spot.node, tag))


def _entry(node: Node, key: str) -> Node:
    return node.value.get(key, node) if isinstance(node.value, dict) else node


def _item(node: Node, index: int) -> Node:
    return node.value[index] if isinstance(node.value, tuple) and index < len(node.value) else node


def _problem(spot: _Spot, details: list[ErrorDetails], tree: Node, root: Place) -> Problem:
    error = details[0]["ctx"]["error"] if details[0]["type"] == "value_error" else None
    if isinstance(error, Conflict):
        return _conflict(spot, error, tree)
    message, hint = _words(spot, details, root)
    return Problem(spot.key, message, hint, spot.node.where)


def _conflict(spot: _Spot, conflict: Conflict, tree: Node) -> Problem:
    """At the one of its keys that is nearest to the user's hands; of several in one file at the last."""
    written = {key: node for key in conflict.keys if (node := _below(spot.node, key)) is not None}
    if not written:
        return Problem(spot.key, str(conflict), conflict.hint, spot.node.where)
    where = {key: node.where for key, node in written.items()}
    key = min(where, key=lambda key: (distance(where[key], tree.where), -where[key].line, -where[key].column))
    prefix = f"{spot.key}." if spot.key else ""
    message, hint = str(conflict), conflict.hint
    others = [other for other, node in written.items() if other != key and node.value is not None]
    if others and any(where[other].path != where[key].path for other in others):
        message += "; " + " and ".join(f"`{prefix}{other}` stands at {where[other]}" for other in others)
    if conflict.one_too_many and others:
        takes_away = "add --set {}=null" if not isinstance(where[key].path, Path) else "`{}: null` beside it"
        hint = " and ".join(takes_away.format(f"{prefix}{other}") for other in others)
    return Problem(f"{prefix}{key}", message, hint, where[key])


def _below(node: Node, path: str) -> Node | None:
    for key in path.split("."):
        if not isinstance(node.value, dict) or key not in node.value:
            return None
        node = node.value[key]
    return node


def _words(spot: _Spot, details: list[ErrorDetails], root: Place) -> tuple[str, str | None]:
    detail = details[0]
    kind = detail["type"]
    if kind == "extra_forbidden":
        return "unknown key", nearest_key(str(detail["loc"][-1]), spot.section, root)
    if kind == "missing":
        return ("too few values" if isinstance(detail["loc"][-1], int) else "missing"), None
    if kind == "union_tag_not_found":
        return "missing", _one_of(list(spot.section.kinds))
    if kind == "union_tag_invalid":
        return _must_be(_one_of(list(spot.section.kinds)), spot.node), _did_you_mean(spot.node, list(spot.section.kinds))
    if kind == "value_error":
        return str(detail["ctx"]["error"]), None
    expected = [words for detail in details if (words := _expected(detail, spot.place))]
    if not expected:
        return detail["msg"], None
    choices = spot.place.choices if spot.place else ()
    hint = _did_you_mean(spot.node, choices) or cure([detail["type"] for detail in details], spot.key, spot.node, spot.place)
    return _must_be(" or ".join(expected), spot.node), hint


def _expected(detail: ErrorDetails, place: Place | None) -> str | None:
    kind = detail["type"]
    if kind == "string_pattern_mismatch":
        return PATTERN_WORDS[detail["ctx"]["pattern"]]
    if kind == "literal_error" and place is not None:
        return _one_of(place.choices)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return words.format(_number(detail["ctx"][name]))
    return _KINDS.get(kind)


def _one_of(words: Sequence[str]) -> str:
    return f"`{words[0]}`" if len(words) == 1 else "one of " + ", ".join(words)


def _must_be(expected: str, node: Node) -> str:
    return f"must be {expected}, not {_shown(node, as_text='number' in expected or 'true' in expected)}"


def _did_you_mean(node: Node, words: Sequence[str]) -> str | None:
    match = nearest(node.value, words) if isinstance(node.value, str) else None
    return f"did you mean `{match}`?" if match else None


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _shown(node: Node, *, as_text: bool) -> str:
    """A value as the user may have written it; a word where a number is due is called a text, since it may look like one."""
    if isinstance(node.value, dict):
        return "a section"
    if isinstance(node.value, tuple):
        return f"a list of {len(node.value)}"
    if isinstance(node.value, str):
        word = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
        return f"the text `{word}`" if as_text else f"`{word}`"
    return json.dumps(node.value)
