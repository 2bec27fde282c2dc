"""Which runs does a name stand for? One answer for every command that takes runs.

| a name | stands for |
|---|---|
| a run folder, or a run id in `runs_dir` | that run |
| an experiment, or `experiment-variant` | its runs, but not the trials of a sweep over it |
| an experiment file, or `tclx:NAME` | the runs that it asks for, in the order of its variants |
| a study's name, folder or sweep file | the runs of its trials, by number |
| a folder of runs; nothing at all | all runs in it, but for trials where a table would mix them with what they vary |

A trial stays in its experiment's table where it is an ordinary run as well (`RunFolder.read_trial`).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.errors import InputError, Problem
from tclx.files import Unreadable, read_object
from tclx.runs import SET_ASIDE, SWEEPS, RunFolder, TrialOf
from tclx.spec.difference import CHANGES_NO_RESULT, SEED_AND_HASH, identity

if TYPE_CHECKING:  # loaded where a file is named: `tclx status` needs none of it
    from tclx.report.results import Selection
    from tclx.spec.experiment import ExperimentSpec
    from tclx.spec.load import Experiment

SPEC_SUFFIXES = (".yaml", ".yml")
_OF_WEIGHTS = ("spec.json", "manifest.json", "model.safetensors")
"""A file of a run, a checkpoint, an exported folder."""


class Found(NamedTuple):
    """What the names stand for."""

    folders: tuple[Path, ...]
    """Run folders, in the order asked for, each once."""
    trials: dict[Path, TrialOf]
    """Of those that were found through their study."""
    studies: tuple[Path, ...] = ()
    """The folders of the studies among what was named."""
    experiments: tuple[Path, ...] = ()
    """The experiment files among what was named."""
    notes: tuple[str, ...] = ()
    """What a reader must know: runs that a file asks for and that are not there, trials that were left out."""

    @property
    def selection(self) -> Selection:
        """For tables and pages."""
        from tclx.report.results import Selection

        return Selection(self.folders, self.experiments, self.notes, self.trials)


def find(names: Sequence[str], *, runs_dir: Path, trials: bool = False) -> Found:
    """The runs that names stand for.

    Args:
        names: see above; empty for all that are there. What `--again` set aside is found only by its own name.
        runs_dir: where runs are kept.
        trials: whether everything, where nothing or a folder of runs is named, includes the trials of sweeps.

    Raises:
        InputError: one of the names stands for nothing, with the nearest that does; a file is wrong.
        MachineError: a study's storage is away.
    """
    folders: dict[Path, Path] = {}
    found = Found((), {})
    problems: list[Problem] = []
    for one in _each(names, runs_dir, trials, problems):
        for folder in one.folders:
            folders.setdefault(folder.resolve(), folder)
        found = Found(
            (),
            {**one.trials, **found.trials},
            (*found.studies, *one.studies),
            (*found.experiments, *one.experiments),
            (*found.notes, *one.notes),
        )
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return found._replace(folders=tuple(folders.values()))


def find_one(name: str, *, runs_dir: Path) -> Path:
    """The one run that a name stands for.

    Raises:
        InputError: it stands for none, or for several.
    """
    found = find([name], runs_dir=runs_dir)
    if len(found.folders) == 1:
        return found.folders[0]
    if not found.folders:
        raise InputError(Problem("", f"{name} has no runs yet"))
    named = [f"{folder.name}{_as_trial(found.trials.get(folder))}" for folder in found.folders[:5]]
    more = f" and {len(found.folders) - 5} more" if len(found.folders) > 5 else ""
    raise InputError(
        Problem("", f"{name} stands for {len(found.folders)} runs: {', '.join(named)}{more}", "name one of them by its run id")
    )


def saved_or_run(name: str, *, runs_dir: Path) -> Path:
    """A path where there is something other than a spec, else the one run that the name stands for.

    Raises:
        InputError: it stands for none, or for several.
    """
    path = Path(name)
    if not path.exists() or name.endswith(SPEC_SUFFIXES) or _study_at(path) is not None:
        return find_one(name, runs_dir=runs_dir)
    if path.is_dir() and not any((path / file).exists() for file in _OF_WEIGHTS):
        with suppress(InputError):  # a folder that is called as an experiment: its spec's, mostly
            return find_one(name, runs_dir=runs_dir)
    return path


def is_sweep_file(path: Path) -> bool:
    """Whether a YAML file is a sweep's, and not an experiment's.

    Raises:
        InputError: it cannot be read.
    """
    from tclx.spec.merging import is_sweep
    from tclx.spec.yaml import read_yaml

    content = read_yaml(path).value
    return isinstance(content, dict) and is_sweep(content)


def is_trial_only(folder: RunFolder) -> bool:
    """Whether a run is a trial of a sweep and nothing else."""
    trial = folder.read_trial()
    if trial is None or trial.also_run:
        return False
    return trial.study is not None or not _is_old_baseline(folder)


def trial_of(folder: Path) -> TrialOf | None:
    """Which trial a run is, as far as its folder says; None for one that is no trial, or an ordinary run as well."""
    return RunFolder(folder).read_trial() if is_trial_only(RunFolder(folder)) else None


# ------------------------------------------------------------------------------------------------------------------- one name


def _each(names: Sequence[str], runs_dir: Path, trials: bool, problems: list[Problem]) -> Iterator[Found]:
    if not names:
        yield _all_in(runs_dir, trials)
    for name in names:
        try:
            yield _one(name, runs_dir, trials)
        except OSError as error:
            problems.append(Problem("", f"{name[:80]} cannot be looked for: {error.strerror}"))
        except InputError as error:
            problems += error.problems


def _one(name: str, runs_dir: Path, trials: bool) -> Found:
    path = Path(name)
    for candidate in (path, runs_dir / name):
        if name and (candidate / "spec.json").is_file():
            return Found((candidate,), {})
    if name.startswith("tclx:"):
        from tclx.spec.shipped import spec_file

        path = spec_file(path)
    if path.suffix in SPEC_SUFFIXES:
        return _of_sweep_file(path, runs_dir) if is_sweep_file(path) else _of_experiment_file(path, runs_dir)
    study = _study_at(path) or _study_at(runs_dir / SWEEPS / name) if name else None
    if study is not None and (path / "sweep.json").is_file():
        return _of_study(study)
    runs, left_out = _without_trials([run for run in _runs_in(runs_dir) if _is_called(run, name)])
    if runs:
        also = (f"{name} is a study, too: {study} stands for its trials",) if study is not None else _left_out(left_out)
        return Found(tuple(runs), {}, notes=also)
    if study is not None:
        return _of_study(study)
    if name and path.is_dir() and _runs_in(path):
        return _all_in(path, trials)
    raise InputError(_nothing(name, runs_dir, left_out))


def _all_in(folder: Path, trials: bool) -> Found:
    runs = _runs_in(folder)
    if trials:
        return Found(tuple(runs), {})
    runs, left_out = _without_trials(runs)
    return Found(tuple(runs), {}, notes=_left_out(left_out))


def _without_trials(runs: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Ordinary runs, and those that are trials only."""
    kept: list[Path] = []
    left_out: list[Path] = []
    for run in runs:
        (left_out if is_trial_only(RunFolder(run)) else kept).append(run)
    return kept, left_out


def _left_out(runs: Iterable[Path]) -> tuple[str, ...]:
    counts = Counter(_study_named(run) for run in runs)
    return tuple(
        f"{count} {'run' if count == 1 else 'runs'} of the sweep {study} left out; name {study} to have them"
        if study
        else f"{count} {'trial' if count == 1 else 'trials'} of sweeps left out; name a sweep to have its trials"
        for study, count in counts.items()
    )


def _study_named(run: Path) -> str | None:
    trial = RunFolder(run).read_trial()
    return trial.study if trial is not None else None


def _nothing(name: str, runs_dir: Path, left_out: Sequence[Path]) -> Problem:
    if left_out:
        sweeps = ", ".join(sorted({study for run in left_out if (study := _study_named(run))})) or "their sweep"
        return Problem("", f"every run of {name} is a trial of a sweep", f"name {sweeps} to have them")
    runs = _runs_in(runs_dir)
    studies = sorted(found.parent.name for found in (runs_dir / SWEEPS).glob("*/sweep.json"))
    known = [*(run.name for run in runs), *dict.fromkeys(SEED_AND_HASH.sub("", run.name) for run in runs), *studies]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"runs are looked for in {runs_dir}; choose another with --runs-dir"
    return Problem("", f"no run at {name}", hint)


def _as_trial(trial: TrialOf | None) -> str:
    return f" (trial {trial.number})" if trial is not None else ""


# --------------------------------------------------------------------------------------------------------------------- folders


def _runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder, experiment by experiment."""
    if not folder.is_dir():
        return []
    runs = (path.parent for path in folder.glob("*/spec.json") if not SET_ASIDE.search(path.parent.name))
    return sorted(runs, key=lambda run: (SEED_AND_HASH.sub("", run.name), run.name))


def _is_called(run: Path, name: str) -> bool:
    """Whether a run is of an experiment of that name, alone or with its variant."""
    if not name or not run.name.startswith(f"{name}-"):
        return False
    try:
        spec = read_object(run / "spec.json")
        return name in (spec["name"], f"{spec['name']}-{spec['variant']}")
    except (Unreadable, KeyError):  # damaged: its folder's name still says whose it is
        return SEED_AND_HASH.sub("", run.name) == name


# ----------------------------------------------------------------------------------------------------------- experiment files


def _of_experiment_file(path: Path, runs_dir: Path) -> Found:
    """The runs that a file asks for, and what is not there."""
    from tclx.spec.load import load_experiments

    found: list[Path] = []
    missing: list[str] = []
    for spec, same in with_their_runs(load_experiments(path), runs_dir=runs_dir):
        found += same
        if not same:
            missing.append(f"{_label(spec)} with seed {spec.seed} has not been run{_another(spec, runs_dir)}")
    if not found:
        hint = f"tclx run {path} trains them; runs are looked for in {runs_dir}, choose another with --runs-dir"
        raise InputError(Problem("", f"no run of {path}: {missing[0]}", hint))
    return Found(tuple(found), {}, experiments=(path,), notes=tuple(missing))


def with_their_runs(experiments: Sequence[Experiment], *, runs_dir: Path) -> Iterator[tuple[ExperimentSpec, list[Path]]]:
    """Each spec with the run folders that were trained from it.

    Compared by content and not by run id, which takes the training data to be at hand; so is the run that it starts from, as
    long as its folder is there.
    """
    from tclx.spec.load import load_spec_json

    known = _runs_in(runs_dir)
    for experiment in experiments:
        found = []
        for folder in known:
            if _is_named_as(experiment.spec, folder):
                ran = load_spec_json(folder / "spec.json")
                if _content(ran) == _content(experiment.spec) and _starts_alike(ran, experiment):
                    found.append(folder)
        yield experiment.spec, found


def _starts_alike(ran: ExperimentSpec, asked: Experiment) -> bool:
    """Whether a run began where the experiment asks for; true where nothing tells any more."""
    from tclx.launch.order import started_from
    from tclx.spec.load import load_spec_json

    if asked.spec.init is None or asked.spec.init.experiment is None:
        return ran.init == asked.spec.init
    if ran.init is None or ran.init.checkpoint is None:
        return False
    began = Path(ran.init.checkpoint) / "spec.json"
    needed = started_from(asked)
    return needed is None or not began.is_file() or _content(load_spec_json(began)) == _content(needed.spec)


def _label(spec: ExperimentSpec) -> str:
    return f"{spec.name}-{spec.variant}" if spec.variant else spec.name


def _is_named_as(spec: ExperimentSpec, folder: Path) -> bool:
    return folder.name.rpartition("-")[0] == f"{_label(spec)}-s{spec.seed}"


def _another(spec: ExperimentSpec, runs_dir: Path) -> str:
    named = any(_is_named_as(spec, folder) for folder in _runs_in(runs_dir))
    return "; a run of that name was trained from another spec" if named else ""


def _content(spec: ExperimentSpec) -> dict[str, Any]:
    """What a run id is made from, but for the run that it starts from, which a run folder names by its path."""
    return spec.model_dump(exclude={**CHANGES_NO_RESULT, "init": True})


# ---------------------------------------------------------------------------------------------------------------------- studies


def _study_at(path: Path) -> Path | None:
    return path.resolve() if (path / "sweep.json").is_file() else None


def _of_sweep_file(path: Path, runs_dir: Path) -> Found:
    from tclx.sweep.study import find_study

    return _of_study(find_study(str(path), runs_dir).path)


def _of_study(folder: Path) -> Found:
    """The runs of a study's trials."""
    from tclx.sweep.study import StudyFolder, trials_of

    trials = trials_of(StudyFolder(folder))
    return Found(tuple(trials), trials, studies=(folder,), notes=() if trials else (f"{folder.name} has no runs yet",))


def _is_old_baseline(folder: RunFolder) -> bool:
    """Whether a run of commit 53ca314 or before, which a sweep started, is the experiment as it is: a study beside it, without
    `changes` to the result, has that very experiment as its trial 0.
    """
    try:
        mine = identity(folder.read_json(folder.spec))
        return any(mine == identity(base) for base in _old_bases(folder.path.parent))
    except (Unreadable, ValueError, KeyError, TypeError, AttributeError):
        return False


def _old_bases(runs_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((runs_dir / SWEEPS).glob("*/sweep.json")):
        content = read_object(path)
        changed = content["spec"]["changes"]
        if "experiment" not in content and all(key.startswith(("launch", "tracking")) for key in changed):
            yield content["base"]
