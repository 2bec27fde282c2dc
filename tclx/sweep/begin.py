"""Is a study new, the same, or made of something else? It is made, continued, or begun anew with what still counts.

Optuna cannot change a parameter's kind or choices, nor a study's directions; and a trial counts only for what was tried in it.
So a study whose sweep has changed is set aside whole, under the name `NAME.old-N`, and a new one begins with those earlier
trials that the new sweep could have tried as well: the same runs. Their values are read from the runs again, for today's
objectives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tclx.errors import InputError, Problem
from tclx.files import machine_error
from tclx.launch.prepare import Say
from tclx.runs import RunFolder
from tclx.spec.difference import beyond_defaults, differences
from tclx.sweep import metrics, space
from tclx.sweep.cluster import is_going_on
from tclx.sweep.load import point_values
from tclx.sweep.metrics import GPU_HOURS, PROCESS_HOURS
from tclx.sweep.searched import Sweep
from tclx.sweep.storage import open_storage, quieten
from tclx.sweep.study import StudyFolder, build_sampler, study_name

IDENTITY = "tclx"
"""The study's attribute in Optuna's storage that says what its trials are made from."""


def create_study(
    sweep: Sweep, folder: StudyFolder, *, accept_changes: bool = False, say: Say = lambda line: None
) -> optuna.Study:
    """As `create_studies`, of a single search."""
    return create_studies([sweep], folder, accept_changes=accept_changes, say=say)[0]


def create_studies(
    sweeps: Sequence[Sweep], folder: StudyFolder, *, accept_changes: bool = False, say: Say = lambda line: None
) -> list[optuna.Study]:
    """The study of each search of a sweep: made, or continued where it is the same. Its first trials wait in it.

    Args:
        sweeps: checked: one, or one a variant.
        folder: of the study; written here.
        accept_changes: begin anew, with the earlier trials that count, where the sweep has changed since.
        say: receives what became of earlier trials.

    Raises:
        InputError: a study of this name is made of something else; the differences. Or it is to begin anew while workers are at
            work.
        MachineError: the storage cannot be reached.
    """
    quieten()
    parts = [replace(folder, variant=sweep.part) for sweep in sweeps]
    for part in parts:
        part.make()
    earlier: list[list[FrozenTrial]] = [[] for _ in sweeps]
    with folder.lock():
        kinds = list(_other_kind(sweeps, folder))
        studies = [_opened(sweep, part) for sweep, part in zip(sweeps, parts, strict=True)] if not kinds else []
        changed = [list(_differences(study, sweep)) for sweep, study in zip(sweeps, studies, strict=False)]
    problems = kinds or list(dict.fromkeys(problem for some in changed for problem in some))
    if problems and not accept_changes:
        advice = (
            "give the sweep another name, or --again to begin anew, or --accept-changes to begin anew with those earlier "
            "trials that the changed sweep could have tried; the old study is kept in either case"
        )
        raise InputError(Problem("name", f"the study in {folder.path} is made of something else", advice), *problems)
    if problems:
        earlier = [study.get_trials() for study in studies] or earlier
        kept = set_aside(folder, sweeps[0])
        for part in parts:
            part.make()
        say(f"the earlier study is kept as {kept}")
    with folder.lock():
        if problems:
            studies = [_opened(sweep, part) for sweep, part in zip(sweeps, parts, strict=True)]
        for sweep, study, before in zip(sweeps, studies, earlier, strict=True):
            study.set_metric_names([objective.metric for objective in sweep.spec.objective])
            if not study.get_trials(deepcopy=False):
                num_taken = _begin(study, sweep, before, folder.runs_dir)
                if problems:
                    begun = sum(trial.state != TrialState.WAITING for trial in before)
                    say(f"{num_taken} of its {begun} trials are trials of the changed sweep as well, and count")
            study.set_user_attr(IDENTITY, _identity(sweep))
        folder.write_sweeps(sweeps)
    return studies


def _other_kind(sweeps: Sequence[Sweep], folder: StudyFolder) -> Iterator[Problem]:
    """Why a study cannot go on as several, or as one."""
    if folder.sweep.exists():
        was = folder.parts()[0].variant is not None
        if was != (sweeps[0].part is not None):
            words = ("one search", "a search for each variant")
            yield Problem("variants", f"was {words[was]}, is {words[not was]}")


def _opened(sweep: Sweep, folder: StudyFolder) -> optuna.Study:
    """The study of the search; that of its confirmation is made beside it."""
    storage = open_storage(sweep.spec.storage, folder.journal)
    directions = [objective.direction for objective in sweep.spec.objective]
    if sweep.spec.confirm is not None:
        confirming = optuna.create_study(
            storage=storage,
            study_name=study_name(folder.confirming(), sweep.spec.name),
            directions=directions,
            load_if_exists=True,
        )
        confirming.set_metric_names([objective.metric for objective in sweep.spec.objective])
    return optuna.create_study(
        storage=storage,
        study_name=study_name(folder, sweep.spec.name),
        directions=directions,
        load_if_exists=True,
        sampler=build_sampler(sweep, seed=0),
    )


# ------------------------------------------------------------------------------------------------------------ what has changed


def _identity(sweep: Sweep) -> dict[str, Any]:
    """What decides a trial's value: with another of these, old and new trials would not be comparable."""
    spec = sweep.spec.model_dump(mode="json", include={"space", "simplex", "objective", "constraints", "seeds"})
    spec["space"] = {key: {name: value for name, value in one.items() if name != "prior"} for key, one in spec["space"].items()}
    identity: dict[str, Any] = _renamed({**spec, "experiment": beyond_defaults(sweep.base), "needs": sweep.needs})
    return identity


def _renamed(identity: Any) -> Any:
    """An identity with today's names of metrics, which are the same metrics."""
    return json.loads(json.dumps(identity).replace(json.dumps(GPU_HOURS), json.dumps(PROCESS_HOURS)))


def _differences(study: optuna.Study, sweep: Sweep) -> Iterator[Problem]:
    """Why the study is not this sweep's; nothing where it is, or is new."""
    before, now = _renamed(study.user_attrs.get(IDENTITY)), _identity(sweep)
    changed = differences([before, now]) if before not in (None, now) else []
    found = [Problem(key, f"was {old}, is {new}") for key, (old, new) in changed]
    yield from found or [Problem(key, what) for key, what in _unlike(study, sweep)]


def _unlike(study: optuna.Study, sweep: Sweep) -> Iterator[tuple[str, str]]:
    """What Optuna's own record cannot go on with, whatever the study says of itself.

    Commit 53ca314 wrote the changed sweep over the old one and then failed at its first draw.
    """
    wanted = [StudyDirection[objective.direction.upper()] for objective in sweep.spec.objective]
    if study.directions != wanted:
        yield "objective", "the study's trials were told with other directions"
    parameters = {parameter.name: parameter.distribution for parameter in space.parameters(sweep.spec)}
    drawn = {(name, one) for trial in study.get_trials(deepcopy=False) for name, one in trial.distributions.items()}
    for name, distribution in sorted(drawn, key=repr):
        try:
            check_distribution_compatibility(distribution, parameters.get(name, distribution))
        except ValueError:
            yield f"space.{name}", f"trials were drawn from {distribution}"


# ----------------------------------------------------------------------------------------------------------------- what counts


def _begin(study: optuna.Study, sweep: Sweep, earlier: list[FrozenTrial], runs_dir: Path) -> int:
    """The first trials of an empty study: the experiment itself, earlier ones that count, the points that the sweep lists.

    Returns:
        How many earlier trials count.
    """
    first, *points = _first_trials(sweep)
    taken = [again for trial in earlier if (again := _taken_over(trial, sweep, runs_dir)) is not None]
    taken.sort(key=lambda trial: trial.params != first)  # stable: trial 0 is the experiment itself
    if not taken or taken[0].params != first:
        study.enqueue_trial(first)
    for trial in taken:
        if trial.state == TrialState.WAITING:
            study.enqueue_trial(trial.params)
        else:
            study.add_trial(trial)
    for point in points:
        if all(trial.params != point for trial in taken):
            study.enqueue_trial(point)
    return len(taken)


def _first_trials(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The experiment itself, then the points that the sweep lists."""
    tree = sweep.base_tree
    yield space.parameters_at(tree, sweep.spec)
    for point in sweep.spec.points:
        yield space.parameters_at(space.with_values(tree, point_values(point)), sweep.spec)


def _taken_over(trial: FrozenTrial, sweep: Sweep, runs_dir: Path) -> FrozenTrial | None:
    """An earlier trial as one of this sweep; one that was cut off comes back as waiting.

    None where the sweep could not have tried it, or its runs do not say what it reached.
    """
    drawn = _drawn_now(trial, sweep)
    try:
        runs = [run.plan.run_id for run in sweep.planned(drawn)] if drawn is not None else []
    except InputError:
        return None
    known = trial.user_attrs.get("runs", [])
    if drawn is None or not known or not set(runs) <= set(known):
        return None
    folders = [RunFolder(runs_dir / run_id) for run_id in runs]
    again = create_trial(state=TrialState.RUNNING)
    again.params = drawn
    again.distributions = {one.name: one.distribution for one in space.parameters(sweep.spec) if one.name in drawn}
    again.user_attrs = {**trial.user_attrs, "runs": runs}
    again.datetime_start, again.datetime_complete = trial.datetime_start, trial.datetime_complete
    again.state = TrialState.WAITING if trial.state == TrialState.RUNNING else trial.state
    try:
        if again.state == TrialState.COMPLETE:
            reached = metrics.reached(folders, sweep.spec)
            again.values = reached.values
            again.system_attrs = create_trial(value=0.0, constraints=reached.margins).system_attrs
        if metrics.is_reported(sweep.spec):
            again.intermediate_values = dict(enumerate(metrics.curve(folders[0], sweep.spec.objective[0].metric).values(), 1))
    except (KeyError, OSError, InputError):
        return None
    return again


def _drawn_now(trial: FrozenTrial, sweep: Sweep) -> dict[str, Any] | None:
    """The parameters with which this sweep would try what the trial has tried; None where no parameters would."""
    values = trial.user_attrs.get("values")
    if values is None:
        return None
    try:
        drawn = space.parameters_at(space.with_values(sweep.base_tree, point_values(values)), sweep.spec)
    except (space.OutsideSpace, TypeError, ArithmeticError):
        return None
    shares = {space.share_name(key) for simplex in sweep.spec.simplex for key in simplex.keys}
    # A share found again from its weight is off by a rounding, and that is another run.
    return drawn | {name: value for name, value in trial.params.items() if name in shares & drawn.keys()}


# -------------------------------------------------------------------------------------------------------------------- set aside


def set_aside(folder: StudyFolder, sweep: Sweep) -> Path:
    """Keep an old study under another name, in its folder and in a database; returns where it is.

    Raises:
        InputError: workers are at work on it.
        MachineError: it cannot be renamed, or the storage is away.
    """
    name = folder.path.name
    if is_going_on(folder):
        raise InputError(Problem("", f"workers of {name} are at work", f"tclx sweep cancel {name}, and then again"))
    storage = open_storage(sweep.spec.storage, folder.journal) if sweep.spec.storage is not None else None
    names = optuna.get_all_study_names(storage) if storage is not None else []
    numbered = (folder.path.with_name(f"{name}.old-{number}") for number in count(1))
    kept = next(path for path in numbered if not path.exists() and path.name not in names)
    for old in names:
        if storage is not None and old.partition("/")[0] == sweep.spec.name:
            # Optuna has no renaming.
            new = kept.name + old.removeprefix(sweep.spec.name)
            optuna.copy_study(from_study_name=old, from_storage=storage, to_storage=storage, to_study_name=new)
            optuna.delete_study(study_name=old, storage=storage)
    try:
        return folder.path.rename(kept)
    except OSError as error:
        raise machine_error(error, f"could not set {folder.path} aside") from error
