"""What is a key of a spec? Type, values, default, meaning and company, read off the sections that validate it."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from tclx.errors import InputError
from tclx.section import PATTERN_WORDS, Section
from tclx.spec.fields import FILE_ONLY_KEYS, ROOT, Place, key_paths
from tclx.spec.merging import path_problem
from tclx.spec.rules import CONTRADICTIONS
from tclx.spec.schema import experiment_schema
from tclx.spec.sweep import SweepSpec
from tclx.spec.table import TableSpec

SWEEP_ROOT = Place(sections=(SweepSpec,))
TABLE_ROOT = Place(sections=(TableSpec,))
REQUIRED = "required"


class Key(NamedTuple):
    """One key, in one of the sections that have it."""

    path: str
    goes_with: str | None
    """The kind of section that it belongs to (`source: files`); None where every kind has it."""
    values: str
    default: str
    """In words; `required` where there is none."""
    meaning: str
    inside: tuple[str, ...]
    """Keys of the section that it is."""
    together_with: tuple[str, ...]
    """Keys that some rule names together with it."""


def known_paths(root: Place = ROOT) -> list[str]:
    """Every key path, those that only a file has first."""
    return [*(FILE_ONLY_KEYS if root == ROOT else ()), *(path for path in key_paths(root) if path != "variant")]


def explain(path: str, root: Place = ROOT) -> list[Key]:
    """A key; several where kinds of a section have it with different meanings.

    Raises:
        InputError: there is no such key, with the nearest that there is.
    """
    if root == ROOT and path in FILE_ONLY_KEYS:
        return [_of_file(path)]
    if path != "variant" and (problem := path_problem(path, root)):
        raise InputError(problem._replace(where=None))
    return list(dict.fromkeys(_found(root, path.split("."), "", None)))


def _of_file(path: str) -> Key:
    schema = experiment_schema()["properties"][path]
    others = tuple(key for key in ("seed", "seeds") if "seed" in path and key != path)
    return Key(path, None, _in_words(schema), "none", schema["description"], (), others)


def _found(place: Place, keys: list[str], before: str, goes_with: str | None) -> Iterator[Key]:
    if place.has_own_names:
        keys = keys[-1:] if place.names_hold_dots else keys[1:]
        before += "NAME."
    key, *rest = keys
    having = [section for section in place.sections if key in section.model_fields]
    for section in having:
        kind = next((f"{place.tag}: {name}" for name, one in place.kinds.items() if one is section), None)
        with_kind = kind if (kind and len(having) < len(place.sections)) or (kind and key == place.tag) else goes_with
        inner = Place(sections=(section,)).child(key)
        if rest and inner is not None and (inner.sections or not inner.has_own_names):
            yield from _found(inner, rest, f"{before}{key}.", with_kind)
        else:
            yield key_of(section, key, f"{before}{key}", with_kind)


def key_of(section: type[Section], name: str, path: str, goes_with: str | None = None) -> Key:
    """A field of a section.

    Args:
        section: that has it.
        name: of the field.
        path: where it is in the spec.
        goes_with: see Key.
    """
    field = section.model_fields[name]
    schema = section.model_json_schema()
    inner = Place(sections=(section,)).child(name) or Place()
    default = REQUIRED if field.is_required() else _default(field.get_default(call_default_factory=True))
    meaning = " ".join((field.description or "").split())
    inside = tuple(dict.fromkeys(key for one in inner.sections for key in one.model_fields))
    values = _in_words(schema["properties"][name], schema.get("$defs", {}))
    return Key(path, goes_with, values, default, meaning, inside, tuple(_together(section, name, path)))


def _default(value: Any) -> str:
    if isinstance(value, Section):
        own = value.model_dump(mode="json", exclude_unset=True)
        return _json(own) if own else "a section with its own defaults"
    return _json(value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_TYPES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
_BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    "minItems": "at least", "minLength": "at least",
}  # fmt: skip


def _in_words(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> str:
    """The values that a JSON Schema allows."""
    if "const" in schema:
        return _json(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_json, schema["enum"][:-1])) + f" or {_json(schema['enum'][-1])}"
    if several := schema.get("anyOf") or schema.get("oneOf"):
        tag = schema.get("discriminator", {})
        if tag:
            return f"a section; `{tag['propertyName']}` is {' or '.join(tag['mapping'])}"
        return " or ".join(dict.fromkeys(_in_words(one, definitions) for one in several))
    if "$ref" in schema:
        return _in_words((definitions or {}).get(schema["$ref"].rpartition("/")[2], {"type": "object"}), definitions)
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(_TYPES.get(one, "a section") for one in kind)
    if kind == "array":
        items = schema.get("prefixItems")
        if items:
            return f"a list of {len(items)}, each {_in_words(items[0], definitions)}"
        return f"a list, each {_in_words(schema.get('items', {}), definitions)}"
    if kind == "object":
        own = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
        return f"names of your own, each with {_in_words(own, definitions)}" if isinstance(own, dict) else "a section"
    if schema.get("format") == "path":
        return "a path"
    if schema.get("pattern"):
        return str(PATTERN_WORDS.get(schema["pattern"], "text"))
    bounds = [f"{word} {schema[key]:,}" for key, word in _BOUNDS.items() if key in schema and "Length" not in key]
    return " ".join([_TYPES.get(str(kind), "any value"), " and ".join(bounds)]).strip()


# ----------------------------------------------------------------------------------------------------------------- its company


def _together(section: type[Section], name: str, path: str) -> Iterator[str]:
    """Keys that a validator of the section, or a rule between sections, names together with this one."""
    before = path.rpartition(".")[0]
    own = [
        {f"{before}.{key}".removeprefix(".") if key in section.model_fields else key for key in _named_in(validator.func)}
        for validator in section.__pydantic_decorators__.model_validators.values()
    ]
    known = set(key_paths())
    across = [{key for key in _named_in(rule) & known if "." in key} for rule in CONTRADICTIONS]
    mentioned = [*(keys & known for keys in own), *across]
    yield from sorted({key for keys in mentioned if path in keys for key in keys} - {path})


@cache
def _named_in(function: Callable[..., Any]) -> frozenset[str]:
    """The keys that a function names where it says what is wrong."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _SAYING]
    said = [node for call in calls for node in ast.walk(call)]
    others = [node for one in ast.walk(tree) if isinstance(one, ast.Assign) for node in ast.walk(one)]
    words = {node.value for node in [*said, *others] if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    sections = {word for word in words if word.endswith(".")}  # of f"model.image_encoder.{key}"
    return frozenset(words | {f"{section}{word}" for section in sections for word in words})


_SAYING = ("Conflict", "Problem")

# -------------------------------------------------------------------------------------------------------------------- all keys


def reference() -> str:
    """The page of all keys, in Markdown."""
    lines = [
        "# Every key",
        "",
        "Written by `tclx explain --all -o docs/reference.md` from the sections that validate a spec; `tclx explain KEY` says",
        "the same of one key, with the keys that go with it. A section that may be of several kinds has a table for each.",
        "",
        "## Experiments",
        "",
        "A file has, beside the keys below:",
        "",
        *_table(_of_file(key) for key in FILE_ONLY_KEYS),
        *_sections(ROOT),
        "## Sweeps",
        "",
        *_sections(SWEEP_ROOT),
        "## Tables",
        "",
        *_sections(TABLE_ROOT),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _sections(root: Place) -> Iterator[str]:
    places: dict[type[Section], list[tuple[str, str]]] = {}
    for section, path, kind in _walk(root, ""):
        places.setdefault(section, []).append((path, kind))
    for section, found in places.items():
        paths = ", ".join(f"`{path}`" for path, _ in found if path)
        kinds = " or ".join(dict.fromkeys(f"`{kind}`" for _, kind in found if kind))
        if paths:
            yield from (f"### {paths}{f' with {kinds}' if kinds else ''}", "")
        yield from (" ".join((section.__doc__ or "").split()), "")
        yield from _table(key_of(section, name, name) for name in section.model_fields if name != "variant" or root != ROOT)


def _walk(place: Place, path: str) -> Iterator[tuple[type[Section], str, str]]:
    names = {section: f"{place.tag}: {kind}" for kind, section in place.kinds.items()}
    for section in place.sections:
        yield section, path, names.get(section, "")
    for section in place.sections:
        for key in section.model_fields:
            inner = Place(sections=(section,)).child(key)
            if inner is not None and inner.sections:
                own = f"{path}.{key}".removeprefix(".")
                yield from _walk(*((Place(sections=inner.sections), f"{own}.NAME") if inner.has_own_names else (inner, own)))


def _table(keys: Iterable[Key]) -> Iterator[str]:
    yield from ("| key | values | default | meaning |", "|---|---|---|---|")
    for key in keys:
        cells = (f"`{key.path}`", key.values, key.default, key.meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
