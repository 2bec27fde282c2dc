"""Which runs are meant, and in which order? `objectives.lmi.weight > 0.1`, `r_mean >= 60`, `variant = cma+imc`."""

from __future__ import annotations

import json
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.report.results import Results, Row, RunResult, direction_of, read_spec
from tclx.spec.fields import key_paths, nearest

_FORM = re.compile(r"\s*([^\s=<>!]+)\s*(==|!=|<=|>=|=|<|>)\s*(.+?)\s*")
_EQUAL: dict[str, bool] = {"=": True, "==": True, "!=": False}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_OF_A_RUN: dict[str, Callable[[RunResult], Any]] = {
    "run_id": lambda run: run.run_id,
    "status": lambda run: run.status.standing,
    "step": lambda run: run.state.step,
}


class Condition(NamedTuple):
    """One comparison."""

    text: str
    """As it was written."""
    name: str
    """A key of the spec, a metric, or `run_id`, `status`, `step`."""
    sign: str
    value: Any


def condition(text: str) -> Condition:
    """From the command line.

    Raises:
        InputError: it is no comparison.
    """
    if (found := _FORM.fullmatch(text)) is None:
        raise InputError(Problem("--where", f"`{text}` is no comparison", 'as in "objectives.lmi.weight > 0.1"'))
    name, sign, value = found.groups()
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value.strip("'\"")
    if sign in _ORDER and not _is_number(parsed):
        raise InputError(Problem("--where", f"`{text}` compares with {value}, which is no number", "= and != take any value"))
    return Condition(text, name, sign, parsed)


def chosen(runs: Sequence[RunResult], conditions: Sequence[Condition], *, split: str | None = None) -> list[RunResult]:
    """The runs for which all conditions hold; a run that does not have what one names is left out, but for `!=` and `= null`.

    Args:
        runs: to choose from.
        conditions: all of which have to hold.
        split: of metrics; None takes test, else val.

    Raises:
        InputError: a condition names nothing that there is.
    """
    for one in conditions:
        _check(one.name, runs, option="--where")
    if not conditions:
        return list(runs)
    kept = []
    for run in runs:
        spec = read_spec(run)
        if all(_holds(one, value_of(run, one.name, spec=spec, split=split)) for one in conditions):
            kept.append(run)
    return kept


def ordered(results: Results, name: str) -> Results:
    """The rows by a metric, the best first, or by a key of the spec, the smallest first; rows without it last.

    Raises:
        InputError: nothing is called so.
    """
    _check(name, [run for row in results.rows for run in row.runs], option="--sort")
    sign = -(direction_of(name) or 1) if _is_metric(name, (run for row in results.rows for run in row.runs)) else 1

    def key(row: Row) -> tuple[int, float, str]:
        value = _of_row(row, name, split=results.split)
        if _is_number(value):
            return 0, sign * float(value), ""
        return (2, 0.0, "") if value is None else (1, 0.0, str(value))

    return results._replace(rows=tuple(sorted(results.rows, key=key)))


def value_of(run: RunResult, name: str, *, spec: Mapping[str, Any], split: str | None) -> Any:
    """What a run has under a name; None where it has nothing.

    Args:
        run: that is asked.
        name: of a metric, of a key of the spec, or `run_id`, `status`, `step`.
        spec: its own, with defaults.
        split: as `chosen`.
    """
    if name in _OF_A_RUN:
        return _OF_A_RUN[name](run)
    for one in (split,) if split else ("test", "val"):
        if name in run.evaluations.get(one, {}):
            return run.evaluations[one][name]
    place: Any = spec
    for part in name.split("."):
        if not isinstance(place, dict):
            return None
        place = place.get(part)
    return place


def _of_row(row: Row, name: str, *, split: str) -> Any:
    """The mean over its runs where that is a number, else what the first has."""
    values = [value_of(run, name, spec=read_spec(run), split=split) for run in row.runs]
    numbers = [value for value in values if _is_number(value)]
    return statistics.fmean(numbers) if numbers else values[0]


def _holds(one: Condition, value: Any) -> bool:
    if one.sign in _EQUAL:
        return (value == one.value or str(value) == str(one.value)) is _EQUAL[one.sign]
    return _is_number(value) and _ORDER[one.sign](value, one.value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_metric(name: str, runs: Iterable[RunResult]) -> bool:
    return any(name in metrics for run in runs for metrics in run.evaluations.values())


def _check(name: str, runs: Sequence[RunResult], *, option: str) -> None:
    """
    Raises:
        InputError: nothing is called so, with the nearest that is.
    """
    keys = key_paths()
    if name in _OF_A_RUN or name in keys or _is_metric(name, runs):
        return
    metrics = {metric for run in runs for evaluated in run.evaluations.values() for metric in evaluated}
    near = nearest(name, [*_OF_A_RUN, *keys, *sorted(metrics)])
    hint = f"did you mean `{near}`?" if near else "a key of the spec, a metric of these runs, run_id, status or step"
    raise InputError(Problem(option, f"no run has `{name}`", hint))
