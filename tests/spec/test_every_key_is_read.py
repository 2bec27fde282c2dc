"""No key of a spec does nothing: each field is read by name somewhere outside the spec room."""

from __future__ import annotations

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


def fields(section: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, str]]:
    seen.add(section)
    for name, field in section.model_fields.items():
        if not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1):
            yield section.__name__, name
        for inner in sections(field.annotation):
            if inner not in seen:
                yield from fields(inner, seen)


@pytest.mark.parametrize(("section", "name"), sorted(fields(ExperimentSpec, set())))
def test_the_field_is_read(section: str, name: str) -> None:
    assert re.search(rf"\.{name}\b|\"{name}\"", SOURCES), f"{section}.{name} is validated and then forgotten"
