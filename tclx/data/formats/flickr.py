"""Flickr8k's and Flickr30k's token text: `NAME#NUMBER`, a tab, a caption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from tclx.data.formats.entry import Entry, text_lines
from tclx.data.formats.tables import MAX_LINE_CHARACTERS
from tclx.data.forms.form import Fault

TOKEN = re.compile(r"(\S[^\t]*)#\d+\t(.*)", re.DOTALL)


def read_tokens(file: BinaryIO, head: bytes) -> Iterator[Entry]:
    """A caption a line.

    Raises:
        Unreadable: it is not text.
    """
    lines = text_lines(file, head, max_characters=MAX_LINE_CHARACTERS)
    for number, (line, text) in enumerate((line, text) for line, text in lines if text.strip()):
        found = TOKEN.fullmatch(text)
        row = {"image": found[1], "caption": found[2]} if found else Fault("is not `NAME#NUMBER`, a tab and a caption")
        yield Entry(number, line, row)
