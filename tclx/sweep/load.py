"""Is a sweep file right? YAML -> a checked sweep with its base experiment, before anything is tried.

Every key of the space is looked up in the experiment's schema, and the experiment is planned with each outermost value, so that
what the schema, the bounds or the rules between sections forbid is found here and not by trial 57.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tclx.data.facts import collect_facts
from tclx.errors import InputError, Location, Problem, nearest_place
from tclx.launch.order import PlannedRun, plan_runs
from tclx.metrics import is_evaluated
from tclx.section import WRITTEN
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import Place, nearest
from tclx.spec.load import load_experiments, places_of
from tclx.spec.merging import entries, is_sweep, merge, override_tree, path_problem
from tclx.spec.resolve import absolute_path, with_absolute_paths, with_default_kinds
from tclx.spec.shipped import spec_file
from tclx.spec.sweep import HubSampler, SweepSpec
from tclx.spec.validation import problems_of
from tclx.spec.yaml import Node, read_yaml
from tclx.sweep import hub, space
from tclx.sweep.metrics import metric_names
from tclx.sweep.searched import Sweep, changes_no_result

SWEEP = Place(sections=(SweepSpec,))


def load_sweep(path: Path, overrides: Sequence[str] = (), *, runs_dir: Path, backend: str | None = None) -> Sweep:
    """As `load_sweeps`; of several searches the first."""
    return load_sweeps(path, overrides, runs_dir=runs_dir, backend=backend)[0]


def load_sweeps(path: Path, overrides: Sequence[str] = (), *, runs_dir: Path, backend: str | None = None) -> tuple[Sweep, ...]:
    """Read and check a sweep file: the search that it asks for, or one for each of its `variants`.

    Args:
        path: a YAML file, or `tclx:NAME` for one that comes with tclx.
        overrides: `key=value` for keys of the sweep's own root.
        runs_dir: where runs are kept, hence where an `init.experiment` finds its weights.
        backend: replaces the experiment's launch section by this backend's defaults.

    Raises:
        InputError: with every problem, each at its line.
    """
    tree = merge(_mapping(spec_file(path)), override_tree(overrides, SWEEP), SWEEP)
    spec, origins = _read(tree)
    sweeps = [_sweep(one, base) for one, base in _bases(spec, origins, runs_dir, backend)]
    problems = [_of_variant(problem, sweep) for sweep in sweeps for problem in _problems(sweep)]
    if problems:
        raise InputError(
            *(
                problem._replace(where=problem.where or nearest_place(problem.key, origins))
                for problem in dict.fromkeys(problems)
            )
        )
    return tuple(sweeps)


def _sweep(spec: SweepSpec, base: PlannedRun) -> Sweep:
    part = base.spec.variant if spec.variants is not None else None
    spec = spec if part is None else _without_absent(spec, base.spec.model_dump(mode="json"))
    facts = collect_facts(base.spec.data)
    return Sweep(spec, base.spec, base.needs, facts, _unchanged(spec, base.spec), base.warnings, part)


def _of_variant(problem: Problem, sweep: Sweep) -> Problem:
    return problem if sweep.part is None else problem._replace(message=f"variant {sweep.part}: {problem.message}")


def _without_absent(spec: SweepSpec, base: dict[str, Any]) -> SweepSpec:
    """The sweep for a variant: without the keys of sections that it has not, nor switches that would bring them."""
    absent = {key for key, one in spec.space.items() if one.on_or_off and space.lookup_or_none(base, key) is None}
    kept = {key for key in spec.varied if key not in absent and space.has(base, key)}
    simplexes = []
    for simplex in spec.simplex:
        keys = tuple(key for key in simplex.keys if key in kept)
        if len(keys) > 1:
            total = simplex.total if keys == simplex.keys else sum(space.lookup(base, key) for key in keys)
            simplexes.append(simplex.model_copy(update={"keys": keys, "total": total}))
    return spec.model_copy(
        update={
            "space": {key: one for key, one in spec.space.items() if key in kept},
            "simplex": tuple(simplexes),
            "points": tuple({key: value for key, value in point.items() if key in kept} for point in spec.points),
        }
    )


def _mapping(path: Path) -> Node:
    node = read_yaml(path)
    if not isinstance(node.value, dict):
        raise InputError(Problem("", "a sweep is keys and values", "start with `name: ...`", node.where))
    if node.value and not is_sweep(node.value):
        raise InputError(Problem("", "this is an experiment, not a sweep", f"tclx run {path} trains it", node.where))
    return node


def _read(tree: Node) -> tuple[SweepSpec, Mapping[str, Location]]:
    problems: list[Problem] = []
    objective = entries(tree).get("objective")
    if objective is not None and isinstance(objective.value, dict):
        tree = Node({**entries(tree), "objective": Node((objective,), objective.where)}, tree.where)
    tree = with_absolute_paths(with_default_kinds(tree, SWEEP), problems, SWEEP)
    tree = _with_absolute_database(tree, problems)
    try:
        spec = SweepSpec.model_validate_json(json.dumps(tree.plain()), context=WRITTEN)
    except ValidationError as error:
        problems += problems_of(error, tree, SWEEP)
    if problems:
        raise InputError(*problems)
    return spec, dict(places_of(tree))


def _with_absolute_database(tree: Node, problems: list[Problem]) -> Node:
    """SQLite's file is read from the sweep's folder, like every other path: workers start elsewhere."""
    storage = entries(tree).get("storage")
    if storage is None or not isinstance(storage.value, str) or not storage.value.startswith(_SQLITE):
        return tree
    path = absolute_path(storage.value.removeprefix(_SQLITE), storage.where, "storage", problems)
    return Node({**entries(tree), "storage": Node(f"{_SQLITE}{path}", storage.where)}, tree.where)


_SQLITE = "sqlite:///"


def _bases(
    spec: SweepSpec, origins: Mapping[str, Location], runs_dir: Path, backend: str | None
) -> Iterator[tuple[SweepSpec, PlannedRun]]:
    """Of each variant that is asked for the sweep and trial 0's run; what that starts from has to be there already."""
    for variant in _wanted_variants(spec, _known_variants(spec, origins, runs_dir, backend), origins):
        own = spec if spec.variants is None else spec.model_copy(update={"changes": _changes_of(spec, variant)})
        yield own, next(run for run in _runs(own, origins, runs_dir, backend, only=variant) if run.spec.variant == variant)


def _known_variants(spec: SweepSpec, origins: Mapping[str, Location], runs_dir: Path, backend: str | None) -> list[str | None]:
    """In the order of the experiment's file, which may not be right without the sweep's changes."""
    with suppress(InputError):
        return list(dict.fromkeys(one.spec.variant for one in load_experiments(Path(spec.experiment))))
    return list(dict.fromkeys(run.spec.variant for run in _runs(spec, origins, runs_dir, backend)))


def _runs(
    spec: SweepSpec, origins: Mapping[str, Location], runs_dir: Path, backend: str | None, *, only: str | None = None
) -> list[PlannedRun]:
    """The runs that the experiment's file asks for with the sweep's changes."""
    changed = [f"{key}={json.dumps(value)}" for key, value in spec.changes.items()]
    launch = [f"launch={{backend: {backend}}}"] if backend else []
    try:
        runs = plan_runs([Path(spec.experiment)], [*launch, *changed], runs_dir=runs_dir, only=only)
    except InputError as error:
        raise InputError(*(_in_sweep(problem, origins) for problem in error.problems)) from error
    return [run for run in runs if run.asked_for]


def _changes_of(spec: SweepSpec, variant: str | None) -> dict[str, Any]:
    """A variant's share of the changes: a key of a section that it has not would bring the section."""
    with suppress(InputError):
        own = load_experiments(Path(spec.experiment), only=variant)[0].spec
        tree = own.model_dump(mode="json")
        return {key: value for key, value in spec.changes.items() if space.has(tree, key)}
    return spec.changes


def _wanted_variants(spec: SweepSpec, known: Sequence[str | None], origins: Mapping[str, Location]) -> Sequence[str | None]:
    name = Path(spec.experiment).name
    named = ", ".join(str(variant) for variant in known if variant) or "none"
    if spec.variants is None and spec.variant is None:
        if len(known) > 1:
            hint = f"name one of {named}, or give `variants: all`"
            raise InputError(Problem("variant", f"{name} has several variants", hint, origins.get("experiment")))
        return known
    if spec.variants == "all" and len(known) < 2:
        raise InputError(Problem("variants", f"{name} has no several variants", f"it has {named}", origins.get("variants")))
    wanted = known if spec.variants == "all" else [spec.variant] if spec.variants is None else list(spec.variants)
    key = "variant" if spec.variants is None else "variants"
    problems = [
        Problem(key, f"{name} has no variant `{variant}`", f"it has {named}", origins.get(key))
        for variant in wanted
        if variant not in known
    ]
    if problems:
        raise InputError(*problems)
    return list(dict.fromkeys(wanted))


def _unchanged(spec: SweepSpec, base: ExperimentSpec) -> ExperimentSpec | None:
    """The experiment without the sweep's `changes`; None where it cannot stand without them."""
    if changes_no_result(spec):
        return base
    with suppress(InputError):
        found = [one.spec for one in load_experiments(Path(spec.experiment)) if one.spec.variant == base.variant]
        return found[0] if not any(key.partition(".")[0] == "init" for key in spec.changes) else None
    return None


def _in_sweep(problem: Problem, origins: Mapping[str, Location]) -> Problem:
    """A problem of the experiment; one that the sweep's `changes` made is at their line."""
    place = f"changes.{problem.key}"
    if place in origins:
        hint = re.sub(r"add --set (\S+)=null", r"`\1: null` in `changes`", problem.hint) if problem.hint else None
        return problem._replace(key=place, where=origins[place], hint=hint)
    return (
        problem
        if problem.where
        else problem._replace(key="experiment", message=f"{problem.key}: {problem.message}", where=origins["experiment"])
    )


def _problems(sweep: Sweep) -> Iterator[Problem]:
    unknown = list(_unknown_keys(sweep.spec))
    yield from unknown
    if not sweep.spec.varied:
        yield Problem("space", "has none of its keys, so there is nothing to search", "leave it out, or vary what it has")
        return
    yield from _metric_problems(sweep)
    yield from _sampler_problems(sweep.spec)
    yield from _twice(sweep.spec)
    if unknown:
        return
    outside = list(_outside(sweep))
    yield from outside
    if not outside:
        yield from _impossible(sweep)
        yield from _unconfirmable(sweep)


def _unknown_keys(spec: SweepSpec) -> Iterator[Problem]:
    places = [("space", key) for key in spec.space]
    places += [(f"simplex[{index}].keys", key) for index, simplex in enumerate(spec.simplex) for key in simplex.keys]
    for where, key in places:
        found = path_problem(key)
        shown = f"space.{key}" if where == "space" else where
        if found is not None:
            yield found._replace(
                key=shown, message=f"the experiment has no `{key}`" if where != "space" else found.message, where=None
            )
        elif key in ("name", "seed", "variant") or key.startswith(("launch", "tracking", "init")):
            yield Problem(shown, f"`{key}` changes no result, or is not the sweep's to change", "leave it out")
    for index, point in enumerate(spec.points):
        for key in point:
            if key not in spec.space:
                match = nearest(key, spec.space)
                yield Problem(f"points[{index}].{key}", "is not in the space", f"did you mean `{match}`?" if match else None)


def _sampler_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Without running other people's code, which is for the sweep itself."""
    if isinstance(spec.sampler, HubSampler):
        if not hub.is_installed():
            yield hub.MISSING
        root = spec.sampler.registry
        if root is not None and not (Path(root) / "package" / spec.sampler.package / "__init__.py").is_file():
            yield Problem("sampler.registry", f"{root} has no package/{spec.sampler.package}/__init__.py")


def _twice(spec: SweepSpec) -> Iterator[Problem]:
    varied = spec.varied
    for key in dict.fromkeys(key for key in varied if varied.count(key) > 1):
        yield Problem("simplex", f"`{key}` is drawn twice", "a key stands once in `space` or in a `simplex`")


def _metric_problems(sweep: Sweep) -> Iterator[Problem]:
    known = metric_names(sweep.base)
    asked = [(f"objective[{index}].metric", objective.metric) for index, objective in enumerate(sweep.spec.objective)]
    asked += [(f"constraints[{index}].metric", constraint.metric) for index, constraint in enumerate(sweep.spec.constraints)]
    for key, metric in asked:
        if metric not in known:
            yield Problem(key, f"no run of this experiment has `{metric}`", _metric_hint(sweep, metric, known))
        elif metric.startswith("loss/") and sweep.spec.space.get(f"objectives.{metric.removeprefix('loss/')}"):
            yield Problem(key, f"`{metric}` is missing where the sweep switches that term off", "aim at what every trial has")
    first = sweep.spec.objective[0].metric
    if sweep.spec.pruner is not None and not is_evaluated(first) and sweep.spec.pruner.name != "wilcoxon":
        yield Problem("pruner", f"`{first}` is known at the end only, so nothing can be pruned by it", "pruner: null")


def _metric_hint(sweep: Sweep, metric: str, known: Sequence[str]) -> str:
    at_end, during = sweep.base.evaluation.at_end, sweep.base.evaluation.during_training
    if at_end is not None and at_end != during and is_evaluated(metric) and metric.split("/")[1:2] == [at_end]:
        return f"`{at_end}` is looked at once, at the end; choose by a split of evaluation.during_training"
    match = nearest(metric, known)
    return f"did you mean `{match}`?" if match else "known: " + ", ".join(known)


def _outside(sweep: Sweep) -> Iterator[Problem]:
    """Trial 0 and the further points must lie in the space."""
    tree = sweep.base_tree
    try:
        space.parameters_at(tree, sweep.spec)
    except space.OutsideSpace as outside:
        key = outside.key if outside.key in sweep.spec.space else ""
        yield Problem(f"space.{key}" if key else "simplex", outside.why, outside.hint)
        return
    for index, point in enumerate(sweep.spec.points):
        try:
            space.parameters_at(space.with_values(tree, point_values(point)), sweep.spec)
        except space.OutsideSpace as outside:
            yield Problem(f"points[{index}]", f"{outside.key}: {outside.why}", outside.hint)


def point_values(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as values: its switches say `on` or `off`."""
    return {key: space.SWITCHED.get(value, value) if isinstance(value, str) else value for key, value in point.items()}


def _impossible(sweep: Sweep) -> Iterator[Problem]:
    """What the experiment refuses, tried with every outermost value, alone."""
    tree = sweep.base_tree
    for key, value in space.extremes(sweep.spec):
        changed = space.with_values(tree, {key: value})
        try:
            sweep.planned_as(changed, sweep.seeds()[0], context=WRITTEN)
        except InputError as error:
            shown = "off" if value is None else "on" if value == {} else json.dumps(value)
            for problem in error.problems:
                yield Problem(f"space.{key}", f"with {shown}, {problem.key}: {problem.message}", problem.hint)


def _unconfirmable(sweep: Sweep) -> Iterator[Problem]:
    """Whether trial 0 can be trained with a fresh seed, and has the metric then."""
    if sweep.spec.confirm is None:
        return
    cure = "keep_changes: true confirms with the sweep's `changes`"
    if sweep.experiment is None and not sweep.spec.confirm.keep_changes:
        yield Problem("confirm", "without the sweep's `changes` the experiment cannot be trained", cure)
        return
    try:
        first = sweep.confirmed(space.parameters_at(sweep.base_tree, sweep.spec), sweep.fresh_seeds()[0])
    except InputError as error:
        for problem in error.problems:
            yield Problem("confirm", f"without the sweep's `changes`, {problem.key}: {problem.message}", problem.hint)
        return
    wanted = [sweep.spec.objective[0].metric, *(constraint.metric for constraint in sweep.spec.constraints)]
    for metric in wanted:
        if metric not in metric_names(first.spec):
            yield Problem("confirm", f"without the sweep's `changes` no run has `{metric}`", cure)
