"""Which study does a sweep belong to? Its folder, its place in Optuna's storage, and what must not change under it.

    RUNS/sweeps/NAME/sweep.json      the checked sweep: what the trials are made from
    RUNS/sweeps/NAME/journal.log     Optuna's journal, unless the study is in a database
    RUNS/sweeps/NAME/lock            held while the next trial is chosen
    RUNS/sweeps/NAME/trials/         who works on which trial
    RUNS/sweeps/NAME/workers/        a file a worker: held and touched while it lives
    RUNS/sweeps/NAME/logs/           what local workers printed; pool.log, what a detached sweep did
    RUNS/sweeps/NAME/jobs.jsonl      what was submitted to SLURM
    RUNS/sweeps/NAME/started.json    when `tclx sweep` was last called
    RUNS/sweeps/NAME/wandb.json      its run on W&B

Trials are ordinary runs in RUNS.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tclx.errors import InputError, Problem
from tclx.launch.prepare import rename_aside
from tclx.plan import CHANGES_NO_RESULT, DataFacts
from tclx.runs import machine_error, write_atomically
from tclx.spec.difference import differences
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import nearest
from tclx.spec.sweep import (
    AshaPruner,
    CmaesSampler,
    GpSampler,
    GridSampler,
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
from tclx.sweep.load import Sweep, point_values
from tclx.sweep.storage import open_storage, quieten

SWEEPS = "sweeps"
"""Beside the runs: a folder a study."""

IDENTITY = "tclx"
"""The study's attribute in Optuna's storage that says what its trials are made from."""


@dataclass(frozen=True)
class StudyFolder:
    """One study's folder: every path of it."""

    path: Path

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

    def claim(self, number: int) -> Path:
        """Who works on a trial."""
        return self.path / "trials" / f"{number:05d}.json"

    def make(self) -> None:
        """The folder and those inside it.

        Raises:
            MachineError: it cannot be written.
        """
        try:
            for folder in (self.path / "trials", self.workers):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise machine_error(error, f"could not make {self.path}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a trial is chosen or taken over, so that no two workers take the same."""
        with (self.path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write_sweep(self, sweep: Sweep) -> None:
        """What workers read."""
        content = {
            "spec": sweep.spec.model_dump(mode="json"),
            "base": sweep.base.model_dump(mode="json"),
            "needs": sweep.needs,
            "facts": sweep.facts._asdict(),
        }
        write_atomically(self.sweep, json.dumps(content, indent=1))

    def read_sweep(self) -> Sweep:
        """The sweep as it was checked.

        Raises:
            InputError: there is none here, or another version of tclx wrote it.
        """
        try:
            content = json.loads(self.sweep.read_text(encoding="utf-8"))
            return Sweep(
                SweepSpec.model_validate_json(json.dumps(content["spec"])),
                ExperimentSpec.model_validate_json(json.dumps(content["base"])),
                content["needs"],
                DataFacts(**content["facts"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                Problem("", f"{self.path} holds no sweep that this version of tclx understands: {error}")
            ) from error

    def note_start(self) -> None:
        """`max_hours` counts from here."""
        write_atomically(self.started, json.dumps({"time": time.time()}))

    def hours_since_start(self) -> float:
        """Since `note_start`."""
        started = json.loads(self.started.read_text(encoding="utf-8"))["time"]
        return float(time.time() - started) / 3600


def create_study(sweep: Sweep, folder: StudyFolder, *, accept_changes: bool = False) -> optuna.Study:
    """The sweep's study: made, or continued where it is the same. Its first trials wait in it.

    Args:
        sweep: checked.
        folder: of the study; written here.
        accept_changes: go on although the space or the experiment has changed since.

    Raises:
        InputError: a study of this name is made of something else; the differences.
        MachineError: the storage cannot be reached.
    """
    quieten()
    folder.make()
    with folder.lock():
        storage = open_storage(sweep.spec.storage, folder.journal)
        study = optuna.create_study(
            storage=storage,
            study_name=sweep.spec.name,
            directions=[objective.direction for objective in sweep.spec.objective],
            load_if_exists=True,
            sampler=build_sampler(sweep, seed=0),
        )
        before = study.user_attrs.get(IDENTITY)
        now = _identity(sweep)
        if before is not None and before != now and not accept_changes:
            raise InputError(*_differences(before, now, folder))
        if before != now:
            study.set_user_attr(IDENTITY, now)
        study.set_metric_names([objective.metric for objective in sweep.spec.objective])
        if not study.get_trials(deepcopy=False):
            for first in _first_trials(sweep):
                study.enqueue_trial(first)
        folder.write_sweep(sweep)
    return study


def open_study(folder: StudyFolder, sweep: Sweep, *, seed: int = 0) -> optuna.Study:
    """The study as a worker, or somebody who reads, sees it.

    Raises:
        MachineError: the storage cannot be reached.
    """
    quieten()
    storage = open_storage(sweep.spec.storage, folder.journal)
    return optuna.load_study(
        study_name=sweep.spec.name, storage=storage, sampler=build_sampler(sweep, seed=seed), pruner=build_pruner(sweep)
    )


def _first_trials(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The experiment itself, then the points that the sweep lists."""
    tree = sweep.base_tree
    yield space.parameters_at(tree, sweep.spec)
    for point in sweep.spec.points:
        yield space.parameters_at(space.with_values(tree, point_values(point)), sweep.spec)


def build_sampler(sweep: Sweep, *, seed: int) -> BaseSampler:
    """Optuna's sampler; workers with different seeds draw different trials."""
    seed = (sweep.spec.sampler_seed * 1_000_003 + seed) % 2**32
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


# ------------------------------------------------------------------------------------------------------------------ identity


def _identity(sweep: Sweep) -> dict[str, Any]:
    """What decides a trial's value: with another of these, old and new trials would not be comparable."""
    spec = sweep.spec.model_dump(mode="json", include={"space", "simplex", "objective", "constraints", "seeds"})
    base = sweep.base.model_dump(mode="json", exclude_defaults=True, exclude=CHANGES_NO_RESULT)
    return {**spec, "experiment": base, "needs": sweep.needs}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], folder: StudyFolder) -> Iterator[Problem]:
    advice = "give the sweep another name, or --again to begin anew (the old study is kept), or --accept-changes to mix them"
    yield Problem("name", f"the study in {folder.path} is made of something else", advice)
    for key, (old, new) in differences([before, now]):
        yield Problem(key, f"was {old}, is {new}")


# ------------------------------------------------------------------------------------------------------- found and set aside


def find_study(named: str, runs_dir: Path) -> StudyFolder:
    """The study of a sweep file, or of that name.

    Raises:
        InputError: there is none.
    """
    path = Path(named)
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


def named_studies(selection: Sequence[str], *, runs_dir: Path) -> tuple[list[StudyFolder], list[str]]:
    """The studies among things that are named, or all that are there, and the names of something else.

    Args:
        selection: sweep files, studies' folders, names in `runs_dir`; empty for every study, but those set aside.
        runs_dir: where runs are kept.

    Raises:
        InputError: a sweep file without a study.
    """
    if not selection:
        paths = sorted(found.parent for found in StudyFolder.of("*", runs_dir).path.parent.glob("*/sweep.json"))
        return [StudyFolder(path) for path in paths if not _SET_ASIDE.search(path.name)], []
    found: dict[StudyFolder, None] = {}
    others = []
    for item in selection:
        places = [StudyFolder(Path(item).resolve()), StudyFolder.of(item, runs_dir)]
        study = next((place for place in places if place.sweep.is_file()), None)
        if study is None and Path(item).suffix in (".yaml", ".yml"):
            study = find_study(item, runs_dir)
        if study is None:
            others.append(item)
        else:
            found[study] = None
    return list(found), others


_SET_ASIDE = re.compile(r"\.old-\d+$")


def set_aside(folder: StudyFolder, sweep: Sweep) -> Path:
    """Keep an old study under another name, in its folder and in a database."""
    if sweep.spec.storage is not None:
        storage = open_storage(sweep.spec.storage, folder.journal)
        names = optuna.get_all_study_names(storage)
        if sweep.spec.name in names:
            free = next(f"{sweep.spec.name}.old-{n}" for n in count(1) if f"{sweep.spec.name}.old-{n}" not in names)
            optuna.copy_study(from_study_name=sweep.spec.name, from_storage=storage, to_storage=storage, to_study_name=free)
            optuna.delete_study(study_name=sweep.spec.name, storage=storage)
    return rename_aside(folder.path)
