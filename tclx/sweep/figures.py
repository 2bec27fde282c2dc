"""How is a study drawn? Trial 0, the experiment itself, stands out wherever trials are. Optuna draws what takes an estimate."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tclx.report.page import COLORS
from tclx.sweep.confirm import Confirmation
from tclx.sweep.sequential import FEWEST
from tclx.sweep.summary import STATE_WORDS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from tclx.report.bootstrap import Interval

EXPERIMENT = "trial 0 (the experiment)"
_TRIAL, _OWN, _OTHER = COLORS[0], COLORS[1], COLORS[7]
_MARGIN = {"l": 48, "r": 16, "t": 8, "b": 40}
_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
"""A legend that takes no width, of which a phone has little."""

_FEW_EVALUATIONS = 12
"""So few that each has a mark on its axis."""

Value = Callable[[FrozenTrial], float]


def history(trials: Sequence[FrozenTrial], value: Value, *, sign: int, name: str) -> Figure:
    """Every complete trial by its number, and the best so far.

    Args:
        trials: in the order of their numbers, one at least.
        value: of the objective.
        sign: 1 where more is better, -1 where less is.
        name: of the objective.
    """
    plot, numbers, values = _figure(), [trial.number for trial in trials], [value(trial) for trial in trials]
    best = list(accumulate(values, max if sign > 0 else min))
    plot.add_scatter(
        x=numbers, y=best, mode="lines", line={"color": _TRIAL, "shape": "hv", "width": 1}, name="best so far", hoverinfo="skip"
    )
    _add_trials(plot, [(trial.number, value(trial), trial) for trial in trials])
    own = _experiment(trials)
    if own is not None:
        plot.add_hline(y=value(own), line={"color": _OWN, "width": 1, "dash": "dot"})
    return plot.update_layout(xaxis={"title": {"text": "trial"}}, yaxis={"title": {"text": name}})


def parameter(trials: Sequence[FrozenTrial], value: Value, key: str, *, name: str) -> Figure:
    """The objective over one parameter.

    Args:
        trials: complete ones; those without the parameter are left out.
        value: of the objective.
        key: the parameter.
        name: of the objective.
    """
    plot, having = _figure(), [trial for trial in trials if key in trial.params]
    _add_trials(plot, [(_shown(trial, key), value(trial), trial) for trial in having])
    return plot.update_layout(
        showlegend=False, xaxis={"title": {"text": key}, **_scale(having[0], key)}, yaxis={"title": {"text": name}}
    )


def pair(study: optuna.Study, keys: tuple[str, str], target: Value | None, *, name: str) -> Figure:
    """The objective over two parameters, as Optuna interpolates it."""
    plot = optuna.visualization.plot_contour(study, list(keys), target=target, target_name=name)
    first = _experiment(study.get_trials(deepcopy=False))
    # Which of the two lies across is Optuna's to choose.
    across = plot.layout.xaxis.title.text
    down = next(key for key in keys if key != across)
    if first is not None and {*keys} <= {*first.params}:
        plot.add_scatter(x=[_shown(first, across)], y=[_shown(first, down)], **_star())
    plain = {"exponentformat": "none"}
    return plot.update_layout(legend=_ABOVE, xaxis=plain, yaxis=plain)


def all_parameters(trials: Sequence[FrozenTrial], value: Value, keys: Mapping[str, str], *, sign: int, name: str) -> Figure:
    """Every trial a line through the objective and its parameters, the better the more yellow; trial 0 by its own colour.

    Args:
        trials: complete ones, two at least.
        value: of the objective.
        keys: parameters, and what they are called here.
        sign: 1 where more is better, -1 where less is.
        name: of the objective.
    """
    from plotly.colors import sample_colorscale

    axes = [_Axis.of_values(name, {trial.number: value(trial) for trial in trials})]
    axes += [_Axis.of_parameter(label, key, trials) for key, label in keys.items()]
    plot, low, high = _figure(), min(map(value, trials)), max(map(value, trials))
    ordered = sorted(trials, key=lambda trial: (trial.number == 0, sign * value(trial)))  # what is drawn last lies on top
    for trial in ordered:
        is_own, share = trial.number == 0, (value(trial) - low) / (high - low or 1)
        (color,) = sample_colorscale("Viridis", [share if sign > 0 else 1 - share])
        said = [f"{axis.label} {axis.said[trial.number]}" for axis in axes if trial.number in axis.said]
        plot.add_scatter(
            x=list(range(len(axes))),
            y=[axis.places.get(trial.number) for axis in axes],
            mode="lines+markers",
            marker={"size": 5},
            line={"color": _OWN if is_own else color, "width": 3 if is_own else 1.5},
            opacity=1 if is_own else 0.8,
            name=EXPERIMENT,
            showlegend=is_own,
            hovertemplate=f"trial {trial.number}<br>{'<br>'.join(map(html.escape, said))}<extra></extra>",
        )
    for place, axis in enumerate(axes):
        for height, shift, end in ((0, -10, axis.ends[0]), (1, 10, axis.ends[1])):
            plot.add_annotation(x=place, y=height, yshift=shift, text=html.escape(end), showarrow=False)
    return plot.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": [html.escape(axis.label) for axis in axes],
            "tickangle": -20,
            "range": [-0.4, len(axes) - 0.6],
        },
        yaxis={"visible": False, "range": [-0.12, 1.12]},
    )


class _Axis(NamedTuple):
    """One of several upright axes beside each other."""

    label: str
    places: Mapping[int, float]
    """Of each trial, by number: 0 at the foot, 1 at the head."""
    said: Mapping[int, str]
    """Its value, as read."""
    ends: tuple[str, str]
    """What stands at the foot and at the head."""

    @classmethod
    def of_values(cls, label: str, values: Mapping[int, float], *, log: bool = False) -> Self:
        scaled = {number: math.log(each) if log else each for number, each in values.items()}
        low, high = min(scaled.values()), max(scaled.values())
        said = {number: f"{each:.4g}" for number, each in values.items()}
        places = {number: (each - low) / (high - low) if high > low else 0.5 for number, each in scaled.items()}
        return cls(label, places, said, (f"{min(values.values()):.3g}", f"{max(values.values()):.3g}"))

    @classmethod
    def of_parameter(cls, label: str, key: str, trials: Sequence[FrozenTrial]) -> Self:
        having = [trial for trial in trials if key in trial.params]
        distribution = having[0].distributions[key]
        if not isinstance(distribution, CategoricalDistribution):
            return cls.of_values(label, {trial.number: trial.params[key] for trial in having}, log=_is_log(having[0], key))
        choices = [str(choice) for choice in distribution.choices]
        said = {trial.number: str(trial.params[key]) for trial in having}
        places = {number: choices.index(one) / max(len(choices) - 1, 1) for number, one in said.items()}
        return cls(label, places, said, (choices[0], choices[-1]))


def evaluations(trials: Sequence[FrozenTrial], best: int | None, *, name: str) -> Figure:
    """The objective at every evaluation, those of pruned trials dotted.

    Args:
        trials: of any state; those that were never evaluated are left out.
        best: number of the best.
        name: of the objective.
    """
    plot, named = _figure(), set[str]()
    for trial in sorted(trials, key=lambda trial: (trial.number == 0, trial.number == best)):  # these last, on top
        if not trial.intermediate_values:
            continue
        pruned = trial.state == TrialState.PRUNED
        label, color, width = ("pruned" if pruned else "others"), _OTHER, 1
        if trial.number == best:
            label, color, width = f"trial {best}, the best", _TRIAL, 3
        if trial.number == 0:
            label, color, width = f"{EXPERIMENT}{', the best' if best == 0 else ''}", _OWN, 3
        steps, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
        plot.add_scatter(
            x=steps,
            y=values,
            name=label,
            showlegend=label not in named,
            mode="lines+markers",
            line={"color": color, "width": width, "dash": "dot" if pruned else "solid"},
            marker={"size": 4},
            hovertemplate=f"trial {trial.number}: %{{y:.4~g}}<extra></extra>",
        )
        named.add(label)
    most = max(max(trial.intermediate_values, default=0) for trial in trials)
    marks = {"dtick": 1} if most <= _FEW_EVALUATIONS else {"nticks": 8}
    return plot.update_layout(xaxis={"title": {"text": "evaluation"}, **marks}, yaxis={"title": {"text": name}})


def timeline(study: optuna.Study) -> Figure:
    """When each trial ran."""
    plot = optuna.visualization.plot_timeline(study)
    words = {state.name: word for state, word in STATE_WORDS.items()}
    for trace in plot.data:
        trace.name = words.get(trace.name, trace.name.lower())
    return plot.update_layout(legend=_ABOVE, xaxis_title="time", yaxis_title="trial")


def front(study: optuna.Study, names: Sequence[str]) -> Figure:
    """What each objective costs the others."""
    plot = optuna.visualization.plot_pareto_front(study, target_names=list(names))
    own = _experiment(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if own is not None and len(names) == 2:
        plot.add_scatter(x=[own.values[0]], y=[own.values[1]], **_star())
    return plot.update_layout(legend=_ABOVE)


def importances(shares: Mapping[str, float], intervals: Mapping[str, Interval]) -> Figure:
    """Shares of the variance, the largest on top; a line where each is known to lie."""
    import plotly.graph_objects as go

    names = list(shares)[::-1]
    plot = go.Figure(go.Bar(x=[shares[name] for name in names], y=names, orientation="h", marker={"color": _TRIAL}))
    for name in names:
        if (interval := intervals.get(name)) is not None:
            line = {"color": _OTHER, "width": 3}
            plot.add_scatter(x=list(interval), y=[name, name], mode="lines", line=line, hovertemplate="%{x:.0%}<extra></extra>")
    return plot.update_layout(
        template=None,
        showlegend=False,
        margin={"l": 8, "r": 16, "t": 8, "b": 40},
        xaxis={"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "share of the variance", "standoff": 4}},
        yaxis={"automargin": True},
    )


def differences(confirmation: Confirmation, *, name: str) -> Figure:
    """Every confirmed trial minus trial 0, seed by seed.

    Args:
        confirmation: with a seed at least.
        name: of the objective.
    """
    plot = _figure()
    for one in reversed(confirmation.candidates):
        label = f"trial {one.arm.number}"
        both = [seed for seed in confirmation.seeds if seed in one.arm.values and seed in confirmation.baseline.values]
        low, high = one.compared.low, one.compared.high
        if one.compared.num_seeds >= FEWEST:
            plot.add_scatter(
                x=[low, high],
                y=[label, label],
                mode="lines",
                line={"color": _TRIAL, "width": 6},
                opacity=0.35,
                hoverinfo="skip",
            )
            plot.add_scatter(
                x=[(low + high) / 2],
                y=[label],
                mode="markers",
                marker={"color": _TRIAL, "size": 13, "symbol": "line-ns-open", "line": {"width": 3}},
                hovertemplate="mean %{x:.3g}<extra></extra>",
            )
        plot.add_scatter(
            x=[one.arm.values[seed] - confirmation.baseline.values[seed] for seed in both],
            y=[label] * len(both),
            mode="markers",
            marker={"color": _OTHER, "size": 7},
            customdata=both,
            hovertemplate="seed %{customdata}: %{x:.3g}<extra></extra>",
        )
    plot.add_vline(x=0, line={"color": _OWN, "width": 1, "dash": "dot"})
    return plot.update_layout(
        showlegend=False,
        xaxis={"title": {"text": f"{name} minus trial 0's", "standoff": 4}},
        yaxis={"automargin": True, "type": "category"},
    )


def _figure() -> Figure:
    import plotly.graph_objects as go

    plain = {"automargin": True, "exponentformat": "none"}
    return go.Figure().update_layout(
        template=None, legend=_ABOVE, margin=_MARGIN, hovermode="closest", xaxis={**plain, "zeroline": False}, yaxis=plain
    )


def _experiment(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Trial 0, where it is among them."""
    return next((trial for trial in trials if trial.number == 0), None)


def _add_trials(plot: Figure, points: Sequence[tuple[Any, float, FrozenTrial]]) -> None:
    """A dot each, and a star for trial 0."""
    others = [point for point in points if point[2].number != 0]
    plot.add_scatter(
        x=[across for across, _, _ in others],
        y=[value for _, value, _ in others],
        customdata=[trial.number for _, _, trial in others],
        mode="markers",
        marker={"color": _TRIAL, "size": 7, "opacity": 0.75},
        name="trials",
        hovertemplate="trial %{customdata}: %{y:.4~g} at %{x}<extra></extra>",
    )
    for across, value, trial in points:
        if trial.number == 0:
            plot.add_scatter(x=[across], y=[value], **_star())


def _star() -> dict[str, Any]:
    return {
        "mode": "markers",
        "marker": {"color": _OWN, "size": 13, "symbol": "star", "line": {"color": "#ffffff", "width": 1}},
        "name": EXPERIMENT,
        "hovertemplate": "trial 0: %{y:.4~g} at %{x}<extra></extra>",
    }


def _shown(trial: FrozenTrial, key: str) -> Any:
    """A parameter's value where an axis has it."""
    value = trial.params[key]
    return str(value) if isinstance(trial.distributions[key], CategoricalDistribution) else value


def _scale(trial: FrozenTrial, key: str) -> dict[str, Any]:
    distribution = trial.distributions[key]
    if isinstance(distribution, CategoricalDistribution):
        order = [str(choice) for choice in distribution.choices]
        return {"type": "category", "categoryorder": "array", "categoryarray": order}
    return {"type": "log" if _is_log(trial, key) else "linear", "nticks": 6}


def _is_log(trial: FrozenTrial, key: str) -> bool:
    distribution = trial.distributions[key]
    return isinstance(distribution, IntDistribution | FloatDistribution) and distribution.log
