"""The documentation builds as a site, without a network, every page in its place and every link to something that is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.conftest import PROJECT


class _Page(HTMLParser):
    """Links, what is loaded, and the places that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.places.add(named.get("id", ""))
        if tag == "a":
            self.links.add(named.get("href", ""))
        elif tag in ("script", "img", "link") and named.get("rel") != "canonical":
            self.loaded.add(named.get("src") or named.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Page]:
    """Every page by its path."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    built = subprocess.run(command, cwd=PROJECT, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def test_every_page_of_the_docs_is_on_it(site: dict[Path, _Page]) -> None:
    assert {path.stem for path in site} >= {page.stem for page in (PROJECT / "docs").glob("*.md")}


def test_every_link_leads_somewhere(site: dict[Path, _Page]) -> None:
    broken = []
    for path, page in site.items():
        if path.name == "404.html":
            continue  # its links start from wherever it is shown
        for link in page.links - {"", ".", "#"}:
            where, place = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", where):
                continue
            target = (path.parent / where).resolve() if where else path
            if target not in site and not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif place and target in site and place not in site[target].places:
                broken.append(f"{path.name}: {link}: no such place")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, _Page]) -> None:
    assert [what for page in site.values() for what in page.loaded if re.match(r"(https?:)?//", what)] == []
