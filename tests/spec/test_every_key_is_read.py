"""No key of a spec does nothing: each field is read by name somewhere outside the spec room, or by a property that is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from tclx.spec.experiment import ExperimentSpec

from ..conftest import PROJECT

SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted((PROJECT / "tclx").rglob("*.py"))
    if "spec" not in path.relative_to(PROJECT / "tclx").parts
)


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections(part)


def fields(section: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[type[BaseModel], str]]:
    seen.add(section)
    for name, field in section.model_fields.items():
        if not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1):
            yield section, name
        for inner in sections(field.annotation):
            if inner not in seen:
                yield from fields(inner, seen)


def is_read(name: str) -> bool:
    return bool(re.search(rf"\.{name}\b|\"{name}\"", SOURCES))


def properties_of(section: type[BaseModel], name: str) -> list[str]:
    """The section's own properties that are computed from a field."""
    found = inspect.getmembers(section, lambda member: isinstance(member, property))
    return [called for called, one in found if re.search(rf"\bself\.{name}\b", inspect.getsource(one.fget))]


FIELDS = sorted(fields(ExperimentSpec, set()), key=lambda field: (field[0].__name__, field[1]))


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=[f"{section.__name__}-{name}" for section, name in FIELDS])
def test_the_field_is_read(section: type[BaseModel], name: str) -> None:
    assert any(map(is_read, [name, *properties_of(section, name)])), (
        f"{section.__name__}.{name} is validated and then forgotten"
    )
