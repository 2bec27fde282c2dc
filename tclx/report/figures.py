"""How are runs drawn? Curves with seeds as bands, and single results as dots around their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import plotly.graph_objects as go

from tclx.report.history import Curve
from tclx.report.page import Style, group_key
from tclx.report.results import Spread

_FEW_POINTS = 12
"""So few that where they are matters: evaluations, mostly."""
_MARGIN = {"l": 48, "r": 8, "t": 8, "b": 34}


def curves(by_group: Mapping[str, Curve], styles: Mapping[str, Style], *, chance: float | None = None) -> go.Figure:
    """One metric: a line a group, and around it a band from the smallest to the largest seed; each seed's own line is hidden,
    until a button of the page shows it.

    Args:
        by_group: by label.
        styles: by label.
        chance: what guessing reaches, as a dotted line.
    """
    plot = go.Figure()
    for label, curve in by_group.items():
        key, style = group_key(label), styles[label]
        if curve.low != curve.high:
            plot.add_scatter(
                x=[*curve.steps, *reversed(curve.steps)],
                y=_rounded([*curve.high, *reversed(curve.low)]),
                fill="toself",
                fillcolor=_faint(style.color),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                legendgroup=key,
            )
    for label, curve in by_group.items():
        key, style, banded = group_key(label), styles[label], curve.low != curve.high
        plot.add_scatter(
            x=curve.steps,
            y=_rounded(curve.mean),
            customdata=list(zip(_rounded(curve.low), _rounded(curve.high), strict=True)) if banded else None,
            hovertemplate="%{y:.4~g}" + (" (%{customdata[0]:.4~g} to %{customdata[1]:.4~g})" if banded else ""),
            name=key,
            mode="lines" if len(curve.steps) > _FEW_POINTS else "lines+markers",
            line={"color": style.color, "width": 2, "dash": style.dash},
            legendgroup=key,
        )
        if banded and curve.each:
            plot.add_scatter(**_single_seeds(curve, of=len(plot.data) - 1, key=key, color=style.color))
    if chance is not None:
        plot.add_hline(
            y=round(chance, 4),
            line={"color": "#888888", "width": 1, "dash": "dot"},
            annotation={"text": "chance", "font": {"size": 10, "color": "#888888"}},
            annotation_position="bottom right",
        )
    plot.update_layout(
        template=None,
        showlegend=False,
        hovermode="x unified",
        margin=_MARGIN,
        xaxis={
            "title": {"text": "step", "standoff": 4},
            "automargin": True,
            "nticks": 6,
            "unifiedhovertitle": {"text": "step %{x}"},
        },
        yaxis={"automargin": True, "nticks": 6},
    )
    return plot


def _single_seeds(curve: Curve, *, of: int, key: str, color: str) -> dict[str, Any]:
    """Every seed's line as one trace; the page's script takes its steps from trace `of`, once for each seed."""
    return {
        "y": [value if value is None else _short(value) for values in curve.each for value in (*values, None)],
        "meta": {"seeds_of": of},
        "visible": False,
        "connectgaps": False,
        "mode": "lines",
        "line": {"color": color, "width": 1},
        "opacity": 0.7,
        "hoverinfo": "skip",
        "legendgroup": key,
    }


def dots(values: Mapping[str, Sequence[float]], spreads: Mapping[str, Spread], styles: Mapping[str, Style]) -> go.Figure:
    """One final figure: every seed a dot, and the mean with its sample deviation beside them."""
    plot = go.Figure()
    labels = list(values)
    for position, label in enumerate(labels):
        key, color, spread = group_key(label), styles[label].color, spreads[label]
        plot.add_scatter(
            x=_rounded(values[label]),
            y=[position - 0.14] * len(values[label]),
            mode="markers",
            marker={"color": color, "size": 7, "opacity": 0.55},
            hovertemplate="%{x:.2f}<extra>one seed</extra>",
            legendgroup=key,
        )
        plot.add_scatter(
            x=_rounded([spread.mean]),
            y=[position + 0.14],
            error_x={"array": [spread.deviation or 0.0], "color": color, "thickness": 2, "width": 5},
            mode="markers",
            marker={"color": color, "size": 10, "symbol": "diamond"},
            hovertemplate="%{x:.2f}<extra>mean</extra>",
            legendgroup=key,
        )
    plot.update_layout(
        template=None,
        showlegend=False,
        margin={**_MARGIN, "b": 24},
        xaxis={"automargin": True, "nticks": 6, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(labels))),
            "ticktext": [group_key(label) for label in labels],
            "range": [len(labels) - 0.4, -0.6],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
    )
    return plot


class Shares(NamedTuple):
    """How many pairs lie between two similarities."""

    edges: Sequence[float]
    """[bins + 1]"""
    matched: Sequence[int]
    """[bins] of captions and their own image."""
    unmatched: Sequence[int]
    """[bins] of all other pairs."""


def shares(by_group: Mapping[str, Shares], styles: Mapping[str, Style]) -> go.Figure:
    """Two histograms a group, as percentages of their pairs; only as wide as there are any."""
    plot = go.Figure()
    filled = sorted(number for one in by_group.values() for kind in one[1:] for number, count in enumerate(kind) if count)
    bins = range(max(filled[0] - 1, 0), filled[-1] + 2) if filled else range(0)
    for label, one in by_group.items():
        key, color = group_key(label), styles[label].color
        middles = [(low + high) / 2 for low, high in pairwise(one.edges)]
        for kind, counts, look in (
            ("own image", one.matched, {"fill": "tozeroy", "fillcolor": _faint(color), "line": {"color": color, "width": 2}}),
            ("others", one.unmatched, {"line": {"color": color, "width": 2, "dash": "dot"}}),
        ):
            shown = [number for number in bins if number < len(counts)]
            plot.add_scatter(
                x=_rounded([middles[number] for number in shown]),
                y=_rounded([100 * counts[number] / max(sum(counts), 1) for number in shown]),
                mode="lines",
                hovertemplate=f"%{{y:.3~g}} % at %{{x:.2f}}<extra>{key}, {kind}</extra>",
                name=key,
                legendgroup=key,
                **look,
            )
    plot.update_layout(
        template=None,
        showlegend=False,
        margin=_MARGIN,
        xaxis={"title": {"text": "cosine", "standoff": 4}, "automargin": True, "nticks": 6, "zeroline": False},
        yaxis={"automargin": True, "nticks": 6, "rangemode": "tozero"},
    )
    return plot


def _faint(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _rounded(values: Sequence[float]) -> list[float]:
    """Five digits: what a figure can show, at a third of the weight."""
    return [_short(value) for value in values]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
