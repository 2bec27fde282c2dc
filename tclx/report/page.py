"""One self-contained HTML page: skeleton, light and dark, figures, tables. What it says is up to the caller.

Figures are plotly's, drawn by plotly.js, which is embedded once and only where there is a figure: 4.8 MB of JavaScript, kept
gzipped (2 MB) and unpacked by the browser. The page's content security policy allows no request at all and no script but the
two that are embedded here, known by their hashes; so it stays offline, and a caption that got in unescaped would not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Self

from tclx.files import write_atomically
from tclx.report.markup import Html, joined, templates

COLORS = ("#2f7de1", "#e0622a", "#1fa36f", "#a45fd0", "#c98a00", "#d9467f", "#0e9aa7", "#7a8290")
"""Told apart by most colour-blind readers, and with contrast enough on white and on near-black."""
_DASHES = ("solid", "dash", "dot", "dashdot")


class Style(NamedTuple):
    """How one group's lines look in every figure of a page."""

    color: str
    """#rrggbb"""
    dash: str
    """As plotly names them."""


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each label; the colours come again with another dash after eight."""
    return {
        label: Style(COLORS[index % len(COLORS)], _DASHES[index // len(COLORS) % len(_DASHES)])
        for index, label in enumerate(labels)
    }


class Page:
    """A page that grows from top to bottom.

    Args:
        title: the page's name.
        lead: what stands below it.
    """

    def __init__(self, title: str, *, lead: Html | None = None) -> None:
        self._title = title
        self._lead = lead
        self._toggles: list[tuple[str, str, str, str]] = []
        self._has_seeds = False
        self._sections: list[tuple[str, Html]] = []

    def toggles(self, groups: Mapping[str, Style], *, seeds: bool = False) -> Self:
        """Buttons that stay in view and hide a group in all figures: the traces whose `legendgroup` is `group_key(label)`.

        Args:
            groups: by label; one alone has no button.
            seeds: one more button shows each seed's own line.
        """
        shown = groups.items() if len(groups) > 1 else ()
        self._toggles = [(group_key(label), label, style.color, _SVG_DASHES[style.dash]) for label, style in shown]
        self._has_seeds = seeds
        return self

    def section(self, heading: str, *blocks: Html) -> Self:
        """Add a section; without a block it is left out."""
        if blocks:
            self._sections.append((heading, joined(blocks)))
        return self

    def html(self) -> str:
        """The whole document."""
        has_figures = any('class="plot"' in content for _, content in self._sections)
        script = _resource("page.js")
        return (
            templates()
            .get_template("page.html")
            .render(
                title=self._title,
                lead=self._lead or "",
                toggles=self._toggles,
                has_seeds=self._has_seeds,
                sections=self._sections,
                has_figures=has_figures,
                library=_packed_plotly().base64 if has_figures else "",
                policy=_policy(script, has_figures=has_figures),
                style=Html(_resource("page.css")),  # the content of style and script is not HTML
                script=Html(script),
            )
        )

    def write(self, path: Path | str) -> None:
        """Write or replace the file.

        Raises:
            MachineError: it cannot be written.
        """
        write_atomically(Path(path), self.html())


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, as long as it is."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def group_key(label: str) -> str:
    """A label as plotly takes it: it reads names as a little HTML."""
    return html.escape(label, quote=False)


class _Packed(NamedTuple):
    base64: str
    sha256: str


_SVG_DASHES = {"solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}


@cache
def _packed_plotly() -> _Packed:
    library = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return _Packed(base64.b64encode(gzip.compress(library, mtime=0)).decode(), _sha256(library))


def _sha256(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _resource(name: str) -> str:
    return files("tclx.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str, *, has_figures: bool) -> str:
    library = f" 'sha256-{_packed_plotly().sha256}'" if has_figures else ""
    scripts = f"'sha256-{_sha256(script.encode())}'{library}"
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
