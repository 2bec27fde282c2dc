"""What do the words of a merged spec stand for? Kinds left to their default are written in, paths become absolute."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from tclx.errors import InputError, Location, Problem
from tclx.spec.fields import ROOT, Place
from tclx.spec.shipped import PREFIX, find_shipped
from tclx.spec.stores import scheme_of
from tclx.spec.yaml import Node

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_PATH_STARTS = ("./", "../", "/", "~", "${")
_PACKAGE = "package:"


def with_default_kinds(node: Node, place: Place | None = ROOT) -> Node:
    """Every mapping that may be of several kinds says which; `schedule: {warmup_steps: 10}` is the default's kind."""
    if place is None or not isinstance(node.value, dict):
        return node
    value = {key: with_default_kinds(child, place.child(key)) for key, child in node.value.items()}
    if place.tag and place.default_kind and place.tag not in value:
        value = {place.tag: Node(place.default_kind, node.where), **value}
    return replace(node, value=value)


def with_absolute_paths(node: Node, problems: list[Problem], place: Place | None = ROOT, key: str = "") -> Node:
    """Expand and anchor every path of the spec; a variable that is not set is added to `problems`."""
    if place is None:
        return node
    if isinstance(node.value, dict):
        kind = node.value.get(place.tag or "")
        place = place.narrowed(str(kind.value)) if kind is not None and kind.value in place.kinds else place
        inside = {}
        for name, child in node.value.items():
            inside[name] = with_absolute_paths(child, problems, place.child(name), f"{key}.{name}" if key else name)
        return replace(node, value=inside)
    if isinstance(node.value, tuple):
        items = enumerate(node.value)
        return replace(node, value=tuple(with_absolute_paths(item, problems, place, f"{key}[{i}]") for i, item in items))
    if isinstance(node.value, str) and _is_path(node.value, place):
        return replace(node, value=absolute_path(node.value, node.where, key, problems))
    return node


def _is_path(value: str, place: Place) -> bool:
    if not value or value in place.choices or value.startswith(_PACKAGE) or (place.may_be_address and scheme_of(value)):
        return False
    return place.is_path or (place.is_hub_name and (value in (".", "..") or value.startswith(_PATH_STARTS)))


def absolute_path(value: str, where: Location, key: str, problems: list[Problem]) -> str:
    """`${NAME}` and `~` expanded; relative paths start at the folder of the file that says them (`--set`: the current).

    `tclx:NAME` is the file of that name that comes with tclx. A variable, a user or such a name that does not exist is added
    to `problems`.
    """
    if value.startswith(PREFIX):
        try:
            return str(find_shipped(value, key=key, where=where).path.resolve())
        except InputError as error:
            problems += error.problems
            return value
    path = Path(_VARIABLE.sub(lambda match: _variable(match[1], where, key, problems), value))
    try:
        path = path.expanduser()
    except RuntimeError:
        problems.append(Problem(key, f"`{path.parts[0]}` names no home folder", where=where))
    folder = Path(where.path).resolve().parent if isinstance(where.path, Path) else Path.cwd()
    absolute = os.path.normpath(folder / path)
    try:
        absolute.encode()
    except UnicodeEncodeError:  # bytes that Python could not read as text in this locale
        hint = "export PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        problem = Problem("", f"the path {str(folder)!a} is no text in this locale", hint)
        problems += [] if problem in problems else [problem]
        return ascii(absolute)
    return absolute


def _variable(name: str, where: Location, key: str, problems: list[Problem]) -> str:
    value = os.environ.get(name, "")
    if not value:
        problems.append(Problem(key, f"the environment variable `{name}` is not set", f"export {name}=...", where))
    return value
