"""In what do specs differ? Only the keys that are not the same everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import isclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

if TYPE_CHECKING:
    from tclx.section import Section
    from tclx.spec.experiment import ExperimentSpec

_NAMES = ("name", "variant", "seed")
"""What the runs are called is not what they differ in."""


_OF_A_SOURCE = {"cache": True, "sources": {"__all__": {"data": {"cache": True}}}}
CHANGES_NO_RESULT: dict[str, Any] = {
    "launch": True,
    "tracking": True,
    "data": {"num_workers": True, "train": _OF_A_SOURCE, "val": _OF_A_SOURCE, "test": _OF_A_SOURCE},
    "training": {"checkpoints": {"in_background": True}},
}
"""Of a spec, as pydantic's `exclude` takes it: two specs that differ in these alone train the same."""

SEED_AND_HASH = re.compile(r"-s\d+-[0-9a-f]{8}(?=/|$)")
"""Of a run id, which may stand in a path: what follows the experiment's name and variant."""


def beyond_defaults(spec: ExperimentSpec) -> dict[str, Any]:
    """What a spec says beyond the defaults that may change a result."""
    content = spec.model_dump(mode="json", exclude_defaults=True, exclude=CHANGES_NO_RESULT)
    _drop_emptied(content, CHANGES_NO_RESULT)
    return content


def _drop_emptied(tree: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Sections that differ from the default in left-out keys alone."""
    for key, inside in keys.items():
        if isinstance(inside, dict) and isinstance(section := tree.get(key), dict):
            _drop_emptied(section, inside)
            if not section:
                del tree[key]


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


def identity(spec: Mapping[str, Any]) -> str:
    """What runs of several seeds have in common: all that changes a result but the seed, also that of the run they start from.

    Args:
        spec: as spec.json has it, of this version or an earlier one.
    """
    shared = with_defaults(_without(spec, {**CHANGES_NO_RESULT, "seed": True}))
    if shared.get("init"):
        checkpoint = shared["init"].get("checkpoint")
        shared["init"] = {**shared["init"], "checkpoint": checkpoint and SEED_AND_HASH.sub("", checkpoint)}
    return json.dumps(shared, sort_keys=True)


def _without(spec: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    """The spec without keys, given as pydantic's `exclude` is."""
    inside = {key: keys.get(key, keys.get("__all__")) for key in spec}
    kept = {key: value for key, value in spec.items() if inside[key] is not True}
    return {key: _without(value, inside[key]) if inside[key] and value else value for key, value in kept.items()}


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a run folder, with keys that its version of tclx did not have at the values that mean the same.

    To read: what is filled in is the same object everywhere.
    """
    from tclx.spec.experiment import ExperimentSpec

    return _filled(spec, ExperimentSpec)


def _filled(tree: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    defaults, sections = _known_of(section)
    filled = {**tree, **{name: default for name, default in defaults.items() if name not in tree}}
    for name, inner in sections.items():
        if name in tree and isinstance(value := tree[name], dict):
            filled[name] = _filled(value, inner)
    return filled


@cache
def _known_of(section: type[Section]) -> tuple[dict[str, Any], dict[str, type[Section]]]:
    """The defaults of its keys as JSON, and the sections that keys hold where they hold one kind."""
    from tclx.section import Section

    defaults, sections = dict[str, Any](), dict[str, type[Section]]()
    for name, field in section.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isclass(one) and issubclass(one, Section)]
        if not field.is_required():
            default = field.get_default()
            defaults[name] = default.model_dump(mode="json") if isinstance(default, Section) else default
        if len(inner) == 1:
            sections[name] = inner[0]
    return defaults, sections


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


def told_apart(specs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is peculiar to each of several specs: the keys in which they differ, and their values.

    A key goes by its shortest ending that no other of them has. A section that only some have is `on` or `off`.

    Args:
        specs: as spec.json has them.
    """
    leaves = [dict(_leaves("", {key: value for key, value in spec.items() if key not in _NAMES})) for spec in specs]
    every = dict.fromkeys(key for one in leaves for key in one)
    keys = [key for key in every if len({repr(one[key]) for one in leaves if key in one}) > 1]
    names = {key: shortest_ending(key, keys) for key in keys}
    sections = {key for key in keys if any(one.get(key) is _ON for one in leaves)}
    return [{names[key]: _peculiar(one[key], key in sections) for key in keys if key in one} for one in leaves]


_ON = object()
"""A section that is not null."""
_LONGEST = 40
"""Characters of a value; of a longer one, a path as a rule, the end is shown."""


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every single value; of a section also that it is on, which is what it differs in from one that is null."""
    if not isinstance(value, dict):
        yield key, value
        return
    if key:
        yield key, _ON
    for name, one in value.items():
        yield from _leaves(f"{key}.{name}" if key else name, one)


def _peculiar(value: Any, is_section: bool) -> str:
    if value is _ON or (is_section and value is None):
        return "off" if value is None else "on"
    shown = f"{value:.4g}" if isinstance(value, float) else in_words(value)
    return shown if len(shown) <= _LONGEST else f"...{shown[3 - _LONGEST :]}"


def shortest_ending(key: str, keys: Sequence[str]) -> str:
    """The shortest ending of a dotted key that no other has; of long ones two words, as `cma.weight`."""
    parts = key.split(".")
    for count in range(min(2, len(parts) - 1), len(parts)):
        ending = ".".join(parts[-count:])
        if count and sum(one == ending or one.endswith(f".{ending}") for one in keys) <= 1:
            return ending
    return key


def _differing(key: str, values: Sequence[Any]) -> Iterator[Difference]:
    if all(value == values[0] for value in values):
        return
    if not all(isinstance(value, dict) for value in values):
        yield Difference(key, tuple(map(in_words, values)))
        return
    for name in dict.fromkeys(name for value in values for name in value):
        yield from _differing(f"{key}.{name}" if key else name, [value.get(name, _ABSENT) for value in values])
