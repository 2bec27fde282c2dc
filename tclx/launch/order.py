"""Which runs does a spec ask for, and what must run before them? Spec files -> planned runs, prerequisites first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tclx.data.facts import Examination, examine
from tclx.errors import InputError, Problem, nearest_place
from tclx.plan import Plan, check_spec, make_plan, run_id
from tclx.spec.data import DataSpec
from tclx.spec.experiment import ExperimentSpec, InitSpec
from tclx.spec.load import Experiment, Origins, load_experiments


class PlannedRun(NamedTuple):
    """One run, ready to start."""

    spec: ExperimentSpec
    """With `init.experiment` replaced by the run folder that it stands for."""
    plan: Plan
    needs: str | None
    """Id of the run whose best weights it starts from."""
    asked_for: bool
    """False for a run that only another one needs."""
    warnings: tuple[str, ...] = ()
    """What stops no run, and makes its figures doubtful: one line each."""


Step = tuple[Path, str | None]
"""A spec file and one of its variants."""


def plan_runs(
    paths: Sequence[Path], overrides: Sequence[str] = (), *, runs_dir: Path, without_data: bool = False
) -> list[PlannedRun]:
    """Load, resolve and plan every run of the spec files; a run stands after the one it starts from, and only once.

    Args:
        paths: experiment files.
        overrides: `key=value` for these files; the experiments that they start from are taken as written.
        runs_dir: where runs are kept, hence where `init.experiment` finds its weights.
        without_data: count from the spec where the data is not at hand.

    Raises:
        InputError: with the problems of all files.
    """
    planner = _Planner(runs_dir, without_data)
    problems: dict[Problem, None] = {}
    for path in paths:
        try:
            experiments = load_experiments(path, overrides)
        except InputError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        for experiment in experiments:
            try:
                planner.add(experiment, path, before=(), asked_for=True)
            except InputError as error:
                problems.update(dict.fromkeys(error.problems))
    if problems:
        raise InputError(*problems)
    return list(planner.runs.values())


def without_first_weights(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with encoders that start at random: for a model that is only counted, or whose weights are replaced anyway."""
    image_encoder = spec.model.image_encoder.model_copy(update={"weights": None})
    text_encoder = spec.model.text_encoder.model_copy(update={"weights": None})
    model = spec.model.model_copy(update={"image_encoder": image_encoder, "text_encoder": text_encoder})
    return spec.model_copy(update={"model": model})


class _Planner:
    """Runs found so far, by id, and the facts of data read so far."""

    def __init__(self, runs_dir: Path, without_data: bool) -> None:
        self.runs: dict[str, PlannedRun] = {}
        self._runs_dir = runs_dir
        self._without_data = without_data
        self._examined: dict[DataSpec, Examination] = {}

    def add(self, experiment: Experiment, path: Path, *, before: tuple[Step, ...], asked_for: bool) -> str:
        """Plan one run after what it needs; returns its id."""
        spec = experiment.spec
        plan = self._plan(experiment)
        needs = None
        if spec.init is not None and spec.init.experiment is not None:
            steps = (*before, (path.resolve(), spec.variant))
            needs = self._add_needed(experiment, spec.init, steps)
            # The weights' own run id goes into this one's: with another pre-training it is another run, wherever runs are kept.
            identity = spec.model_copy(update={"init": InitSpec(experiment=needs)})
            plan = replace(plan, run_id=run_id(identity, plan.global_batch_size))
            spec = spec.model_copy(update={"init": InitSpec(checkpoint=str((self._runs_dir / needs).resolve()))})
        known = self.runs.get(plan.run_id)
        asked_for = asked_for or (known is not None and known.asked_for)
        warnings = (*self._examine(spec.data).warnings, *queue_warnings(spec, plan))
        self.runs[plan.run_id] = PlannedRun(spec, plan, needs, asked_for, warnings)
        return plan.run_id

    def _add_needed(self, experiment: Experiment, init: InitSpec, steps: tuple[Step, ...]) -> str:
        path = Path(init.experiment or "")
        needed = _choose(load_experiments(path), init, seed=experiment.spec.seed, asking=experiment)
        if (path.resolve(), needed.spec.variant) in steps:
            chain = " -> ".join(f"{step.name}" + (f" ({variant})" if variant else "") for step, variant in steps)
            raise InputError(_problem(experiment, f"runs start from each other in a circle: {chain} -> {path.name}"))
        return self.add(needed, path, before=steps, asked_for=False)

    def _plan(self, experiment: Experiment) -> Plan:
        spec, origins = experiment
        try:
            facts = self._examine(spec.data).facts
        except InputError as unread:
            raise InputError(*_besides_rows(experiment), *(_located(one, origins) for one in unread.problems)) from unread
        return make_plan(spec, facts, origins, without_data=self._without_data)

    def _examine(self, data: DataSpec) -> Examination:
        if data not in self._examined:
            self._examined[data] = examine(data, without_data=self._without_data)
        return self._examined[data]


def queue_warnings(spec: ExperimentSpec, plan: Plan) -> tuple[str, ...]:
    """A queue that holds every picture more than once has a row's own epoch-old features among its negatives."""
    if not plan.needs_momentum or spec.model.queue_size <= plan.num_train_rows:
        return ()
    held = f"the queue of {spec.model.queue_size:,} holds more than an epoch ({plan.num_train_rows:,} rows)"
    return (f"model.queue_size: {held}: every row is in it several times, from weights of long ago",)


def _besides_rows(experiment: Experiment) -> list[Problem]:
    """What is wrong with a spec whose data could not be counted; counting has named the annotation files that are missing."""
    try:
        check_spec(*experiment)
    except InputError as wrong:
        return [problem for problem in wrong.problems if ".files[" not in problem.key]
    return []


def _located(problem: Problem, origins: Origins) -> Problem:
    """With the line of its key, or of the nearest section around it."""
    return problem._replace(where=nearest_place(problem.key, origins))


def _choose(experiments: Sequence[Experiment], init: InitSpec, *, seed: int, asking: Experiment) -> Experiment:
    """The one run to start from: of the variant asked for, with the same seed where there are several."""
    variants = list(dict.fromkeys(found.spec.variant for found in experiments))
    if init.variant is None and len(variants) > 1:
        named = ", ".join(str(variant) for variant in variants)
        raise InputError(_problem(asking, f"{init.experiment} has several variants: name one of {named} as `variant`"))
    matching = [found for found in experiments if init.variant in (None, found.spec.variant)]
    if not matching:
        named = ", ".join(str(variant) for variant in variants if variant)
        hint = f"it has {named}" if named else "it has none"
        raise InputError(_problem(asking, f"{init.experiment} has no variant {init.variant!r}", hint))
    same_seed = [found for found in matching if found.spec.seed == seed]
    if len(matching) > 1 and not same_seed:
        seeds = ", ".join(str(found.spec.seed) for found in matching)
        raise InputError(_problem(asking, f"{init.experiment} has the seeds {seeds} but not this run's seed {seed}"))
    return same_seed[0] if same_seed else matching[0]


def _problem(experiment: Experiment, message: str, hint: str | None = None) -> Problem:
    return Problem("init.experiment", message, hint, experiment.origins.get("init.experiment"))
