"""The manner all sections share: frozen, strict, nothing unknown, a docstring under every field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of a spec. Its fields cannot change after validation, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class PathMarker:
    """Marks a string as a path: relative ones are read from the folder of the file they are written in."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "format": "path"}


LocalPath = Annotated[str, Field(min_length=1), PathMarker()]
"""A path on this machine. `${NAME}` is replaced by that environment variable; relative paths start at the spec's own folder."""

Weight = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
