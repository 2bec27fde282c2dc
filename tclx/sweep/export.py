"""What is worth keeping of a study? Its best trial, as an experiment file that extends the one that was swept."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError
from ruamel.yaml import YAML

from tclx.errors import InputError, Problem
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import Experiment, load_experiments
from tclx.sweep import space
from tclx.sweep.confirm import Confirmation
from tclx.sweep.metrics import as_text
from tclx.sweep.parts import Part
from tclx.sweep.ranking import best_trials, counted_complete
from tclx.sweep.searched import Sweep, content
from tclx.sweep.verdict import conclusion

NAME_LENGTH = 64


def experiment_of(part: Part, *, number: int | None = None, keep_changes: bool = False, beside: Path | None = None) -> str:
    """The YAML of the experiment that a trial tried: it extends the sweep's experiment by what the trial changed.

    Where the file that it extends would not come to exactly that, for instance because it is gone, everything is written out.

    Args:
        part: a search with at least one complete trial.
        number: the trial's; None is the best, or after a confirmation what was confirmed, trial 0 where nothing was.
        keep_changes: keep the sweep's own `changes` too, for instance fewer steps; else the experiment's own values stand.
        beside: the folder in which the file will lie, from which it names the other; None names that absolutely.

    Raises:
        InputError: no such trial, none is complete yet, there are several best ones, or the experiment's own values are not
            known.
    """
    study, sweep, confirmation = part.search, part.sweep, part.confirmation()
    trial = _choose(study, sweep, number if number is not None else _confirmed(confirmation))
    values = space.values_of(trial.params, sweep.spec)
    wanted = _validated(space.with_values((sweep.base if keep_changes else _experiment(sweep)).model_dump(mode="json"), values))
    name = f"{sweep.title}-{'best' if number is None else f'trial{number}'}"[:NAME_LENGTH]
    head: dict[str, Any] = {"name": name, **({"seeds": list(sweep.spec.seeds)} if sweep.spec.seeds else {})}
    tree = _extending(sweep, wanted, head, beside=beside) or _written_out(wanted, head)
    lines = [
        f"Trial {trial.number} of the sweep {sweep.title}: {_reached(trial, sweep)}.",
        *_compared(study, sweep),
        *([_sentence(conclusion(confirmation, sweep))] if confirmation is not None else []),
        f"Runs: {', '.join(trial.user_attrs.get('runs', []))}",
        "What it changes in the experiment:",
        *(f"  {key}: {as_text(value)}" for key, value in space.shown(values, sweep.spec).items()),
        *_about_changes(sweep, wanted, kept=keep_changes),
    ]
    return "".join(f"# {line}\n" for line in lines) + _yaml(tree)


def _experiment(sweep: Sweep) -> ExperimentSpec:
    """The experiment without the sweep's `changes`.

    Raises:
        InputError: it is not known: an earlier version did not write it down, and the file has changed since.
    """
    if sweep.experiment is not None:
        return sweep.experiment
    changes = [f"{key}={json.dumps(value)}" for key, value in sweep.spec.changes.items()]
    with suppress(InputError):
        then = _of_variant(load_experiments(Path(sweep.spec.experiment), changes), sweep)
        if then is not None and content(then) == content(sweep.base):
            now = _of_variant(load_experiments(Path(sweep.spec.experiment)), sweep)
            if now is not None:
                return now
    message = f"without the sweep's `changes`, {sweep.spec.experiment} is not the experiment that was swept, or none at all"
    raise InputError(Problem("experiment", message, "--keep-changes writes the trial as it was run"))


def _of_variant(experiments: Sequence[Experiment], sweep: Sweep) -> ExperimentSpec | None:
    return next((one.spec for one in experiments if one.spec.variant == sweep.base.variant), None)


def _validated(tree: dict[str, Any]) -> ExperimentSpec:
    try:
        return ExperimentSpec.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(Problem("changes", f"with the experiment's own values: {message}", "--keep-changes")) from error


def _extending(sweep: Sweep, wanted: ExperimentSpec, head: dict[str, Any], *, beside: Path | None) -> dict[str, Any] | None:
    """The wanted experiment as a file that extends the sweep's; None where such a file would say anything else."""
    parent = Path(sweep.spec.experiment)
    stub = {"extends": str(parent), "variants": None, **head}
    with suppress(InputError):
        delta = _delta(_loaded(stub).model_dump(mode="json"), wanted.model_dump(mode="json"), _kept_as_in_file(sweep))
        if content(_loaded({**stub, **delta})) == content(wanted.model_copy(update={"name": head["name"], "variant": None})):
            variants = {} if sweep.base.variant is None else {"variants": None}
            named = str(parent) if beside is None else os.path.relpath(parent, beside.resolve())
            return {"extends": named, **head, **variants, **delta}
    return None


def _kept_as_in_file(sweep: Sweep) -> set[str]:
    """Keys of the root that the file has as its parent does: where it runs, what it is called, the run that it starts from."""
    swept = any(key.partition(".")[0] == "init" for key in sweep.spec.changes)
    return {"name", "variant", "seed", "launch", "tracking"} | (set() if swept else {"init"})


def _loaded(tree: dict[str, Any]) -> ExperimentSpec:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(_yaml(tree), encoding="utf-8")
        return load_experiments(path)[0].spec


def _delta(before: dict[str, Any], after: dict[str, Any], left_out: Collection[str] = ()) -> dict[str, Any]:
    """What a file must say over `before` to come to `after`; a section of another kind is said whole."""
    changed: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if key in left_out or value == old:
            continue
        inside = isinstance(value, dict) and isinstance(old, dict) and value.keys() == old.keys()
        changed[key] = _delta(old, value) if inside and isinstance(old, dict) else value
    return changed


def _written_out(wanted: ExperimentSpec, head: dict[str, Any]) -> dict[str, Any]:
    rivals = {"seed": True} if "seeds" in head else {}
    tree = wanted.model_dump(mode="json", exclude_defaults=True, exclude={"variant": True, **rivals})
    return {**tree, **head}


def _about_changes(sweep: Sweep, wanted: ExperimentSpec, *, kept: bool) -> Iterator[str]:
    """The sweep's own `changes`, each with what stands here."""
    if not sweep.spec.changes:
        return
    yield f"What the sweep had changed for all of its trials, {'kept here' if kept else 'and what stands here'}:"
    tree = wanted.model_dump(mode="json")
    for key, value in sweep.spec.changes.items():
        own = key.partition(".")[0] in _kept_as_in_file(sweep)
        here = "as in the experiment" if own else as_text(space.lookup_or_none(tree, key))
        yield f"  {key}: {as_text(value)}" + ("" if kept and not own else f"; here {here}")
    if not kept:
        yield "`tclx sweep best --keep-changes` keeps them."


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


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _confirmed(confirmation: Confirmation | None) -> int | None:
    """The trial that a confirmation ends with; None where there is none, or it goes on."""
    if confirmation is None or not confirmation.is_over or not confirmation.candidates:
        return None
    return confirmation.winner.arm.number if confirmation.winner is not None else confirmation.baseline.number


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
