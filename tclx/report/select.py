"""Which runs does a report show? Run folders, groups of runs and experiment files -> run folders, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.eval.results import find_runs
from tclx.plan import CHANGES_NO_RESULT
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.load import load_experiments, load_spec_json

SPEC_SUFFIXES = (".yaml", ".yml")


class Selection(NamedTuple):
    """What was asked for."""

    folders: tuple[Path, ...]
    """Run folders, in the order asked for; an experiment file's in the order of its variants."""
    experiments: tuple[Path, ...]
    """The experiment files among what was named."""
    gaps: tuple[str, ...]
    """Runs that a file asks for and that are not there, in words."""


def select(asked: Sequence[str], *, runs_dir: Path) -> Selection:
    """Find the runs to report.

    Args:
        asked: experiment files, or whatever `tclx.eval.results.find_runs` knows: run folders and ids, experiments, folders of
            runs.
        runs_dir: where runs are kept.

    Raises:
        InputError: nothing is found for one of them, or a file is wrong.
    """
    folders: dict[Path, None] = {}
    experiments: list[Path] = []
    gaps: list[str] = []
    problems: list[Problem] = []
    for item in asked:
        try:
            if item.endswith(SPEC_SUFFIXES):
                found, missing = _of_experiment(Path(item), runs_dir)
                experiments.append(Path(item))
                gaps += missing
            else:
                found = find_runs([item], runs_dir=runs_dir)
            folders.update(dict.fromkeys(found))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return Selection(tuple(folders), tuple(experiments), tuple(gaps))


def _of_experiment(path: Path, runs_dir: Path) -> tuple[list[Path], list[str]]:
    """The runs that a file asks for, and what is not there.

    Compared by content and not by run id, which takes the training data to be at hand.
    """
    known = find_runs([], runs_dir=runs_dir)
    found, missing = [], []
    for spec, _ in load_experiments(path):
        label = f"{spec.name}-{spec.variant}" if spec.variant else spec.name
        named = [folder for folder in known if folder.name.rpartition("-")[0] == f"{label}-s{spec.seed}"]
        same = [folder for folder in named if _content(load_spec_json(folder / "spec.json")) == _content(spec)]
        found += same
        if not same:
            other = "; a run of that name was trained from another spec" if named else ""
            missing.append(f"{label} with seed {spec.seed} has not been run{other}")
    if not found:
        hint = f"tclx run {path} trains them; runs are looked for in {runs_dir}, choose another with --runs-dir"
        raise InputError(Problem("", f"no run of {path}: {missing[0]}", hint))
    return found, missing


def _content(spec: ExperimentSpec) -> dict[str, Any]:
    """What a run id is made from, but for the run that it starts from, which a run folder names by its path."""
    return spec.model_dump(exclude={**CHANGES_NO_RESULT, "init": True})
