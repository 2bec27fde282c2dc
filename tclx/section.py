"""The manner all sections share: frozen, strict, nothing unknown, a docstring under every field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticKnownError, core_schema


class Section(BaseModel):
    """A part of a spec. Its fields cannot change after validation, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    def __hash__(self) -> int:
        """Pydantic's own fails on a mapping with the user's names."""
        return hash(tuple(frozenset(one.items()) if isinstance(one, dict) else one for one in self.__dict__.values()))


class NamedPath(NamedTuple):
    """A file or folder that a section names."""

    key: str
    """Within the section."""
    path: str
    kind: Literal["file", "folder"]


_Member = TypeVar("_Member", bound=Section)


def members(section: type[Section], kind: type[_Member]) -> dict[str, type[_Member]]:
    """The fields of a section that may hold a section of this kind, and which."""
    return {
        name: each
        for name, field in section.model_fields.items()
        for each in get_args(field.annotation)
        if isinstance(each, type) and issubclass(each, kind)
    }


class Conflict(ValueError):
    """Keys of one section that do not go together.

    Args:
        message: what is wrong with them.
        keys: those that take part; the error is placed where the user wrote one of them.
        hint: what would be right.
        one_too_many: whether it suffices to take one of them away.
    """

    def __init__(self, message: str, *keys: str, hint: str | None = None, one_too_many: bool = False) -> None:
        super().__init__(message)
        self.keys, self.hint, self.one_too_many = keys, hint, one_too_many


WRITTEN = {"written": True}
"""pydantic's context while a spec that somebody wrote is validated, other than one that a run folder holds."""


def is_being_written(info: core_schema.ValidationInfo) -> bool:
    """Whether the context of a validation is `WRITTEN`."""
    return bool(info.context and info.context.get("written"))


@dataclass(frozen=True)
class Sensible:
    """Bounds of what somebody may write. What a run folder holds was written under older bounds and is read all the same.

    They keep out what can only be a slip, and what would take the machine down before anything refuses it.
    """

    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        bounds = {"minimum": self.at_least, "maximum": self.at_most, "exclusiveMaximum": self.below}
        return {**handler(schema), **{name: bound for name, bound in bounds.items() if bound is not None}}

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if not is_being_written(info):
            return value
        if self.at_least is not None and value < self.at_least:
            raise PydanticKnownError("greater_than_equal", {"ge": self.at_least})
        if self.at_most is not None and value > self.at_most:
            raise PydanticKnownError("less_than_equal", {"le": self.at_most})
        if self.below is not None and value >= self.below:
            raise PydanticKnownError("less_than", {"lt": self.below})
        return value


PATTERN_WORDS: dict[str, str] = {}
"""A regular expression that some field must match -> the same in words, for messages."""


def text_like(pattern: str, words: str) -> Any:
    """A field whose text matches `pattern`, which messages call `words`; one pattern has the same words everywhere."""
    if PATTERN_WORDS.setdefault(pattern, words) != words:
        raise ValueError(f"{pattern} is called `{PATTERN_WORDS[pattern]}` elsewhere, and `{words}` here")
    return Field(pattern=pattern)


Commit = Annotated[str, text_like(r"^[0-9a-f]{40}$", "a commit of 40 hexadecimal digits")]
"""Of a git repository, whole: a branch or a tag may be another tomorrow."""


class PathMarker:
    """Marks a string as a path: relative ones are read from the folder of the file they are written in."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "format": "path"}


class AddressMarker:
    """Marks a path that may also be an address, `SCHEME://...`, which stays as it is written."""


class HubNameMarker:
    """Marks a string as a name that may also be a folder, where it is written like a path."""


LocalPath = Annotated[str, Field(min_length=1), PathMarker()]
"""A path on this machine. `${NAME}` is replaced by that environment variable; relative paths start at the spec's own folder.
`package:NAME` is no path but data that an installed Python package carries, and stays as it is."""

HubName = Annotated[str, Field(min_length=1), HubNameMarker()]
"""A hub name, `package:NAME`, or a local folder, which is written with `./`, `../`, `/`, `~` or `${` in front and then read as
a path: what begins with `/` after loading is a folder."""

Weight = Annotated[float, Field(gt=0), Sensible(at_least=1e-8, at_most=1e8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1), Sensible(at_most=10**9)]
Width = Annotated[int, Field(ge=1), Sensible(at_most=65_536)]
"""Of vectors; the widest published models stay below 20,000."""

NumLayers = Annotated[int, Field(ge=1), Sensible(at_most=100)]
NumHeads = Annotated[int, Field(ge=1), Sensible(at_most=1024)]
BatchSize = Annotated[int, Field(ge=1), Sensible(at_most=1_000_000)]
