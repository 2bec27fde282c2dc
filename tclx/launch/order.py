"""Which runs does a spec ask for, and what must run before them? Spec files -> planned runs, prerequisites first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tclx.data.facts import Examination, examine
from tclx.data.sources.source import Description
from tclx.errors import InputError, Problem, placed
from tclx.plan import Plan, check_spec, make_plan, remarks, starting_from
from tclx.spec.data import DataSpec
from tclx.spec.experiment import ExperimentSpec, InitSpec
from tclx.spec.load import Experiment, load_experiments
from tclx.tasks.needs import Needs


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
    """What stops no run, and is hardly meant or makes its metrics doubtful: one line each."""
    data: tuple[tuple[str, Description], ...] = ()
    """What its sources were taken for, by key path."""


Step = tuple[Path, str | None]
"""A spec file and one of its variants."""


def plan_runs(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    runs_dir: Path,
    without_data: bool = False,
    only: str | None = None,
) -> list[PlannedRun]:
    """Load, resolve and plan every run of the spec files; a run stands after the one it starts from, and only once.

    Args:
        paths: experiment files.
        overrides: `key=value` for these files; the experiments that they start from are taken as written.
        runs_dir: where runs are kept, hence where `init.experiment` finds its weights.
        without_data: count from the spec where the data is not at hand.
        only: the one variant of these files that is wanted; None for all.

    Raises:
        InputError: with the problems of all files.
    """
    planner = _Planner(runs_dir, without_data)
    problems: dict[Problem, None] = {}
    for path in paths:
        try:
            experiments = load_experiments(path, overrides, only=only)
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


def started_from(experiment: Experiment) -> Experiment | None:
    """The run of another experiment file whose best weights a run starts from; None where it starts from no such run.

    Raises:
        InputError: the file is wrong, or it cannot be told which of its runs is meant.
    """
    init = experiment.spec.init
    if init is None or init.experiment is None:
        return None
    return _Needed.of(load_experiments(Path(init.experiment))).choose(init, seed=experiment.spec.seed, asking=experiment)


class _Planner:
    """Runs found so far, by id, and the facts of data read so far."""

    def __init__(self, runs_dir: Path, without_data: bool) -> None:
        self.runs: dict[str, PlannedRun] = {}
        self._runs_dir = runs_dir
        self._without_data = without_data
        self._examined: dict[DataSpec, Examination] = {}
        self._needed: dict[Path, _Needed] = {}
        self._ids: dict[int, str] = {}

    def add(self, experiment: Experiment, path: Path, *, before: tuple[Step, ...], asked_for: bool) -> str:
        """Plan one run after what it needs; returns its id."""
        spec = experiment.spec
        plan = self._plan(experiment)
        needs = None
        if spec.init is not None and spec.init.experiment is not None:
            steps = (*before, (path.resolve(), spec.variant))
            needs = self._add_needed(experiment, spec.init, steps)
            plan = starting_from(plan, spec, needs)
            began = InitSpec(checkpoint=str((self._runs_dir / needs).resolve()), resume=spec.init.resume)
            spec = spec.model_copy(update={"init": began})
        known = self.runs.get(plan.run_id)
        asked_for = asked_for or (known is not None and known.asked_for)
        hardly_meant = [str(remark) for remark in remarks(experiment.spec, plan, experiment.origins)]
        examined = self._examine(spec.data)
        warnings = (*hardly_meant, *examined.warnings, *queue_warnings(spec, plan))
        self.runs[plan.run_id] = PlannedRun(spec, plan, needs, asked_for, warnings, examined.described)
        return plan.run_id

    def _add_needed(self, experiment: Experiment, init: InitSpec, steps: tuple[Step, ...]) -> str:
        path = Path(init.experiment or "")
        if path not in self._needed:  # of thousands of seeds each starts from its own, and they all stand in one file
            self._needed[path] = _Needed.of(load_experiments(path))
        needed = self._needed[path].choose(init, seed=experiment.spec.seed, asking=experiment)
        if (known := self._ids.get(id(needed))) is not None:
            return known
        if (path.resolve(), needed.spec.variant) in steps:
            chain = " -> ".join(f"{step.name}" + (f" ({variant})" if variant else "") for step, variant in steps)
            raise InputError(_problem(experiment, f"runs start from each other in a circle: {chain} -> {path.name}"))
        self._ids[id(needed)] = self.add(needed, path, before=steps, asked_for=False)
        return self._ids[id(needed)]

    def _plan(self, experiment: Experiment) -> Plan:
        spec, origins = experiment
        try:
            facts = self._examine(spec.data).facts
        except InputError as unread:
            raise InputError(*_besides_rows(experiment), *(placed(one, origins) for one in unread.problems)) from unread
        return make_plan(spec, facts, origins, without_data=self._without_data)

    def _examine(self, data: DataSpec) -> Examination:
        if data not in self._examined:
            self._examined[data] = examine(data, without_data=self._without_data)
        return self._examined[data]


def queue_warnings(spec: ExperimentSpec, plan: Plan) -> tuple[str, ...]:
    """Queues that teach something else: one that holds every image more than once has a row's own epoch-old features among its
    negatives; and where nothing but CMA spreads features that begin at random, its keys are told from the batch's by their age
    (docs/objectives.md, "What a queue needs").
    """
    size, batch, objectives = spec.model.queue_size, plan.global_batch_size, spec.objectives
    if not size or not objectives.need(Needs.QUEUE):
        return ()
    found = []
    if size > plan.num_train_rows:
        held = f"the queue of {size:,} holds more than an epoch ({plan.num_train_rows:,} rows)"
        found.append(f"model.queue_size: {held}: every row is in it several times, from weights of long ago")
    begins_at_random = spec.model.image_encoder.weights is None and spec.init is None
    is_told = objectives.cma is not None and objectives.imc is None and not objectives.centred_queue
    if begins_at_random and is_told and size > batch:
        held = f"CMA without IMC, from random weights, and keys up to {-(-size // batch):,} steps old"
        seen = "in every run that was measured they were told by their age; 0 or objectives.centred_queue avoids it"
        found.append(f"model.queue_size: {held}: {seen}")
    return tuple(found)


def _besides_rows(experiment: Experiment) -> list[Problem]:
    """What is wrong with a spec whose data could not be counted; counting has named the annotation files that are missing."""
    try:
        check_spec(*experiment)
    except InputError as wrong:
        return [problem for problem in wrong.problems if ".files[" not in problem.key]
    return []


class _Needed(NamedTuple):
    """The runs of a file that others start from: variant -> seed -> run."""

    variants: dict[str | None, dict[int, Experiment]]

    @classmethod
    def of(cls, experiments: Sequence[Experiment]) -> Self:
        variants: dict[str | None, dict[int, Experiment]] = {}
        for found in experiments:
            variants.setdefault(found.spec.variant, {})[found.spec.seed] = found
        return cls(variants)

    def choose(self, init: InitSpec, *, seed: int, asking: Experiment) -> Experiment:
        """The one run to start from: of the variant asked for, with the same seed where there are several.

        Raises:
            InputError: there is none, or it cannot be told which.
        """
        named = ", ".join(str(variant) for variant in self.variants if variant)
        if init.variant is None and len(self.variants) > 1:
            raise InputError(_problem(asking, f"{init.experiment} has several variants: name one of {named} as `variant`"))
        if init.variant is not None and init.variant not in self.variants:
            hint = f"it has {named}" if named else "it has none"
            raise InputError(_problem(asking, f"{init.experiment} has no variant {init.variant!r}", hint))
        seeds = next(iter(self.variants.values())) if init.variant is None else self.variants[init.variant]
        if seed not in seeds and len(seeds) > 1:
            listed = ", ".join(map(str, list(seeds)[:20])) + (" and more" if len(seeds) > 20 else "")
            raise InputError(_problem(asking, f"{init.experiment} has the seeds {listed} but not this run's seed {seed}"))
        return seeds.get(seed) or next(iter(seeds.values()))


def _problem(experiment: Experiment, message: str, hint: str | None = None) -> Problem:
    return Problem("init.experiment", message, hint, experiment.origins.get("init.experiment"))
