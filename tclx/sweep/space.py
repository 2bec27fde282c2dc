"""What does a trial try? Keys of an experiment and their ranges -> Optuna's parameters, and back to values for the spec.

Every parameter is called after its key. A switch (`on_or_off`) comes before the keys inside its section, which count only
while it is on. The weights of a simplex are drawn as exponentials divided by their sum, which is uniform on
the simplex (Devroye 1986).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from tclx.spec.fields import ROOT, Place
from tclx.spec.sweep import ParameterSpec, Scalar, SimplexSpec, SweepSpec

ON, OFF = "on", "off"
SWITCHED: dict[str, Any] = {ON: {}, OFF: None}
"""What a switch puts into the experiment."""

_LEAST_SHARE = 1e-6
"""Keeps the logarithm of a share's draw finite."""

Tree = dict[str, Any]
"""An experiment as JSON knows it."""


class Parameter(NamedTuple):
    """One of Optuna's parameters."""

    name: str
    key: str
    distribution: BaseDistribution
    is_switch: bool = False


def parameters(sweep: SweepSpec) -> list[Parameter]:
    """All parameters of the sweep, switches before what depends on them."""
    keys = sorted(sweep.space, key=lambda key: (sweep.space[key].on_or_off is None, key.count(".")))
    found = [Parameter(key, key, _distribution(sweep.space[key]), sweep.space[key].on_or_off is not None) for key in keys]
    for simplex in sweep.simplex:
        share = FloatDistribution(_LEAST_SHARE, 1 - _LEAST_SHARE)
        found += [Parameter(share_name(key), key, share) for key in simplex.keys]
    return found


def share_name(key: str) -> str:
    """The parameter behind a weight of a simplex: a draw, from which the weight follows."""
    return f"{key} (share)"


def _distribution(parameter: ParameterSpec) -> BaseDistribution:
    if parameter.uniform:
        return FloatDistribution(*parameter.uniform)
    if parameter.log_uniform:
        return FloatDistribution(*parameter.log_uniform, log=True)
    if parameter.integer:
        return IntDistribution(*parameter.integer)
    if parameter.log_integer:
        return IntDistribution(*parameter.log_integer, log=True)
    return CategoricalDistribution([ON, OFF] if parameter.on_or_off else parameter.choices or ())


def draw(trial: BaseTrial, sweep: SweepSpec) -> dict[str, Any]:
    """The parameters of one trial; those that it has already are not drawn again."""
    drawn: dict[str, Any] = {}
    for parameter in parameters(sweep):
        if not _is_off(parameter.key, drawn):
            drawn[parameter.name] = _suggest(trial, parameter)
    return drawn


def _suggest(trial: BaseTrial, parameter: Parameter) -> Any:
    match parameter.distribution:
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(parameter.name, low, high, log=log)
        case IntDistribution(low=low, high=high, log=log):
            return trial.suggest_int(parameter.name, low, high, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(parameter.name, choices)
    raise TypeError(parameter.distribution)


def _is_off(key: str, drawn: Mapping[str, Any]) -> bool:
    """Whether a section around the key is switched off."""
    around = key.rpartition(".")[0]
    while around:
        if drawn.get(around) == OFF:
            return True
        around = around.rpartition(".")[0]
    return False


def values_of(drawn: Mapping[str, Any], sweep: SweepSpec) -> dict[str, Scalar | Tree]:
    """What a trial's parameters put into the experiment: key paths and values, outer sections first."""
    values: dict[str, Scalar | Tree] = {}
    for parameter in parameters(sweep):
        if parameter.name not in drawn or parameter.name != parameter.key:
            continue
        value = drawn[parameter.name]
        values[parameter.key] = SWITCHED[value] if parameter.is_switch else value
    for simplex in sweep.simplex:
        values |= _shared_out(simplex, drawn)
    return values


def shown(values: Mapping[str, Any], sweep: SweepSpec) -> dict[str, Any]:
    """The values as the sweep file would say them: a switch is `on` or `off`."""
    switches = {key for key, parameter in sweep.space.items() if parameter.on_or_off}
    return {key: (OFF if value is None else ON) if key in switches else value for key, value in values.items()}


def _shared_out(simplex: SimplexSpec, drawn: Mapping[str, Any]) -> dict[str, float]:
    exponentials = {key: -math.log(drawn[share_name(key)]) for key in simplex.keys if share_name(key) in drawn}
    total = sum(exponentials.values())
    return {key: simplex.total * value / total for key, value in exponentials.items()}


def with_values(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """The experiment with these keys set; a `{}` turns a section on that is off, and leaves one that is on."""
    changed = tree
    for path, value in values.items():
        changed = _set(changed, path.split("."), value, ROOT)
    return changed


def _set(tree: Tree | None, keys: Sequence[str], value: Any, place: Place | None) -> Tree:
    first, *others = keys
    before = (tree or {}).get(first)
    if others:
        inner = place.child(first) if place else None
        return {**(tree or {}), first: _set(before if isinstance(before, dict) else None, others, value, inner)}
    changed = {**(tree or {}), first: before if value == {} and before is not None else value}
    if place is not None and place.tag == first and value in place.kinds:  # keys of the old kind mean nothing in the new
        return {key: changed[key] for key in changed if key in place.kinds[value].model_fields}
    return changed


def lookup(tree: Tree, path: str) -> Any:
    """What stands at a key path.

    Raises:
        KeyError: with the section that is off.
    """
    found: Any = tree
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(found, dict):
            raise KeyError(".".join(walked))
        walked.append(key)
        found = found.get(key)
    return found


def has(tree: Tree, path: str) -> bool:
    """Whether the section around a key path is on."""
    try:
        lookup(tree, path)
    except KeyError:
        return False
    return True


def lookup_or_none(tree: Tree, path: str) -> Any:
    """What stands at a key path; None also where a section around it is off."""
    try:
        return lookup(tree, path)
    except KeyError:
        return None


def parameters_at(tree: Tree, sweep: SweepSpec) -> dict[str, Any]:
    """Optuna's parameters with which a trial is this very experiment.

    Raises:
        OutsideSpace: it is not in the space.
    """
    found: dict[str, Any] = {}
    for parameter in parameters(sweep):
        if parameter.name != parameter.key or _is_off(parameter.key, found):
            continue
        found[parameter.name] = _parameter_at(tree, parameter)
    for simplex in sweep.simplex:
        found |= _shares_at(tree, simplex, found)
    return found


class OutsideSpace(Exception):
    """An experiment that the space does not hold: the key, and why."""

    def __init__(self, key: str, why: str, hint: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key, self.why, self.hint = key, why, hint


def _parameter_at(tree: Tree, parameter: Parameter) -> Any:
    try:
        value = lookup(tree, parameter.key)
    except KeyError as off:
        section = off.args[0]
        hint = f"set it in the sweep's `changes`, or add `{section}: {{on_or_off: true}}`"
        raise OutsideSpace(parameter.key, f"`{section}` is off in the experiment", hint) from None
    if parameter.is_switch:
        return OFF if value is None else ON
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        if not any(value == choice and type(value) is type(choice) for choice in distribution.choices):
            raise OutsideSpace(parameter.key, f"the experiment's own value {value!r} is not among the choices", "add it")
        return value
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if not isinstance(value, int | float) or not low <= value <= high:
        hint = "widen the range, or set another value in the sweep's `changes`"
        raise OutsideSpace(parameter.key, f"the experiment's own value {value!r} is outside [{low:g}, {high:g}]", hint)
    return value


def _shares_at(tree: Tree, simplex: SimplexSpec, switches: Mapping[str, Any]) -> dict[str, float]:
    """The draws from which the experiment's own weights follow; any common factor of the exponentials would do."""
    on = [key for key in simplex.keys if not _is_off(key, switches)]
    weights = {}
    for key in on:
        try:
            weights[key] = lookup(tree, key)
        except KeyError as off:
            raise OutsideSpace(key, f"`{off.args[0]}` is off in the experiment", "leave it out of the simplex") from None
    total = sum(weights.values())
    if on and not math.isclose(total, simplex.total, rel_tol=1e-6):
        raise OutsideSpace(
            on[0], f"the experiment's own weights sum to {total:g}, not to {simplex.total:g}", f"total: {total:g}"
        )
    return {share_name(key): math.exp(-len(on) * weight / total) for key, weight in weights.items()}


def extremes(sweep: SweepSpec) -> Iterator[tuple[str, Any]]:
    """Every key with each of its outermost values, one at a time: what a trial may come to try."""
    for key, parameter in sweep.space.items():
        limits = parameter.limits
        if limits is not None:
            yield from ((key, limit) for limit in limits)
        elif parameter.on_or_off:
            yield key, None
            yield key, {}
        else:
            yield from ((key, choice) for choice in parameter.choices or ())


def grid(sweep: SweepSpec, points: int) -> dict[str, list[Any]]:
    """The values of every parameter on a grid."""
    return {parameter.name: _grid_values(parameter.distribution, points) for parameter in parameters(sweep)}


def _grid_values(distribution: BaseDistribution, points: int) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, log = distribution.low, distribution.high, distribution.log  # type: ignore[attr-defined]
    start, end = (math.log(low), math.log(high)) if log else (low, high)
    places = [start + (end - start) * index / (points - 1) for index in range(points)]
    values = [low, *((math.exp(place) if log else place) for place in places[1:-1]), high]
    if isinstance(distribution, IntDistribution):
        return sorted({round(value) for value in values})
    return values
