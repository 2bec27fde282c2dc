"""A form: what the rows of a task hold, how they are read, and how they are made of generated scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from tclx.data.scenes import Scene


class Fault(Exception):
    """What is wrong with a row, and what would be right."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint


class Faults(Exception):
    """Everything that is wrong with a row."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults


class Item(NamedTuple):
    """A text about an image or two, and what is to be said of it."""

    images: tuple[str, ...]
    """As a file names them; of generated scenes their numbers."""
    text: str
    """A question or a statement."""
    target: Any
    """JSON: what a task makes of it is the form's own."""


class Form(Protocol):
    """The rows of a task."""

    @property
    def keys(self) -> tuple[str, ...]:
        """That every row must have."""
        ...

    @property
    def num_images(self) -> int:
        """Of an item."""
        ...

    @property
    def items_a_scene(self) -> int:
        """That `of_scenes` makes of each."""
        ...

    def read(self, row: dict[str, Any], *, training: bool) -> Item:
        """An item from a row that has all `keys`.

        Raises:
            Fault: it is not what it should be.
        """
        ...

    def write(self, item: Item) -> dict[str, Any]:
        """A row from which `read` makes the item again."""
        ...

    def words(self, target: Any) -> Sequence[str]:
        """The texts of a target, which a tokenizer must know, too."""
        ...

    def of_scenes(self, scenes: Sequence[Scene], random: Random) -> Iterator[Item]:
        """Items that are true by construction, in a fixed order."""
        ...


def text(row: dict[str, Any], key: str) -> str:
    """A text of a row.

    Raises:
        Fault: it is none, or empty.
    """
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise Fault(f"`{key}` is {value!r:.40}", "expected text")
    return value


def one_of(row: dict[str, Any], key: str, known: Sequence[str]) -> int:
    """Which of a few words stands under a key.

    Raises:
        Fault: none of them.
    """
    value = row[key]
    if value not in known:
        raise Fault(f"`{key}` is {value!r:.40}", f"one of {', '.join(known)}")
    return known.index(value)
