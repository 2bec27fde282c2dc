"""One self-contained HTML page: skeleton, light and dark, figures, tables. What it says is up to the caller.

`Html` is markup that may go into a page as it stands. Everything that comes from a spec, a caption or a path is a `str` and
goes through `text`, `table` or a function like them, which escape; a type checker tells the two apart.

Figures are plotly's, drawn by plotly.js, which is embedded once and only where there is a figure: 4.8 MB of JavaScript, kept
gzipped (2 MB) and unpacked by the browser. The page's content security policy allows no request at all and no script but the
two that are embedded here, known by their hashes; so it stays offline, and a caption that got in unescaped would not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NewType, Self

from tclx.files import write_atomically

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Html = NewType("Html", str)

COLORS = ("#2f7de1", "#e0622a", "#1fa36f", "#a45fd0", "#c98a00", "#d9467f", "#0e9aa7", "#7a8290")
"""Told apart by most colour-blind readers, and with contrast enough on white and on near-black."""
_MARGIN = {"l": 48, "r": 16, "t": 32, "b": 40}
_NOSCRIPT = '<noscript><p class="note">The figures are drawn by scripts, which are switched off here.</p></noscript>'
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
        self._toggles: Html | None = None
        self._sections: list[tuple[str, Html]] = []

    def toggles(self, groups: Mapping[str, Style]) -> Self:
        """Buttons that stay in view and hide a group in all figures: the traces whose `legendgroup` is `group_key(label)`."""
        buttons = "".join(
            f'<button type="button" aria-pressed="true" data-group="{escaped(group_key(label))}">'
            f'<svg width="22" height="10" aria-hidden="true"><line x1="0" y1="5" x2="22" y2="5" stroke="{style.color}" '
            f'stroke-width="3" stroke-dasharray="{_SVG_DASHES[style.dash]}"/></svg>{escaped(label)}</button>'
            for label, style in groups.items()
        )
        self._toggles = Html(f'<div class="toggles" role="group" aria-label="Show or hide">{buttons}</div>')
        return self

    def section(self, heading: str, *blocks: Html) -> Self:
        """Add a section; without a block it is left out."""
        if blocks:
            self._sections.append((heading, joined(blocks)))
        return self

    def html(self) -> str:
        """The whole document."""
        body = "".join(
            f'<section id="part-{number}"><h2>{escaped(heading)}</h2>{content}</section>'
            for number, (heading, content) in enumerate(self._sections, 1)
        )
        contents = "".join(
            f'<a href="#part-{number}">{escaped(heading)}</a>' for number, (heading, _) in enumerate(self._sections, 1)
        )
        has_figures = 'class="plot"' in body
        library = f'<script type="text/plain" id="plotly">{_packed_plotly().base64}</script>' if has_figures else ""
        script = _resource("page.js")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script, has_figures=has_figures)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escaped(self._title)}</title>\n<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n"
            f"<header><h1>{escaped(self._title)}</h1>{self._lead or ''}<nav>{contents}</nav></header>\n"
            f"{_NOSCRIPT if has_figures else ''}{self._toggles if self._toggles and has_figures else ''}<main>{body}</main>\n"
            f"{library}<script>{script}</script>\n</body>\n</html>\n"
        )

    def write(self, path: Path | str) -> None:
        """Write or replace the file.

        Raises:
            MachineError: it cannot be written.
        """
        write_atomically(Path(path), self.html())


def escaped(value: str) -> Html:
    """Text as markup, also inside a quoted attribute."""
    return Html(html.escape(value, quote=True))


def joined(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("".join(parts))


def text(value: str, *, kind: str = "") -> Html:
    """A paragraph; `kind` is `note` (what is missing or must be known) or `small`."""
    return Html(f'<p class="{escaped(kind)}">{escaped(value)}</p>' if kind else f"<p>{escaped(value)}</p>")


def bold(value: str) -> Html:
    """Emphasised text."""
    return Html(f"<b>{escaped(value)}</b>")


def code(value: str) -> Html:
    """A command or a file, as it is typed."""
    return Html(f"<pre><code>{escaped(value)}</code></pre>")


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, as long as it is."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def details(summary: str, *blocks: Html) -> Html:
    """Blocks that are folded away until somebody asks; their figures are drawn then."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{joined(blocks)}</details>")


def grid(blocks: Iterable[Html]) -> Html:
    """Blocks side by side where there is room."""
    return Html(f'<div class="grid">{joined(blocks)}</div>')


def table(head: Sequence[str], rows: Iterable[Sequence[str | Markup]], *, numbers: bool = True) -> Html:
    """A table whose first column names the row; it scrolls sideways by itself where the screen is narrow.

    Args:
        head: column titles.
        rows: cells; wrap markup in `Markup`, all else is escaped.
        numbers: align all columns but the first to the right.
    """
    cells_of = (
        "".join(f"<{tag}>{cell.html if isinstance(cell, Markup) else escaped(cell)}</{tag}>" for tag, cell in _tagged(row))
        for row in rows
    )
    heads = "".join(f'<th scope="col">{escaped(title)}</th>' for title in head)
    lines = "".join(f"<tr>{cells}</tr>" for cells in cells_of)
    kind = "numbers" if numbers else "words"
    content = f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody>"
    return Html(f'<div class="scroll" tabindex="0"><table class="{kind}">{content}</table></div>')


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A few figures that stand out: what it is, and how much."""
    cards = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in pairs)
    return Html(f'<dl class="facts">{cards}</dl>')


def jpeg(encoded: str, *, description: str, right: bool = False) -> Html:
    """A small picture from base64; `right` marks it as what was asked for."""
    clean = base64.b64encode(base64.b64decode(encoded, validate=True)).decode()
    kind = ' class="right"' if right else ""
    return Html(f'<img{kind} src="data:image/jpeg;base64,{clean}" alt="{escaped(description)}">')


def download(name: str, content: str) -> Html:
    """A link that saves a text file which the page carries."""
    data = base64.b64encode(content.encode()).decode()
    return Html(f'<a download="{escaped(name)}" href="data:application/octet-stream;base64,{data}">{escaped(name)}</a>')


def figure(plot: Figure, *, title: str, name: str = "", caption: str = "", height: int = 260) -> Html:
    """A plotly figure under its title.

    The page sets fonts, background and grid for light and dark, so whatever template the figure has gives way; colours of the
    traces are the figure's own.

    Args:
        plot: a `plotly.graph_objects.Figure`, one of Optuna's for instance.
        title, caption: in HTML above and below; a title inside the figure would not wrap on a phone, so it is taken out.
        name: under which its numbers are found elsewhere.
        height: in pixels.
    """
    drawn = json.loads(plot.to_json())
    drawn["layout"].pop("title", None)
    drawn["layout"].setdefault("margin", _MARGIN)
    content = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")  # never ends the script that carries it
    named = f"<code>{escaped(name)}</code>" if name else ""
    below = f'<p class="small">{escaped(caption)}</p>' if caption else ""
    return Html(
        f'<figure><figcaption>{escaped(title)}{named}</figcaption><div class="plot" style="height:{height}px" '
        f'role="img" aria-label="{escaped(title)}"><script type="application/json">{content}</script></div>{below}</figure>'
    )


def group_key(label: str) -> str:
    """A label as plotly takes it: it reads names as a little HTML."""
    return html.escape(label, quote=False)


class Markup(NamedTuple):
    """Markup in a table's cell."""

    html: Html


class _Packed(NamedTuple):
    base64: str
    sha256: str


_SVG_DASHES = {"solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}


def _tagged(row: Sequence[str | Markup]) -> Iterable[tuple[str, str | Markup]]:
    return ((("th" if position == 0 else "td"), cell) for position, cell in enumerate(row))


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
