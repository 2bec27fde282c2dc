"""Is a search to end before all of its trials? When its hours are used up, or nothing better is found any more."""

from __future__ import annotations

import optuna

from tclx.runs import RunFolder
from tclx.sweep.metrics import hours_of
from tclx.sweep.ranking import best_trials, counted_complete
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder


def why_stop(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> str | None:
    """Why no further trial is to begin, in words; None where one is."""
    limit, stop = sweep.spec.max_gpu_hours, sweep.spec.stop
    if limit is not None and (spent := hours_spent([study], folder)) >= limit:
        return f"its trials have trained for {spent:.3g} of max_gpu_hours: {limit:g}"
    complete = counted_complete(study)
    best = best_trials(study, complete)
    if stop is None or not best or sum(trial.number > best[0].number for trial in complete) < stop.trials:
        return None
    return f"nothing better in {stop.trials} trials"


def hours_spent(studies: list[optuna.Study], folder: StudyFolder) -> float:
    """Of all runs of all trials, each once, also those that were pruned or go on."""
    runs = [folder.runs_dir / run_id for study in studies for run_id in run_ids(study)]
    known = (RunFolder(run) for run in runs)
    return sum(hours_of(run) for run in known if run.metrics.exists() and run.plan.exists())


def run_ids(study: optuna.Study) -> list[str]:
    """Of all trials, each once."""
    trials = study.get_trials(deepcopy=False)
    return list(dict.fromkeys(run_id for trial in trials for run_id in trial.user_attrs.get("runs", [])))
