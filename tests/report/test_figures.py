"""What figures show is what was given: every value at its place, in its group's colour, and said when it is pointed at."""

from __future__ import annotations

import pytest

from tclx.report import figures
from tclx.report.history import Curve
from tclx.report.page import group_key, styles
from tclx.report.results import Spread

STYLES = styles(["a", "b"])


def test_a_line_a_group_and_a_band_around_several_seeds() -> None:
    each = ((1.0, 2.5), (3.0, None), (None, 3.5))
    seeds = Curve(steps=[1, 2], mean=[2.0, 3.0], low=[1.0, 2.5], high=[3.0, 3.5], rows_per_point=1, each=each)
    one = Curve(steps=[1, 2], mean=[5.0, 6.0], low=[5.0, 6.0], high=[5.0, 6.0], rows_per_point=1)
    band, first, single, second = figures.curves({"a": seeds, "b": one}, STYLES).data
    assert list(band.x) == [1, 2, 2, 1]
    assert list(band.y) == [3.0, 3.5, 2.5, 1.0]
    assert (band.fill, band.mode, band.line.width, band.hoverinfo) == ("toself", "lines", 0, "skip")
    assert band.fillcolor.startswith("rgba(")
    assert band.fillcolor.endswith(",0.18)")
    assert {band.legendgroup, first.legendgroup} == {group_key("a")}
    assert (list(first.x), list(first.y)) == ([1, 2], [2.0, 3.0])
    assert [list(pair) for pair in first.customdata] == [[1.0, 3.0], [2.5, 3.5]]
    assert first.hovertemplate == "%{y:.4~g} (%{customdata[0]:.4~g} to %{customdata[1]:.4~g})"
    assert (second.hovertemplate, second.customdata) == ("%{y:.4~g}", None)
    assert (second.legendgroup, second.name) == (group_key("b"), group_key("b"))
    assert (first.line.color, second.line.color) == (STYLES["a"].color, STYLES["b"].color)
    assert first.line.width == 2
    assert list(single.y) == [1.0, 2.5, None, 3.0, None, None, None, 3.5, None]  # a seed after the other, a gap between
    assert (single.visible, single.meta, single.legendgroup, single.x) == (False, {"seeds_of": 1}, group_key("a"), None)


@pytest.mark.parametrize(("points", "mode"), [(12, "lines+markers"), (13, "lines")])
def test_few_points_are_marked(points: int, mode: str) -> None:
    values = [float(number) for number in range(points)]
    (line,) = figures.curves({"a": Curve(list(range(points)), values, values, values, 1)}, STYLES).data
    assert line.mode == mode


def test_a_single_seed_and_its_mean_are_at_the_same_place() -> None:
    """An axis that fits itself to a difference in the 15th digit would set them far apart."""
    dot, mean = figures.dots({"a": [49 / 3]}, {"a": Spread(49 / 3, None)}, STYLES).data
    assert dot.x == mean.x == (16.333,)
    assert mean.error_x.array == (0.0,)


def test_every_seed_is_a_dot_beside_the_mean_of_its_group() -> None:
    spreads = {"a": Spread(2.0, 1.0), "b": Spread(4.0, None)}
    plot = figures.dots({"a": [1.0, 3.0], "b": [4.0]}, spreads, STYLES)
    seeds, mean, other, other_mean = plot.data
    assert (list(seeds.x), list(mean.x), list(mean.error_x.array)) == ([1.0, 3.0], [2.0], [1.0])
    assert (list(other.x), list(other_mean.x)) == ([4.0], [4.0])
    assert list(seeds.y) == [pytest.approx(-0.14)] * 2
    assert (list(mean.y), list(other.y), list(other_mean.y)) == ([0.14], [pytest.approx(0.86)], [pytest.approx(1.14)])
    assert {trace.mode for trace in plot.data} == {"markers"}
    assert [trace.hovertemplate for trace in (seeds, mean)] == [
        "%{x:.2f}<extra>one seed</extra>",
        "%{x:.2f}<extra>mean</extra>",
    ]
    assert [trace.legendgroup for trace in plot.data] == [group_key("a")] * 2 + [group_key("b")] * 2
    assert {seeds.marker.color, mean.marker.color, mean.error_x.color} == {STYLES["a"].color}
    assert (mean.marker.symbol, seeds.marker.opacity) == ("diamond", 0.55)
    axis = plot.layout.yaxis
    assert (list(axis.tickvals), list(axis.ticktext)) == ([0, 1], [group_key("a"), group_key("b")])
    assert list(axis.range) == [1.6, -0.6]  # the first at the top


def test_similarities_are_percentages_of_their_own_pairs_and_as_wide_as_there_are_any() -> None:
    one = figures.Shares(edges=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], matched=[0, 0, 1, 3, 0, 0], unmatched=[0, 0, 10, 0, 0, 0])
    own, others = figures.shares({"a": one}, STYLES).data
    assert list(own.x) == list(others.x) == [pytest.approx(0.15), pytest.approx(0.25), pytest.approx(0.35), pytest.approx(0.45)]
    assert list(own.y) == [0.0, 25.0, 75.0, 0.0]
    assert list(others.y) == [0.0, 100.0, 0.0, 0.0]
    assert (own.fill, own.line.dash, others.fill, others.line.dash) == ("tozeroy", None, None, "dot")
    assert own.hovertemplate == f"%{{y:.3~g}} % at %{{x:.2f}}<extra>{group_key('a')}, own image</extra>"
    assert others.hovertemplate.endswith(", others</extra>")
    empty = figures.Shares([0.0, 0.5, 1.0], [0, 0], [0, 0])
    assert [list(trace.x) for trace in figures.shares({"a": empty}, STYLES).data] == [[], []]


def test_axes_say_what_they_are() -> None:
    line = Curve([1], [1.0], [1.0], [1.0], 1)
    curves, shares = figures.curves({"a": line}, STYLES), figures.shares({}, STYLES)
    assert (curves.layout.xaxis.title.text, curves.layout.hovermode) == ("step", "x unified")
    assert curves.layout.xaxis.unifiedhovertitle.text == "step %{x}"
    assert shares.layout.xaxis.title.text == "cosine"
    for plot in (curves, shares, figures.dots({}, {}, STYLES)):
        assert plot.layout.showlegend is False  # the page has buttons for the groups
        assert plot.layout.xaxis.automargin is True
        assert plot.layout.yaxis.automargin is True
