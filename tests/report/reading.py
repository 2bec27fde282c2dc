"""A page as its reader gets it: what is text, what is a figure, what would be run or fetched."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Reader(HTMLParser):
    """Reads a page; `text` has no scripts and no styles in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, dict[str, Any]] = {}
        """By title."""
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.bold: list[str] = []
        self._open: list[str] = []
        self._title = ""
        self.feed(page)

    @classmethod
    def of(cls, path: Path) -> Reader:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("meta", "img", "br", "line", "link", "input"):
            return
        self._open.append(tag)
        if tag == "figcaption":
            self._title = ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            if dict(self.tags[-1][1]).get("type") == "application/json":
                self.figures[self._title] = json.loads(data)
            return
        if inside == "style":
            return
        self.text += data
        if inside == "figcaption":
            self._title += data
        if inside == "b" and "td" in self._open:
            self.bold.append(data)
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def lines(self, title: str) -> dict[str, dict[str, Any]]:
        """The named traces of a figure."""
        return {trace["name"]: trace for trace in self.figures[title]["data"] if "name" in trace}

    def table(self, corner: str) -> list[list[str]]:
        """The table whose head has this cell."""
        return next(table for table in self.tables if corner in table[0])

    @property
    def policy(self) -> str:
        return next(attrs["content"] or "" for tag, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy")

    def addresses(self) -> list[str]:
        """Everything that an element points to."""
        names = ("src", "href", "srcset", "action", "data", "poster", "formaction", "xlink:href")
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names and value]


def without_library(page: str) -> str:
    """The page without plotly, whose sources name addresses that these figures never use."""
    return re.sub(r'<script type="text/plain" id="plotly">[^<]*</script>', "", page)
