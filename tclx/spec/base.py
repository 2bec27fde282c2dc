"""The manner all sections share: frozen, strict, nothing unknown, a docstring under every field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of a spec. Its fields cannot change after validation, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


PATTERN_WORDS: dict[str, str] = {}
"""A regular expression that some field must match -> the same in words, for messages."""


def text_like(pattern: str, words: str) -> Any:
    """A field whose text matches `pattern`, which messages call `words`."""
    PATTERN_WORDS[pattern] = words
    return Field(pattern=pattern)


class PathMarker:
    """Marks a string as a path: relative ones are read from the folder of the file they are written in."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "format": "path"}


class HubNameMarker:
    """Marks a string as a name that may also be a folder, where it is written like a path."""


LocalPath = Annotated[str, Field(min_length=1), PathMarker()]
"""A path on this machine. `${NAME}` is replaced by that environment variable; relative paths start at the spec's own folder.
`package:NAME` is no path but data that an installed Python package carries, and stays as it is."""

HubName = Annotated[str, Field(min_length=1), HubNameMarker()]
"""A hub name, `package:NAME`, or a local folder, which is written with `./`, `../`, `/`, `~` or `${` in front and then read as
a path: what begins with `/` after loading is a folder."""

Weight = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
