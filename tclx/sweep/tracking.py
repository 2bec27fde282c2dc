"""What does W&B show of a study as a whole? Optuna's trials and their runs' folders -> one more W&B run, beside theirs."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from tclx.errors import TclxError
from tclx.files import holding
from tclx.launch.prepare import Say
from tclx.runs import RunFolder
from tclx.spec.sweep import ObjectiveSpec
from tclx.spec.tracking import WandbSpec
from tclx.sweep import metrics, space
from tclx.sweep.confirm import confirmation_of
from tclx.sweep.importance import FEWEST_FOR_IMPORTANCE, importances_of
from tclx.sweep.ranking import counted_complete
from tclx.sweep.searched import Sweep
from tclx.sweep.stopping import hours_spent
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder, counted, open_confirmation, open_study
from tclx.sweep.summary import (
    Summary,
    state_word,
    summarise,
    values_of_trial,
)
from tclx.sweep.verdict import conclusion
from tclx.track.wandb.process import read_sent, wandb_mode
from tclx.track.wandb.study import StudyDue, is_up_to_date, note_problem, read_study_sent, send_study

# ------------------------------------------------------------------------------------------------------------- what is there


def due_of(study: optuna.Study, sweep: Sweep, folder: StudyFolder, spec: WandbSpec) -> StudyDue:
    """What W&B should have of the study by now; the same as long as no trial ends and no run gets its address there."""
    columns, rows = _table(study, sweep, folder)
    return StudyDue(
        name=sweep.title,
        wandb=spec,
        config={"sweep": sweep.spec.model_dump(mode="json"), "experiment": sweep.base.model_dump(mode="json")},
        summary=_figures(study, sweep, folder),
        columns=columns,
        rows=rows,
    )


def _figures(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> dict[str, Any]:
    """The same names at any time, None where there is nothing yet: a W&B run that is continued keeps those it is not given."""
    summary = summarise(study, sweep, folder)
    confirming = open_confirmation(folder, sweep)
    hours = hours_spent([study] if confirming is None else [study, confirming], folder)
    counts = {
        "asked_for": summary.num_trials,
        "complete": summary.finished,  # the names of the first studies that were sent there: charts go on with them
        "running": summary.running,
        "pruned": summary.pruned,
        "failed": summary.failed,
        "waiting": summary.queued,
    }
    return {
        **{f"num_trials/{name}": count for name, count in counts.items()},
        **(_best(summary, sweep) if len(sweep.spec.objective) == 1 else _front(summary, sweep)),
        **_reached(summary.baseline, sweep, "experiment"),
        **_importances(study, sweep),
        **_confirmed(study, sweep, confirming),
        metrics.PROCESS_HOURS: hours,
    }


def _confirmed(search: optuna.Study, sweep: Sweep, confirming: optuna.Study | None) -> dict[str, Any]:
    """What fresh seeds say; nothing where the sweep asks for no confirmation."""
    if confirming is None:
        return {}
    confirmation = confirmation_of(search, confirming, sweep)
    winner = confirmation.winner
    compared = winner.compared if winner is not None else None
    return {
        "confirmation/conclusion": conclusion(confirmation, sweep),
        "confirmation/winner": winner.arm.number if winner is not None else None,
        "confirmation/difference": compared and compared.difference,
        "confirmation/low": compared and compared.low,
        "confirmation/high": compared and compared.high,
        "confirmation/num_runs": confirmation.num_ended,
        "confirmation/experiment": confirmation.baseline.mean,
    }


def _best(summary: Summary, sweep: Sweep) -> dict[str, Any]:
    best = summary.best[0] if summary.best else None
    values = values_of_trial(best) if best is not None else {}
    metrics = {"best/trial": best.number if best is not None else None, **_reached(best, sweep, "best")}
    return metrics | {f"best/{key}": values.get(key) for key in sweep.spec.varied}


def _reached(trial: FrozenTrial | None, sweep: Sweep, name: str) -> dict[str, Any]:
    """A trial's values; None where it has none."""
    values = trial.values if trial is not None and trial.values else [None] * len(sweep.spec.objective)
    return {f"{name}/{aim.metric}": value for aim, value in zip(sweep.spec.objective, values, strict=True)}


def _front(summary: Summary, sweep: Sweep) -> dict[str, Any]:
    """The Pareto front: its trials, and how far it reaches in each objective. Their parameters are in the table."""
    reaches = {f"front/{aim.metric}": _reach(summary.best, place, aim) for place, aim in enumerate(sweep.spec.objective)}
    return {"front/trials": [trial.number for trial in summary.best], **reaches}


def _reach(front: Iterable[FrozenTrial], place: int, aim: ObjectiveSpec) -> float | None:
    best = max if aim.direction == "maximize" else min
    return best((trial.values[place] for trial in front), default=None)


def _importances(study: optuna.Study, sweep: Sweep) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    enough = len(counted_complete(study)) >= FEWEST_FOR_IMPORTANCE
    for place, aim in enumerate(sweep.spec.objective):
        shares = (importances_of(study, place) if enough else None) or {}
        name = "importance" if len(sweep.spec.objective) == 1 else f"importance/{aim.metric}"
        metrics |= {f"{name}/{parameter.name}": shares.get(parameter.name) for parameter in space.parameters(sweep.spec)}
    return metrics


def _table(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """A row a trial, by number."""
    aims, keys = [aim.metric for aim in sweep.spec.objective], sweep.spec.varied
    best = {trial.number for trial in summarise(study, sweep, folder).best}
    rows: list[tuple[Any, ...]] = []
    for trial in study.get_trials(deepcopy=False):
        values = values_of_trial(trial)
        runs = trial.user_attrs.get("runs", [])
        front = [trial.number, state_word(trial, folder), trial.number in best]
        reached = trial.values or [None] * len(aims)
        back = [trial.user_attrs.get("reason"), " ".join(runs), " ".join(_urls(runs, folder))]
        rows.append((*front, *reached, *(values.get(key) for key in keys), *back))
    columns = ("trial", "state", "best", *aims, *keys, "reason", "runs", "wandb")
    return columns, tuple(rows)


def _urls(runs: Iterable[str], folder: StudyFolder) -> Iterator[str]:
    for run_id in runs:
        sent = read_sent(RunFolder(folder.runs_dir / run_id))
        if sent is not None and sent.url is not None:
            yield sent.url


# ------------------------------------------------------------------------------------------------------------ how it gets there


def publish(study: optuna.Study, sweep: Sweep, folder: StudyFolder, *, say: Say, stopping: Callable[[], bool]) -> None:
    """Bring the study's W&B run up to date, unless somebody still works on a trial. Whatever becomes of that, the sweep has
    ended as it has, at most `init_timeout_seconds` and `finish_timeout_seconds` later; what is the matter is said.

    Args:
        study: as a worker sees it that found nothing left to do.
        sweep: what it is made from.
        folder: of the study.
        say: receives how it went.
        stopping: whether it is to be left to `tclx sync` at once.
    """
    spec = sweep.wandb()
    if spec is None or wandb_mode(spec, os.environ) != "online":
        return
    try:
        if patiently(lambda: _is_at_work(study, sweep, folder)):
            return
        due = patiently(lambda: due_of(study, sweep, folder, spec))
        seconds = spec.init_timeout_seconds + spec.finish_timeout_seconds
        problem = send_study(folder.own, due, seconds=seconds, stopping=stopping).problem
    except TclxError as error:
        problem = str(error)
        note_problem(folder.own, problem)
    except Exception as error:  # a bug: the sweep's work is done, and whoever mends it wants to know
        traceback.print_exc()
        problem = repr(error)
        note_problem(folder.own, problem)
    say(_degraded(folder, problem) if problem else standing(sweep, folder) or "")


def _is_at_work(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> bool:
    studies = [study, open_confirmation(folder, sweep)]
    return any(one is not None and counted(one)[TrialState.RUNNING] for one in studies)


def standing(sweep: Sweep, folder: StudyFolder) -> str | None:
    """What is known of the study on W&B, in a line; None without W&B, and before there is anything to know."""
    mode, sent = wandb_mode(sweep.wandb(), os.environ), read_study_sent(folder.own)
    if mode == "disabled":
        return None
    if sent is not None and sent.problem is not None:
        return _degraded(folder, sent.problem)
    if sent is not None and sent.url is not None:
        return f"W&B: {sent.url}"
    return f"W&B: offline; `tclx sync {folder.path}` uploads the study and its trials" if mode == "offline" else None


def _degraded(folder: StudyFolder, problem: str) -> str:
    return f"W&B: {problem}; the study is not touched: `tclx sync {folder.path}` uploads it with its trials"


class Synced(NamedTuple):
    """What `tclx sync` did for a study."""

    exit_code: int
    num_trials: int
    outcome: str


def sync_study(folder: StudyFolder, *, seconds: float, say: Say) -> Synced:
    """Bring the study's W&B run up to date as it stands, also while it goes on.

    Args:
        folder: of the study, whose sweep has `tracking.wandb`.
        seconds: for all of it.
        say: receives what is done.
    """
    try:
        sweep = folder.read_sweep()
        if (spec := sweep.wandb()) is None:
            return Synced(0, 0, "has no tracking.wandb")
        due = due_of(open_study(folder, sweep), sweep, folder, spec)
        if not any(due.summary[f"num_trials/{state}"] for state in ("complete", "pruned", "failed")):
            return Synced(0, 0, "has nothing to upload yet")
        if is_up_to_date(folder.own, due):
            return Synced(0, len(due.rows), "was complete")
        with holding(folder.own / "wandb.lock") as free:
            if not free:
                return Synced(0, len(due.rows), "is being uploaded by its own worker")
        say(f"{sweep.title}: uploading the study's metrics and {len(due.rows)} trials")
        ended = send_study(folder.own, due, seconds=seconds)
    except TclxError as error:
        say(f"{folder.path.name}: {error}")
        return Synced(error.exit_code, 0, "could not be read")
    if ended.problem is not None:
        say(f"{folder.path.name}: W&B: {ended.problem}")
    return Synced(ended.exit_code, len(due.rows), "complete" if ended.problem is None else "lacks its newest metrics")
