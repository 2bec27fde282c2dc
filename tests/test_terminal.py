"""Promises of `tclx.terminal`: nothing that it lets through steers a terminal or hides, and everything else stays as it is."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from tclx.errors import InputError, MachineError, Problem, RunFailed
from tclx.terminal import error_lines, one_line, printable

_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_SEEN = {*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
"""Format characters that are drawn: signs of Arabic, Syriac and Kaithi numbers, Egyptian joiners."""


def steers(character: str) -> bool:
    """By Unicode's own tables: controls, halves of pairs, separators of lines, what turns the direction or is not seen."""
    if character in "\n\t":
        return False
    category = unicodedata.category(character)
    hidden = category == "Cf" and ord(character) not in _SEEN
    return category in ("Cc", "Cs", "Zl", "Zp") or hidden or unicodedata.bidirectional(character) in _TURNING


def test_every_character_of_unicode_is_let_through_or_spelled_out_as_its_tables_say() -> None:
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        shown = printable(character)
        if steers(character):
            assert shown != character
            assert json.loads(f'"{shown}"') == character
        elif shown != character:
            assert unicodedata.category(character) == "Cn"  # not assigned yet, in a block of tags
    assert printable("Grüße, 日本語 \N{GRINNING FACE} 'a' \\u001b\n\tb") == "Grüße, 日本語 \N{GRINNING FACE} 'a' \\u001b\n\tb"


def test_json_stays_the_same_json() -> None:
    value = {"\x1b[31m": "\u202e\x9b\u200b\ud800\n\t\U000e0041"}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


def test_a_cell_is_one_line() -> None:
    assert one_line("a\nerror: b\tc\r") == "a\\nerror: b\\tc\\r"


@pytest.mark.parametrize("kind", [RunFailed, MachineError])
def test_an_error_keeps_the_lines_that_it_was_written_with(kind: type[RunFailed]) -> None:
    assert error_lines(kind("one\n  two\x07")) == ["one", "  two\\u0007"]
    assert error_lines(kind()) == [kind.__name__]


def test_a_key_of_somebodys_file_adds_no_problem() -> None:
    assert error_lines(InputError(Problem("a", "b\nerror: all is well"), Problem("", "c"))) == [
        "a: b\\nerror: all is well",
        "c",
    ]
