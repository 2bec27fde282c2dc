"""What is worth keeping of a study? Its best trial, as an experiment file."""

from __future__ import annotations

import io
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ruamel.yaml import YAML

from tclx.errors import InputError, Problem
from tclx.sweep import space
from tclx.sweep.load import Sweep
from tclx.sweep.metrics import as_text
from tclx.sweep.summary import best_trials, counted_complete

NAME_LENGTH = 64


def experiment_of(study: optuna.Study, sweep: Sweep, *, number: int | None = None) -> str:
    """The YAML of the experiment that a trial was.

    Args:
        study: with at least one complete trial.
        sweep: what it is made from.
        number: the trial's; None is the best.

    Raises:
        InputError: no such trial, none is complete yet, or there are several best ones.
    """
    trial = _choose(study, sweep, number)
    values = space.values_of(trial.params, sweep.spec)
    tree = space.with_values(sweep.base.model_dump(mode="json", exclude_defaults=True), values)
    tree.pop("variant", None)
    which = "best" if number is None else f"trial{number}"
    tree["name"] = f"{sweep.spec.name}-{which}"[:NAME_LENGTH]
    if sweep.spec.seeds:
        tree.pop("seed", None)
        tree["seeds"] = list(sweep.spec.seeds)
    lines = [
        f"Trial {trial.number} of the sweep {sweep.spec.name}: {_reached(trial, sweep)}.",
        *_compared(study, sweep),
        f"Runs: {', '.join(trial.user_attrs.get('runs', []))}",
        "What it changes in the experiment:",
        *(f"  {key}: {as_text(value)}" for key, value in space.shown(values, sweep.spec).items()),
    ]
    return "".join(f"# {line}\n" for line in lines) + _yaml(tree)


def _choose(study: optuna.Study, sweep: Sweep, number: int | None) -> FrozenTrial:
    complete = counted_complete(study)
    if number is not None:
        found = [trial for trial in complete if trial.number == number]
        if not found:
            numbers = ", ".join(str(trial.number) for trial in complete) or "none"
            raise InputError(Problem("--trial", f"trial {number} is not complete", f"complete are {numbers}"))
        return found[0]
    best = best_trials(study, complete)
    if not best:
        hint = "no complete trial keeps the constraints" if complete else "no trial is complete yet"
        raise InputError(Problem("", f"the study {sweep.spec.name} has no best trial", hint))
    if len(best) > 1:
        numbers = ", ".join(str(trial.number) for trial in best)
        raise InputError(Problem("--trial", "there are several best trials for several objectives", f"name one of {numbers}"))
    return best[0]


def _compared(study: optuna.Study, sweep: Sweep) -> list[str]:
    baseline = next((trial for trial in counted_complete(study) if trial.number == 0), None)
    if baseline is None:
        return ["Trial 0, the experiment itself, is not complete."]
    return [f"Trial 0, the experiment itself: {_reached(baseline, sweep)}."]


def _reached(trial: FrozenTrial, sweep: Sweep) -> str:
    return ", ".join(f"{one.metric} {value:.6g}" for one, value in zip(sweep.spec.objective, trial.values, strict=True))


def _yaml(tree: dict[str, Any]) -> str:
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 120
    text = io.StringIO()
    writer.dump(tree, text)
    return text.getvalue()
