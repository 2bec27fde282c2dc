"""Markup of pages, from templates in which whatever is not markup already is escaped.

`Html` goes into a page as it stands; a `str`, which may come from a spec, a caption or a path, is escaped where it is put in.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Html: TypeAlias = Markup
"""May go into a page as it stands."""

_MARGIN = {"l": 48, "r": 16, "t": 32, "b": 40}


@cache
def templates() -> Environment:
    """The templates of this package."""
    return Environment(
        loader=PackageLoader("tclx.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def part(name: str, /, **values: Any) -> Html:
    """One of the macros of templates/parts.html."""
    made: Html = getattr(templates().get_template("parts.html").module, name)(**values)
    return made


def escaped(value: str) -> Html:
    """Text as markup, also inside a quoted attribute."""
    return escape(value)


def joined(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("").join(parts)


def text(value: str, *, kind: str = "") -> Html:
    """A paragraph; `kind` is `note` (what is missing or must be known) or `small`."""
    return part("text", value=value, kind=kind)


def bold(value: str) -> Html:
    """Emphasised text."""
    return part("bold", value=value)


def heading(value: str) -> Html:
    """A heading inside a section."""
    return part("heading", value=value)


def code(value: str) -> Html:
    """A command or a file, as it is typed."""
    return part("code", value=value)


def details(summary: str, *blocks: Html) -> Html:
    """Blocks that are folded away until somebody asks; their figures are drawn then."""
    return part("details", summary=summary, content=joined(blocks))


def grid(blocks: Iterable[Html]) -> Html:
    """Blocks side by side where there is room."""
    return part("grid", content=joined(blocks))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> Html:
    """A table whose first column names the row; it scrolls sideways by itself where the screen is narrow.

    Args:
        head: column titles.
        rows: cells, text or markup.
        numbers: align all columns but the first to the right.
    """
    return part("table", head=head, rows=list(rows), kind="numbers" if numbers else "words")


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A few figures that stand out: what it is, and how much."""
    return part("facts", pairs=list(pairs))


def jpeg(encoded: str, *, description: str, right: bool = False) -> Html:
    """A small image from base64; `right` marks it as what was asked for."""
    clean = base64.b64encode(base64.b64decode(encoded, validate=True)).decode()
    return part("jpeg", data=clean, description=description, right=right)


def download(name: str, content: str) -> Html:
    """A link that saves a text file which the page carries."""
    return part("download", name=name, data=base64.b64encode(content.encode()).decode())


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
    # A script's content is not HTML, where escapes would be read as they stand; without a `<` nothing in it ends the script.
    content = Html(json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c"))
    return part("figure", title=title, name=name, caption=caption, height=height, content=content)
