"""What does a YAML file say, and on which line? YAML 1.2 -> a tree that remembers where every value was written.

Only plain data is read: no tags, anchors, aliases or merge keys, so a small file cannot expand into a large one and a file from
somebody else cannot run anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from tclx.errors import InputError, Location, Problem
from tclx.spec.fields import nearest

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_INTEGER = 1 << 63

Scalar = str | int | float | bool | None
Locate = Callable[[int, int], Location]
"""Line and column, both from 1, to the place that an error names."""

_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, C1, halves of pairs, and what turns the reading direction: nobody writes them on purpose, and terminals obey them."""


@dataclass(frozen=True)
class Node:
    """A value and where it was written: at its key, or at itself in a list."""

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    where: Location

    def plain(self) -> Any:
        """The value as JSON knows it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


def read_yaml(path: Path) -> Node:
    """Read one file.

    Raises:
        InputError: no such file, not text, not YAML, or YAML that a spec may not use.
    """
    return parse_yaml(_text(path), lambda line, column: Location(path, line, column))


def parse_yaml(text: str, locate: Locate) -> Node:
    """Read one document. Two equal keys, odd keys and values that JSON does not know are all reported at once.

    Raises:
        InputError: as `read_yaml`.
    """
    reader = _Reader(text, locate)
    root = reader.document()
    if reader.problems:
        raise InputError(*reader.problems)
    return root


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise InputError(Problem("", f"{path} is a folder; name a YAML file in it"))
        if path.exists() and not path.is_file():
            raise InputError(Problem("", f"{path} is not a regular file"))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(Problem("", f"no such file: {path}", _similar_file(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(Problem("", f"cannot read {path}: {reason}")) from error
    if len(content) > MAX_BYTES:
        raise InputError(Problem("", f"{path} is larger than 1 MiB; a spec is a page or two of text"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig", errors="replace")
        where = Location(path, *_line_and_column(before, len(before)))
        raise InputError(Problem("", f"not UTF-8 text (byte 0x{content[error.start]:02x})", where=where)) from error


def _similar_file(path: Path) -> str | None:
    names = [found.name for found in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    similar = nearest(path.name, names)
    return f"did you mean {path.parent / similar}?" if similar else None


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


class _Reader:
    """Events of the parser -> nodes. Works on events, not on the library's own nodes, because those have aliases resolved."""

    def __init__(self, text: str, locate: Locate) -> None:
        self.problems: list[Problem] = []
        self._locate = locate
        self._yaml = YAML(typ="safe", pure=True)
        self._resolve = self._yaml.resolver.resolve
        self._events = self._parsed(text)

    def document(self) -> Node:
        next(self._events)  # the stream starts
        start = next(self._events)
        if not isinstance(start, DocumentStartEvent):
            return Node(None, self._locate(1, 1))
        if start.version not in (None, (1, 2)):
            self._refuse(start, "a spec is YAML 1.2; remove the %YAML line above")
        root = self._node(next(self._events), depth=0)
        next(self._events)  # the document ends
        if isinstance(extra := next(self._events), DocumentStartEvent):
            self._refuse(extra, "a second document starts here; a spec is one document")
        return root

    def _parsed(self, text: str) -> Iterator[Any]:
        try:
            yield from self._yaml.parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = self._locate(mark.line + 1, mark.column + 1) if mark else self._locate(1, 1)
            raise InputError(_syntax_problem(str(error.problem), where)) from error
        except YAMLError as error:
            offset = getattr(error, "position", 0)
            where, what = self._locate(*_line_and_column(text, offset)), f"the control character U+{ord(text[offset]):04X}"
            raise InputError(Problem("", f"not a text file: it holds {what}", where=where)) from error
        except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" that names no character
            raise InputError(Problem("", f"not valid YAML: {error}", where=self._locate(1, 1))) from error

    def _node(self, event: Any, *, depth: int, key_at: Any = None) -> Node:
        where = self._place(key_at or event)
        if depth > MAX_DEPTH:
            raise InputError(Problem("", f"nested more than {MAX_DEPTH} deep", where=self._place(event)))
        self._check_plain(event)
        if isinstance(event, MappingStartEvent):
            return Node(self._mapping(depth), where)
        if isinstance(event, SequenceStartEvent):
            return Node(tuple(self._node(item, depth=depth + 1) for item in self._until_end()), where)
        return Node(self._scalar(event), where)

    def _check_plain(self, event: Any) -> None:
        if isinstance(event, AliasEvent):
            self._refuse(event, f"the alias *{event.anchor} stands here; write the value out, or share it through `extends`")
        if event.anchor is not None:
            self._add(event, f"the anchor &{event.anchor} stands here; write the value out, or share it through `extends`")
        if event.ctag is not None:
            self._add(event, f"the tag {event.ctag} stands here; write a plain value")

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_event in self._until_end():
            key = self._key(key_event, depth)
            node = self._node(next(self._events), depth=depth + 1, key_at=key_event)
            if key in entries:
                first = entries[key].where
                self._add(key_event, f"`{key}` is written twice", hint=f"the first is at {first}", key=key)
            elif key is not None:
                entries[key] = node
        return entries

    def _key(self, event: Any, depth: int) -> str | None:
        """The key as text, or None (and a problem) where it is not text."""
        node = self._node(event, depth=depth + 1)
        if isinstance(node.value, str):
            return node.value
        shown = f"`{event.value}`" if isinstance(event, ScalarEvent) and event.value else "this one"
        self._add(event, f"keys are text, and {shown} is not", hint="put it in quotes if it is meant")
        return None

    def _scalar(self, event: ScalarEvent) -> Scalar:
        text: str = event.value
        kind = str(self._resolve(ScalarNode, text, event.implicit)).removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self._number(event, kind)
        if kind == "timestamp":
            self._add(event, f"`{text}` reads as a date", hint="put it in quotes if it is text")
        if kind == "merge":
            self._add(event, "`<<` merges nothing here; share values through `extends`")
        if control := _CONTROL.search(text):
            self._add(event, f"the text holds the control character U+{ord(control[0]):04X}")
        return text

    def _number(self, event: ScalarEvent, kind: str) -> int | float:
        text: str = event.value
        try:
            # int(..., 0) refuses 012, which is ten to some readers and twelve to others
            number: int | float = (
                int(text, 0) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            )
        except ValueError:
            self._add(event, f"`{_short(text)}` is not a number", hint="no leading zeros; put it in quotes if it is text")
            return 0
        if not (abs(number) < MAX_INTEGER if isinstance(number, int) else math.isfinite(number)):
            self._add(event, f"`{_short(text)}` is no number that a spec can use")
            return 0
        return number

    def _until_end(self) -> Iterator[Any]:
        """Events up to the end of the collection that has just started."""
        for event in self._events:
            if isinstance(event, CollectionEndEvent):
                return
            yield event

    def _place(self, event: Any) -> Location:
        return self._locate(event.start_mark.line + 1, event.start_mark.column + 1)

    def _add(self, event: Any, message: str, *, hint: str | None = None, key: str = "") -> None:
        self.problems.append(Problem(key, message, hint, self._place(event)))

    def _refuse(self, event: Any, message: str) -> NoReturn:
        self._add(event, message)
        raise InputError(*self.problems)


def _syntax_problem(problem: str, where: Location) -> Problem:
    if "'\\t'" in problem:
        return Problem("", "a tab stands here; YAML is indented with spaces", where=where)
    hints = {
        "mapping values are not allowed here": "a missing line break or space, or text with `: ` in it, which needs quotes",
        "expected <block end>, but found '<block mapping start>'": "is the indentation right?",
        "could not find expected ':'": "is a `:` missing after a key?",
    }
    return Problem(
        "", f"not valid YAML: {problem}", next((hint for words, hint in hints.items() if words in problem), None), where
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
