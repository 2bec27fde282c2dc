"""Whose W&B workspace is it? The runs of an experiment, a sweep, a group, or what runs are called."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tclx.errors import InputError, Problem
from tclx.found import find, is_sweep_file
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import nearest
from tclx.spec.load import load_experiments, load_spec_json
from tclx.sweep.load import load_sweep
from tclx.sweep.metrics import GPU_HOURS, PROCESS_HOURS
from tclx.sweep.space import parameters
from tclx.track.wandb.workspace import Study, build_workspace

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


class Shown(NamedTuple):
    """Whose workspace it is."""

    specs: list[ExperimentSpec]
    """Of one project and group."""
    study: Study | None = None
    """What a sweep adds."""


def workspace_of(target: str, *, overrides: Sequence[str], runs_dir: Path) -> Workspace:
    """The workspace of what a user names; nothing is saved yet.

    Args:
        target: an experiment or sweep file, a W&B group, or what stands for runs.
        overrides: `key=value` for a file.
        runs_dir: where runs are kept.

    Raises:
        InputError: it names nothing that uses W&B, or runs of several groups, or nobody owns the workspace.
    """
    is_file = Path(target).is_file() or target.endswith((".yaml", ".yml"))
    shown = _of_file(Path(target), overrides, runs_dir) if is_file else _of_runs(target, overrides, runs_dir)
    return build_workspace(shown.specs, entity=_entity(shown.specs[0]), study=shown.study)


def _entity(spec: ExperimentSpec) -> str:
    entity = (spec.tracking.wandb.entity if spec.tracking.wandb else None) or os.environ.get("WANDB_ENTITY")
    if entity is None:
        raise InputError(Problem("tracking.wandb.entity", "a workspace needs an owner", "name it, or set WANDB_ENTITY"))
    return entity


def _of_file(path: Path, overrides: Sequence[str], runs_dir: Path) -> Shown:
    if is_sweep_file(path):
        return _of_sweep(path, overrides, runs_dir)
    specs = [experiment.spec for experiment in load_experiments(path, overrides)]
    return Shown(_tracked(specs, str(path), "name a project: --set tracking.wandb.project=NAME"))


def _of_sweep(path: Path, overrides: Sequence[str], runs_dir: Path) -> Shown:
    sweep = load_sweep(path, overrides, runs_dir=runs_dir)
    varied = parameters(sweep.spec)
    study = Study(
        parameters=tuple(parameter.key for parameter in varied if not parameter.is_switch),
        switches=tuple(parameter.key for parameter in varied if parameter.is_switch),
        goals=tuple(
            goal.metric for goal in sweep.spec.objective if goal.metric not in (PROCESS_HOURS, GPU_HOURS)
        ),  # W&B has no row of it
    )
    return Shown(_tracked([sweep.tracked], str(path), "its experiment, or its `changes`, name a project"), study)


def _of_runs(target: str, overrides: Sequence[str], runs_dir: Path) -> Shown:
    """The runs of a W&B group with this name, else those that `tclx results` knows by it."""

    def read(folders: Sequence[Path]) -> list[ExperimentSpec]:
        return [load_spec_json(folder / "spec.json") for folder in folders]

    if overrides:
        raise InputError(Problem("--set", f"{target} names runs, whose specs are what they are", "name their file"))
    groups = {folder: _group_of(folder) for folder in find([], runs_dir=runs_dir, trials=True).folders}
    if members := [folder for folder, group in groups.items() if group == target]:
        return Shown(_tracked(read(members), target))
    try:
        found = find([target], runs_dir=runs_dir).folders
    except InputError as error:
        near = nearest(target, [group for group in groups.values() if group is not None])
        message = f"{target} is neither a file nor a run or a group of runs"
        hint = f"did you mean {near}?" if near else error.problems[0].hint
        raise InputError(Problem("", message, hint)) from error
    return Shown(_tracked(read(found), target, "name the file of an experiment that does"))


def _group_of(folder: Path) -> str | None:
    """The W&B group of a run, whatever version of tclx wrote its spec; None without W&B."""
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    wandb = spec["tracking"].get("wandb")
    return (wandb["group"] or spec["name"]) if wandb is not None else None


def _tracked(specs: Sequence[ExperimentSpec], named: str, hint: str | None = None) -> list[ExperimentSpec]:
    """Those that use W&B; all of one project and group.

    Args:
        specs: of the runs.
        named: what the user named them by.
        hint: what to do where none uses W&B.

    Raises:
        InputError: none does, or a workspace cannot show them together.
    """
    found = [spec for spec in specs if spec.tracking.wandb is not None]
    if not found:
        raise InputError(Problem("tracking.wandb", f"{named} does not use W&B", hint))
    places = {f"{wandb.project}/{wandb.group or spec.name}": None for spec in found if (wandb := spec.tracking.wandb)}
    if len(places) > 1:
        message = f"runs of {named} are of several projects or groups on W&B: {', '.join(places)}"
        raise InputError(Problem("", message, "name one group, or runs of one"))
    return found
