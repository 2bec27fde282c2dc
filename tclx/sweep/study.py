"""Which study does a sweep belong to? Its folder, its place in Optuna's storage, and what must not change under it.

    RUNS/sweeps/NAME/sweep.json      the checked sweep: what the trials are made from
    RUNS/sweeps/NAME/journal.log     Optuna's journal, unless the study is in a database
    RUNS/sweeps/NAME/lock            held while the next trial is chosen
    RUNS/sweeps/NAME/trials/         who works on which trial
    RUNS/sweeps/NAME/confirmation/   who works on which training of the confirmation
    RUNS/sweeps/NAME/workers/        a file a worker: held and touched while it lives
    RUNS/sweeps/NAME/logs/           what local workers printed; pool.log, what a detached sweep did
    RUNS/sweeps/NAME/jobs.jsonl      what was submitted to SLURM
    RUNS/sweeps/NAME/started.json    when `tclx sweep` was last called
    RUNS/sweeps/NAME/wandb.json      its run on W&B
    RUNS/sweeps/NAME/variants/V/     of a sweep over several variants: trials/, confirmation/ and wandb.json of each

Trials are ordinary runs in RUNS.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tclx.errors import InputError, Problem
from tclx.files import machine_error, write_atomically
from tclx.plan import DataFacts
from tclx.runs import SET_ASIDE, SWEEPS, RunFolder, TrialOf
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import nearest
from tclx.spec.shipped import spec_file
from tclx.spec.sweep import (
    AshaPruner,
    CmaesSampler,
    GpSampler,
    GridSampler,
    HubSampler,
    HyperbandPruner,
    MedianPruner,
    Nsga2Sampler,
    QmcSampler,
    RandomSampler,
    SweepSpec,
    TpeSampler,
    WilcoxonPruner,
)
from tclx.spec.yaml import read_yaml
from tclx.sweep import space
from tclx.sweep.hub import hub_sampler
from tclx.sweep.prior import WithPriors
from tclx.sweep.searched import Sweep, changes_no_result
from tclx.sweep.storage import open_storage, quieten

OF, SEED = "of", "seed"
"""Attributes of a confirming trial: the number of the search's trial, and the seed it is trained with."""


@dataclass(frozen=True)
class StudyFolder:
    """One study's folder: every path of it."""

    path: Path
    variant: str | None = None
    """Whose part of the study this is, where it is over several variants."""
    confirms: bool = False
    """Whether it is the confirmation's part."""

    @classmethod
    def of(cls, name: str, runs_dir: Path) -> Self:
        return cls(runs_dir.resolve() / SWEEPS / name)

    @property
    def runs_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.log"

    @property
    def started(self) -> Path:
        return self.path / "started.json"

    @property
    def jobs(self) -> Path:
        """JSON lines: what was submitted to SLURM, written before it was."""
        return self.path / "jobs.jsonl"

    @property
    def pool_lock(self) -> Path:
        """Held by the process that starts workers on this machine."""
        return self.path / "pool.lock"

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def own(self) -> Path:
        """Of this variant alone."""
        return self.path if self.variant is None else self.path / "variants" / self.variant

    @property
    def prefix(self) -> str:
        """Before what is said of one variant; empty where there are not several."""
        return "" if self.variant is None else f"{self.variant}: "

    @property
    def claims(self) -> Path:
        return self.own / ("confirmation" if self.confirms else "trials")

    def claim(self, number: int) -> Path:
        """Who works on a trial."""
        return self.claims / f"{number:05d}.json"

    def confirming(self) -> Self:
        """The same for the confirmation of what the search finds."""
        return replace(self, confirms=True)

    def make(self) -> None:
        """The folder and those inside it.

        Raises:
            MachineError: it cannot be written.
        """
        try:
            for folder in (self.claims, self.confirming().claims, self.workers):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise machine_error(error, f"could not make {self.path}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a trial is chosen or taken over, so that no two workers take the same."""
        with (self.path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write_sweeps(self, sweeps: Sequence[Sweep]) -> None:
        """What workers read: of one search, or of each variant's."""
        first = _to_json(sweeps[0])
        if sweeps[0].part is not None:
            first |= {"variants": {sweep.part: _to_json(sweep) for sweep in sweeps}}
        write_atomically(self.sweep, json.dumps(first, indent=1))

    def parts(self) -> list[Self]:
        """Of each search in it: this folder, or one a variant.

        Raises:
            InputError: there is no study here, or another version of tclx wrote it.
        """
        if self.variant is not None:
            return [self]
        content = self._read()
        return [replace(self, variant=variant) for variant in content["variants"]] if "variants" in content else [self]

    def read_sweep(self) -> Sweep:
        """The sweep as it was checked; of several variants' this folder's, or the first.

        Raises:
            InputError: there is none here, or another version of tclx wrote it.
        """
        content = self._read()
        try:
            variants = content.get("variants")
            part = None if variants is None else self.variant if self.variant is not None else next(iter(variants))
            content = content if variants is None else variants[part]
            spec = SweepSpec.model_validate_json(json.dumps(content["spec"]))
            base = ExperimentSpec.model_validate_json(json.dumps(content["base"]))
            if "experiment" not in content:  # studies of commit 53ca314 and before
                experiment = base if changes_no_result(spec) else None
            else:
                experiment = content["experiment"] and ExperimentSpec.model_validate_json(json.dumps(content["experiment"]))
            return Sweep(spec, base, content["needs"], DataFacts(**content["facts"]), experiment, part=part)
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_understood(error) from error

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.sweep.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._not_understood(error) from error
        if not isinstance(content, dict):
            raise self._not_understood("it holds no object")
        return content

    def _not_understood(self, why: object) -> InputError:
        return InputError(Problem("", f"{self.path} holds no sweep that this version of tclx understands: {why}"))

    def note_start(self) -> None:
        """`max_hours` counts from here."""
        write_atomically(self.started, json.dumps({"time": time.time()}))

    def hours_since_start(self) -> float:
        """Since `note_start`."""
        started = json.loads(self.started.read_text(encoding="utf-8"))["time"]
        return float(time.time() - started) / 3600


def _to_json(sweep: Sweep) -> dict[str, Any]:
    return {
        "spec": sweep.spec.model_dump(mode="json"),
        "base": sweep.base.model_dump(mode="json"),
        "needs": sweep.needs,
        "facts": sweep.facts._asdict(),
        "experiment": sweep.experiment and sweep.experiment.model_dump(mode="json"),
    }


def open_study(folder: StudyFolder, sweep: Sweep, *, seed: int | None = None) -> optuna.Study:
    """The study of the search as a worker, or somebody who reads, sees it.

    Args:
        folder: of the study, or of one variant.
        sweep: what it searches.
        seed: of the sampler; None to read only, which runs no code of other people's samplers.

    Raises:
        InputError: the storage has no such study, or its sampler cannot be had.
        MachineError: the storage cannot be reached.
    """
    quieten()
    reads_only = seed is None and isinstance(sweep.spec.sampler, HubSampler)
    sampler = optuna.samplers.RandomSampler(seed=0) if reads_only else build_sampler(sweep, seed=seed or 0)
    return _opened(folder, sweep, sampler=sampler, pruner=build_pruner(sweep))


def open_confirmation(folder: StudyFolder, sweep: Sweep) -> optuna.Study | None:
    """The study of the confirmation; None where none is asked for.

    Raises:
        InputError, MachineError: as `open_study`.
    """
    if sweep.spec.confirm is None:
        return None
    quieten()
    sampler, pruner = optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()  # nothing is drawn, nothing pruned
    return _opened(folder.confirming(), sweep, sampler=sampler, pruner=pruner)


def _opened(folder: StudyFolder, sweep: Sweep, *, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    storage = open_storage(sweep.spec.storage, folder.journal)
    # A database has a study that was set aside under its folder's name, a journal under its own: the journal moved with it.
    name = study_name(folder, sweep.spec.name if sweep.spec.storage is None else folder.path.name)
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    except KeyError as error:
        raise InputError(Problem("storage", f"there is no study `{name}` in {sweep.spec.storage or folder.journal}")) from error


def study_name(folder: StudyFolder, base: str) -> str:
    """What Optuna calls a part of a study; `/` is in no name of a sweep."""
    return "/".join([base, *([folder.variant] if folder.variant else []), *(["confirmation"] if folder.confirms else [])])


def build_sampler(sweep: Sweep, *, seed: int) -> BaseSampler:
    """Optuna's sampler; workers with different seeds draw different trials, the first of them from the priors of the space."""
    seed = (sweep.spec.sampler_seed * 1_000_003 + seed) % 2**32
    sampler = _sampler(sweep, seed)
    priors = {key: one.prior for key, one in sweep.spec.space.items() if one.prior is not None}
    if not priors:
        return sampler
    return WithPriors(sampler, priors, startup_trials=getattr(sweep.spec.sampler, "startup_trials", None), seed=seed)


def _sampler(sweep: Sweep, seed: int) -> BaseSampler:
    conditional = any(parameter.on_or_off for parameter in sweep.spec.space.values())
    match sweep.spec.sampler:
        case TpeSampler(startup_trials=startup):
            return optuna.samplers.TPESampler(
                n_startup_trials=startup, multivariate=True, group=conditional, constant_liar=True, seed=seed,
            )  # fmt: skip
        case GpSampler(startup_trials=startup):
            return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
        case CmaesSampler(startup_trials=startup):
            return optuna.samplers.CmaEsSampler(n_startup_trials=startup, seed=seed)
        case QmcSampler():  # one sequence for all workers: scrambled alike, each takes the next of its points
            return optuna.samplers.QMCSampler(scramble=True, seed=sweep.spec.sampler_seed)
        case RandomSampler():
            return optuna.samplers.RandomSampler(seed=seed)
        case GridSampler(points=points):
            return optuna.samplers.GridSampler(space.grid(sweep.spec, points), seed=sweep.spec.sampler_seed)
        case Nsga2Sampler(population_size=size):
            return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
        case HubSampler():
            return hub_sampler(sweep.spec.sampler, seed=seed)
    raise TypeError(sweep.spec.sampler)


def build_pruner(sweep: Sweep) -> BasePruner:
    """Optuna's pruner; a step is an evaluation, counted from 1 (for Wilcoxon's: a seed)."""
    match sweep.spec.pruner:
        case HyperbandPruner(reduction_factor=factor):
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=max(1, num_evaluations(sweep)), reduction_factor=factor
            )
        case AshaPruner(reduction_factor=factor, first_evaluations=first):
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        case MedianPruner(startup_trials=startup, first_evaluations=first):
            return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=first)
        case WilcoxonPruner(p=p):
            return optuna.pruners.WilcoxonPruner(p_threshold=p)
    return optuna.pruners.NopPruner()


def num_evaluations(sweep: Sweep) -> int:
    """Evaluations of one run of the base experiment."""
    plan = sweep.planned(space.parameters_at(sweep.base_tree, sweep.spec))[0].plan
    every = plan.evaluate_every_steps
    return -(-plan.total_steps // every) if every else 0


def counted(study: optuna.Study) -> dict[TrialState, list[FrozenTrial]]:
    """The trials by state."""
    found: dict[TrialState, list[FrozenTrial]] = {state: [] for state in TrialState}
    for trial in study.get_trials(deepcopy=False):
        found[trial.state].append(trial)
    return found


def is_exhausted(study: optuna.Study) -> bool:
    """Whether a grid has been tried whole."""
    return isinstance(study.sampler, optuna.samplers.GridSampler) and study.sampler.is_exhausted(study)


def num_begun(trials: Mapping[TrialState, Sequence[FrozenTrial]]) -> int:
    """Of the trials by state."""
    return sum(len(some) for state, some in trials.items() if state != TrialState.WAITING)


def has_begun_all(study: optuna.Study, sweep: Sweep) -> bool:
    """Whether no further trial is to begin: all that were asked for have, or the search was stopped before."""
    begun = num_begun(counted(study))
    return begun >= sweep.spec.num_trials or is_exhausted(study) or stopped_by(study, sweep) is not None


def is_search_over(study: optuna.Study, sweep: Sweep) -> bool:
    """Whether no further trial is to begin, and none runs."""
    return has_begun_all(study, sweep) and not counted(study)[TrialState.RUNNING]


_STOPPED = "stopped"
"""The study's attribute that says why no more trials begin, and by which keys of the sweep."""


def note_stopped(study: optuna.Study, sweep: Sweep, reason: str) -> None:
    """No more trials begin, until `stop` or `max_gpu_hours` is another."""
    study.set_user_attr(_STOPPED, {"reason": reason, "by": _stops(sweep)})


def stopped_by(study: optuna.Study, sweep: Sweep) -> str | None:
    """Why the search was stopped before all trials had begun; None where it was not."""
    noted = study.user_attrs.get(_STOPPED)
    return str(noted["reason"]) if noted is not None and noted["by"] == _stops(sweep) else None


def _stops(sweep: Sweep) -> dict[str, Any]:
    return sweep.spec.model_dump(mode="json", include={"stop", "max_gpu_hours"})


# ---------------------------------------------------------------------------------------------------------------------- found


def find_study(named: str, runs_dir: Path) -> StudyFolder:
    """The study of a sweep file, or of that name.

    Raises:
        InputError: there is none.
    """
    path = spec_file(Path(named))
    name = named
    if path.suffix in (".yaml", ".yml"):
        node = read_yaml(path)
        value = node.value.get("name") if isinstance(node.value, dict) else None
        if value is None or not isinstance(value.value, str):
            raise InputError(Problem("name", f"{path} names no sweep", where=node.where))
        name = value.value
    folder = StudyFolder.of(name, runs_dir)
    if not folder.sweep.is_file():
        others = sorted(found.parent.name for found in folder.path.parent.glob("*/sweep.json"))
        match = nearest(name, others)
        hint = f"did you mean `{match}`?" if match else f"there are {', '.join(others)}" if others else "tclx sweep begins one"
        raise InputError(Problem("", f"no study `{name}` in {folder.path.parent}", hint))
    return folder


def trials_of(folder: StudyFolder) -> dict[Path, TrialOf]:
    """The folders of its trials' runs that are there, by number; a run of several trials counts for the first.

    Raises:
        InputError, MachineError: the study cannot be read.
    """
    found: dict[Path, TrialOf] = {}
    for part in folder.parts():
        sweep = part.read_sweep()
        confirming = open_confirmation(part, sweep)
        for trial in open_study(part, sweep).get_trials(deepcopy=False):
            _note(trial, TrialOf(folder.path.name, trial.number, variant=part.variant), folder, found)
        for trial in confirming.get_trials(deepcopy=False) if confirming is not None else ():
            of = TrialOf(folder.path.name, trial.user_attrs.get(OF), confirms=True, variant=part.variant)
            _note(trial, of, folder, found)
    return found


def _note(trial: FrozenTrial, of: TrialOf, folder: StudyFolder, found: dict[Path, TrialOf]) -> None:
    for run_id in trial.user_attrs.get("runs", []):
        path = folder.runs_dir / run_id
        if RunFolder(path).spec.is_file():
            found.setdefault(path, of)


def all_studies(runs_dir: Path) -> list[StudyFolder]:
    """Every study beside the runs, but those set aside."""
    paths = sorted(found.parent for found in StudyFolder.of("*", runs_dir).path.parent.glob("*/sweep.json"))
    return [StudyFolder(path) for path in paths if not SET_ASIDE.search(path.name)]
