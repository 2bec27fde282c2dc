"""What did somebody mean who wrote this? A value of the wrong kind -> the right one, as it would be written.

Guesses come from habits: other tools' words for off, a number where a section is due, SLURM's times, a list where one value is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from tclx.section import Section
from tclx.spec.fields import Place
from tclx.spec.yaml import Node

_OFF = ("false", "none", "off", "no", "nil", "disabled", "")
_ON = ("true", "yes", "on", "enabled")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNIT = re.compile(r"^(?:s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)$", re.IGNORECASE)
_CLOCK = re.compile(r"^(?:(\d{1,4})-)?(\d{1,4})(?::(\d{1,2}))?(?::(\d{1,2}))?$")
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-zA-Z]+)$")
_TYPED_GPUS = re.compile(r"^([a-zA-Z][\w.-]*):(\d+)$")
_SECTIONS = ("model_type", "model_attributes_type", "dict_type")
_NUMBERS = ("int_type", "int_from_float", "float_type")


def cure(kinds: list[str], key: str, node: Node, place: Place | None) -> str | None:
    """What would be right in place of a value, or None where nothing is likely.

    Args:
        kinds: pydantic's names of what is wrong with it.
        key: where it stands.
        node: what stands there.
        place: what the spec allows there.
    """
    return next(_guesses(kinds, key.rpartition(".")[2], node, place or Place()), None)


def _guesses(kinds: list[str], name: str, node: Node, place: Place) -> Iterator[str]:
    value = node.value
    word = value.lower() if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else None
    if "bool_type" in kinds and word in _ON + _OFF:
        yield f"write {json.dumps(word in _ON)}"
    if word in _OFF and place.is_nullable and word != "":
        yield "null switches it off" if place.sections else "write null"
    if any(kind in _SECTIONS for kind in kinds) or ("tuple_type" in kinds and place.sections):
        yield from _as_section(value, word, place)
    if any(kind in _NUMBERS for kind in kinds):
        yield from _as_number(value, name, is_whole="float_type" not in kinds)
    if "tuple_type" in kinds and place.is_list and not isinstance(value, dict | tuple) and value is not None:
        yield f"a list of one is written [{_written(value)}]"
    if "string_type" in kinds and value is not None:
        yield (
            f'put it in quotes if it is text: "{_written(value)}"'
            if not isinstance(value, dict | tuple)
            else ("put it in quotes if it is text")
        )


def _as_section(value: Any, word: str | None, place: Place) -> Iterator[str]:
    if value in place.kinds:
        yield f"write {{{place.tag}: {value}}}"
    sections = [place.kinds[place.default_kind]] if place.default_kind else list(place.sections)
    if len(sections) != 1:
        return
    (section,) = sections
    if place.has_own_names:
        yield f"write {{KEY: {{{next(iter(section.model_fields))}: ...}}}}, a line for each key"
        return
    if word in _ON and not any(field.is_required() for field in section.model_fields.values()):
        yield "{} switches it on with its defaults"
    if isinstance(value, tuple) and "choices" in section.model_fields:
        yield f"write {{choices: [{', '.join(_written(item.value) for item in value)}]}}, or a range: {{uniform: [low, high]}}"
    if word in _ON + _OFF or isinstance(value, dict | tuple) or value is None:
        return
    first = next((key for key, field in section.model_fields.items() if _takes(field.annotation, value)), None)
    missing = [key for key, field in section.model_fields.items() if field.is_required() and key != first]
    if first is not None and not (place.child(first) or place).is_path:  # which of several paths is meant cannot be told
        rest = "".join(f", {key}: {_example(section, key)}" for key in missing)
        yield f"write {{{first}: {_written(value)}{rest}}}"


def _takes(annotation: Any, value: Any) -> bool:
    """Whether a field takes a value of this kind."""
    inside = get_args(annotation)
    if get_origin(annotation) is Literal:
        return value in inside
    if inside and get_origin(annotation) is not tuple:
        return any(_takes(part, value) for part in inside if isinstance(part, type) or get_args(part))
    return annotation is type(value) or (annotation is float and isinstance(value, int) and not isinstance(value, bool))


def _example(section: type[Section], key: str) -> str:
    annotation = section.model_fields[key].annotation
    return str(get_args(annotation)[0]) if get_origin(annotation) is Literal else key.upper()


def _as_number(value: Any, name: str, *, is_whole: bool) -> Iterator[str]:
    if isinstance(value, float) and is_whole and value.is_integer() and abs(value) < 2**63:
        yield f"write {int(value)}"
    if not isinstance(value, str):
        return
    text = value.strip()
    if name.endswith(("_minutes", "_seconds", "_hours")) and (seconds := seconds_of(text)) is not None:
        size, unit = {"es": (60, "minutes"), "ds": (1, "seconds"), "rs": (3600, "hours")}[name[-2:]]
        yield f"{text} is {seconds / size:g} {unit}: write {seconds / size:g}"
    elif typed := _TYPED_GPUS.match(text):
        yield f"write {typed[2]}, and gpu_type: {typed[1]} beside it"
    elif _is_number(text, is_whole=is_whole):
        yield f"without quotes: {text}"
    elif (quantity := _QUANTITY.match(text)) and name.endswith("_gb") and quantity[2].lower() in ("g", "gb", "gib"):
        yield f"write {quantity[1]}"


def _is_number(text: str, *, is_whole: bool) -> bool:
    try:
        return (int if is_whole else float)(text) is not None and text.isascii()
    except ValueError:
        return False


def seconds_of(text: str) -> int | None:
    """A time as sbatch and people write it: `30`, `mm:ss`, `hh:mm:ss`, `d-hh`, `d-hh:mm:ss`, `24h`, `90 min`.

    A time of two parts is minutes and seconds to sbatch, and hours and minutes to most people; sbatch's reading counts.
    """
    if quantity := _QUANTITY.match(text):
        return round(float(quantity[1]) * _UNITS[quantity[2][0].lower()]) if _UNIT.match(quantity[2]) else None
    clock = _CLOCK.match(text)
    if clock is None:
        return None
    days, first, second, third = (None if part is None else int(part) for part in clock.groups())
    if days is not None:
        return days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return (first or 0) * 3600 + (second or 0) * 60 + third
    return (first or 0) * 60 + (second or 0) if second is not None else None


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
