"""Which keys does a place in a spec know, and what may stand there? Read off the pydantic sections, so it is said once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from inspect import isclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from tclx.section import AddressMarker, HubNameMarker, PathMarker, Section
from tclx.spec.experiment import ExperimentSpec


@dataclass(frozen=True)
class Place:
    """What the spec allows at one key. A place without sections holds a value or a list of values."""

    sections: tuple[type[Section], ...] = ()
    """The sections that fit here; several are told apart by their `tag` key."""
    choices: tuple[str, ...] = ()
    """The words that fit here."""
    is_path: bool = False
    may_be_address: bool = False
    is_hub_name: bool = False
    default_kind: str | None = None
    """The tag's value where the mapping does not say it."""
    has_own_names: bool = False
    """Whether the keys are the user's own names, each with one of the sections, or with a value where there are none."""
    names_hold_dots: bool = False
    """Whether such a name may be a key path itself: all that follows of a path is one name then."""
    is_nullable: bool = False
    is_list: bool = False
    """Of any length."""
    other_kinds: tuple[tuple[str, type[Section]], ...] = ()
    """Once the tag's value is known: the other ones, as they are written, and their sections."""

    @property
    def tag(self) -> str | None:
        """The key whose value says which of several sections is meant, for instance `source`."""
        if len(self.sections) < 2 or self.has_own_names:
            return None
        return next(key for key, field in self.sections[0].model_fields.items() if get_origin(field.annotation) is Literal)

    @property
    def kinds(self) -> dict[str, type[Section]]:
        """The values of the tag and the sections they stand for."""
        tag = self.tag
        return {get_args(section.model_fields[tag].annotation)[0]: section for section in self.sections} if tag else {}

    def narrowed(self, kind: str) -> Place:
        """The same place once the tag's value is known."""
        others = tuple((f"{self.tag}: {other}", section) for other, section in self.kinds.items() if other != kind)
        return replace(self, sections=(self.kinds[kind],), other_kinds=others)

    def child(self, key: str) -> Place | None:
        """What a key of this place allows, or None where the key is unknown."""
        if self.has_own_names:
            return replace(self, has_own_names=False, names_hold_dots=False)
        return next((_place(section, key) for section in self.sections if key in section.model_fields), None)

    def known_keys(self) -> list[str]:
        """Every key known here, in the order of the spec."""
        if self.has_own_names:
            return []
        return list(dict.fromkeys(key for section in self.sections for key in section.model_fields))


ROOT = Place(sections=(ExperimentSpec,))

FILE_ONLY_KEYS = ("extends", "variants", "seeds")
"""Keys that a file has beside those of a resolved spec."""


def file_keys() -> list[str]:
    """The keys at the root of a file; `variant` is filled in from `variants`."""
    return [*(key for key in ROOT.known_keys() if key != "variant"), *FILE_ONLY_KEYS]


@cache
def _place(section: type[Section], key: str) -> Place:
    field = section.model_fields[key]
    parts = [*_parts(field.annotation), *field.metadata]
    place = Place(
        sections=tuple(part for part in parts if isclass(part) and issubclass(part, Section)),
        choices=tuple(_word(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)),
        is_path=any(isinstance(part, PathMarker) for part in parts),
        may_be_address=any(isinstance(part, AddressMarker) for part in parts),
        is_hub_name=any(isinstance(part, HubNameMarker) for part in parts),
        is_nullable=NoneType in parts,
        is_list=Ellipsis in parts,
    )
    if get_origin(field.annotation) is dict:
        name, _ = get_args(field.annotation)
        schema = TypeAdapter(name).json_schema()
        return replace(place, has_own_names=True, names_hold_dots=bool(re.match(schema.get("pattern", ""), "a.b")))
    return replace(place, default_kind=_default_kind(place, field))


def _word(choice: str | bool) -> str:
    """As it is written in a spec."""
    return choice if isinstance(choice, str) else json.dumps(choice)


def _parts(annotation: Any) -> Iterator[Any]:
    """Classes, literals and markers anywhere within an annotation."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from _parts(arguments[0])
        yield from arguments[1:]
    elif get_origin(annotation) is Literal or not arguments:
        yield annotation
    else:
        for argument in arguments:
            yield from _parts(argument)


def _default_kind(place: Place, field: FieldInfo) -> str | None:
    default = field.get_default()
    return str(getattr(default, place.tag)) if place.tag and isinstance(default, Section) else None


def key_paths(place: Place = ROOT) -> list[str]:
    """Every dotted key path of the spec, sections included."""
    paths: list[str] = []
    for key in place.known_keys():
        child = place.child(key)
        paths.append(key)
        paths += [f"{key}.{path}" for path in key_paths(child)] if child else []
    return paths


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    by_plain_form = {_plain_form(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_plain_form(word), by_plain_form, n=1, cutoff=0.7)
    return by_plain_form[matches[0]] if matches else None


def _plain_form(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


def nearest_key(key: str, place: Place, root: Place = ROOT) -> str | None:
    """A hint for an unknown key: what it goes with, or its neighbour here, or the one place elsewhere that has it, or what is
    known here.
    """
    if fitting := [f"`{kind}`" for kind, section in place.other_kinds if key in section.model_fields]:
        return f"it goes with {' or '.join(fitting)}"
    known = file_keys() if place == ROOT else place.known_keys()
    if neighbour := nearest(key, known):
        return f"did you mean `{neighbour}`?"
    elsewhere = [path for path in key_paths(root) if path.endswith(f".{key}")]
    if len(elsewhere) == 1:
        return f"did you mean `{elsewhere[0]}`?"
    return "known here: " + ", ".join(known) if known else None
