"""What may a spec file hold, for editors? JSON Schema (draft 2020-12) of the file formats, made from the sections.

Nothing of an experiment is required: any key may come from `extends` or from every variant, a file may be there only to be
extended, and a variant's sections are partial. What is missing in the end is said by tclx itself.
"""

from __future__ import annotations

from typing import Any

from tclx.spec.experiment import ExperimentSpec
from tclx.spec.sweep import SweepSpec
from tclx.spec.table import TableSpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NOT_IN_A_VARIANT = ("name", "seed", "variant")


def experiment_schema() -> dict[str, Any]:
    """JSON Schema of an experiment file: all sections, `extends`, `seeds` and `variants`, described by the docstrings."""
    resolved = _partial(ExperimentSpec.model_json_schema())
    definitions, properties = resolved["$defs"], resolved["properties"]
    definitions["Variant"] = {
        "type": "object",
        "description": "What this variant changes. null switches a section off; {} changes nothing.",
        "additionalProperties": False,
        "properties": {key: value for key, value in properties.items() if key not in _NOT_IN_A_VARIANT},
    }
    return {
        "$schema": _DIALECT,
        "title": "tclx experiment",
        "description": "One experiment file: a run, or one run for every variant and seed.",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: value for key, value in properties.items() if key != "variant"} | _file_keys(properties),
        "$defs": definitions,
    }


def sweep_schema() -> dict[str, Any]:
    """JSON Schema of a sweep file; a single objective need not stand in a list."""
    schema = SweepSpec.model_json_schema()
    objective = schema["properties"]["objective"]
    several = {key: value for key, value in objective.items() if key not in ("description", "title")}
    schema["properties"]["objective"] = {
        "description": objective["description"],
        "anyOf": [{"$ref": "#/$defs/ObjectiveSpec"}, several],
    }
    return {"$schema": _DIALECT, **schema, "title": "tclx sweep"}


def table_schema() -> dict[str, Any]:
    """JSON Schema of a table's file."""
    return {"$schema": _DIALECT, **TableSpec.model_json_schema(), "title": "tclx table"}


def _file_keys(properties: dict[str, Any]) -> dict[str, Any]:
    seed = {key: value for key, value in properties["seed"].items() if key not in ("description", "default", "title")}
    return {
        "extends": {
            "description": "Another experiment file that this one changes. Mappings merge, lists and null replace.",
            "type": ["string", "null"],
        },
        "seeds": {
            "description": "One run for every seed, instead of `seed`.",
            "type": "array",
            "items": seed,
            "minItems": 1,
            "uniqueItems": True,
        },
        "variants": {
            "description": "One run for every variant: a name, and what it changes.",
            "type": ["object", "null"],
            "propertyNames": {"pattern": properties["name"]["pattern"]},
            "additionalProperties": {"$ref": "#/$defs/Variant"},
        },
    }


def _partial(schema: Any) -> Any:
    """The same schema with no key required, so several kinds of a section may fit at once."""
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = ("required", "discriminator")
    return {"anyOf" if key == "oneOf" else key: _partial(value) for key, value in schema.items() if key not in left_out}
