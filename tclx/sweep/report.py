"""What did a study find? One HTML page: what won, what mattered, what was tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

import tclx
from tclx.report.markup import Html, bold, code, details, facts, figure, grid, joined, table, text
from tclx.report.page import Page, duration
from tclx.spec.sweep import ObjectiveSpec
from tclx.sweep import figures
from tclx.sweep.importance import FEWEST_FOR_IMPORTANCE, importance_intervals, importances_of
from tclx.sweep.metrics import as_text
from tclx.sweep.parts import Part
from tclx.sweep.ranking import counted_complete, is_feasible, ranked
from tclx.sweep.searched import Sweep
from tclx.sweep.sequential import FEWEST
from tclx.sweep.storage import quieten
from tclx.sweep.study import StudyFolder, counted
from tclx.sweep.summary import (
    seconds_of,
    short_key,
    state_word,
    summarise,
    values_of_trial,
)
from tclx.sweep.verdict import conclusion, power, rows

BEST_SHOWN = 10
ENOUGH_FOR_IMPORTANCE = 20
"""Complete trials; with fewer the page warns of what it shows."""
MOST_CONTOURS = 3


class Aim(NamedTuple):
    """One objective: how its trials' values are read."""

    position: int
    spec: ObjectiveSpec

    def of(self, trial: FrozenTrial) -> float:
        return float(trial.values[self.position])


def build(part: Part) -> Page:
    """The page."""
    quieten()
    folder, sweep, study, _ = part
    aims = aims_of(sweep)
    page = Page(f"Sweep {sweep.title}", lead=joined([made(folder), facts(_cards(study, sweep, folder, aims))]))
    page.section("Confirmation", *confirmation_blocks(part))
    page.section("Best trials", *best_blocks(study, sweep, folder))
    page.section("What mattered", *importance_blocks(study, aims))
    page.section("Pareto front", *_front(study, sweep))
    page.section("History", *_history(study, aims))
    page.section("Each parameter", *_slices(study, aims))
    page.section("Pairs of parameters", *_contours(study, aims))
    page.section("All parameters", *_parallel(study, sweep, aims))
    page.section("Evaluations and pruning", *_curves(study, sweep))
    page.section("Trials over time", *_timeline(study))
    page.section("Failed trials", *_failed(study))
    page.section("All trials", *_all(study, sweep, folder))
    return page.section("Reproduce", *_reproduce(sweep))


def made(folder: StudyFolder) -> Html:
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    return text(f"Made on {when} by tclx {tclx.__version__} from the study in {folder.path}.", kind="small")


def aims_of(sweep: Sweep) -> list[Aim]:
    return [Aim(index, spec) for index, spec in enumerate(sweep.spec.objective)]


def _cards(study: optuna.Study, sweep: Sweep, folder: StudyFolder, aims: Sequence[Aim]) -> list[tuple[str, str]]:
    summary = summarise(study, sweep, folder)
    cards = [("trials", f"{summary.ended} of {summary.num_trials}")]
    cards += [(name, str(count)) for name, count in (("pruned", summary.pruned), ("failed", summary.failed)) if count]
    if len(summary.best) == 1:
        cards.append((f"best {aims[0].spec.metric}", f"{aims[0].of(summary.best[0]):.4g}"))
    elif summary.best:
        cards.append(("on the Pareto front", str(len(summary.best))))
    if summary.baseline is not None and summary.baseline.values and len(aims) == 1:
        cards.append(("the experiment itself", f"{aims[0].of(summary.baseline):.4g}"))
    seconds = [spent for trial in study.get_trials(deepcopy=False) if (spent := seconds_of(trial)) is not None]
    return [*cards, ("time in trials", duration(sum(seconds)))]


def confirmation_blocks(part: Part) -> Iterator[Html]:
    confirmation = part.confirmation()
    if confirmation is None:
        return
    words = conclusion(confirmation, part.sweep)
    yield text(words[0].upper() + words[1:] + ".", kind="" if confirmation.is_over else "note")
    if not confirmation.has_begun:
        return
    yield table(*_head_and_rows(rows(confirmation, part.sweep)))
    if any(one.compared.num_seeds >= FEWEST for one in confirmation.candidates):
        metric = part.sweep.spec.objective[0].metric
        plot = figures.differences(confirmation, name=metric)
        title = f"{metric} minus that of trial 0, seed by seed"
        yield figure(plot, title=title, caption=_CONFIRMATION, height=110 + 44 * len(confirmation.candidates))
    by_seed = [["seed", *(str(arm.number) for arm in confirmation.arms)]]
    by_seed += [
        [str(seed), *(f"{arm.values[seed]:.4g}" if seed in arm.values else "-" for arm in confirmation.arms)]
        for seed in confirmation.seeds
        if any(seed in arm.values for arm in confirmation.arms)
    ]
    yield details("Every training", table(*_head_and_rows(by_seed)))
    yield text(
        "Seeds that the search has not seen are added one at a time while they can still decide. For the verdict it is not "
        "enough that the interval leaves out 0: if nothing is better than trial 0, something is named in 5 of 100 sweeps at "
        f"most, however many are confirmed. A difference of {power(part.sweep)} is found in 80 of 100.",
        kind="small",
    )


_CONFIRMATION = "A dot a seed; the bar is the mean with its 95 % interval."


def _head_and_rows(lines: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return lines[0], lines[1:]


def best_blocks(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> Iterator[Html]:
    trials = ranked(study, sweep)
    if not trials:
        yield text("No trial is complete yet.", kind="note")
        return
    shown = trials[:BEST_SHOWN]
    baseline = next((trial for trial in trials if trial.number == 0), None)
    if baseline is not None and baseline not in shown:
        shown = [*shown, baseline]
    yield _trial_table(shown, sweep, folder)
    luck = "The best of many is partly luck" + (
        ": `confirm: {}` in the sweep file trains it and trial 0 again with other seeds." if sweep.spec.confirm is None else "."
    )
    yield text(f"Trial 0 is the experiment itself. {luck}", kind="small")


def _trial_table(trials: Sequence[FrozenTrial], sweep: Sweep, folder: StudyFolder) -> Html:
    keys = list(dict.fromkeys(key for trial in trials for key in values_of_trial(trial)))
    short = [short_key(key, sweep) for key in keys]
    head = ["trial", *(objective.metric for objective in sweep.spec.objective), *short, "runs"]
    rows = []
    for trial in trials:
        values = values_of_trial(trial)
        reached = (
            [f"{value:.4g}" for value in trial.values]
            if trial.values
            else [state_word(trial, folder)] * len(sweep.spec.objective)
        )
        broken = "" if is_feasible(trial) else " (breaks a constraint)"
        name = f"{trial.number}{' (the experiment)' if trial.number == 0 else ''}{broken}"
        changed = [as_text(values[key]) if key in values else "-" for key in keys]
        rows.append([name, *reached, *changed, " ".join(trial.user_attrs.get("runs", []))])
    return table(head, rows)


def importance_blocks(study: optuna.Study, aims: Sequence[Aim]) -> Iterator[Html]:
    complete = counted_complete(study)
    if len(complete) < FEWEST_FOR_IMPORTANCE:
        yield text(f"Importance needs {FEWEST_FOR_IMPORTANCE} complete trials; there are {len(complete)}.", kind="note")
        return
    for aim in aims:
        importances = importances_of(study, aim.position)
        if importances is None:
            yield text(f"Every trial has the same {aim.spec.metric}: nothing mattered.", kind="note")
            continue
        if len(complete) < ENOUGH_FOR_IMPORTANCE:
            yield text(
                f"From {len(complete)} trials these shares are rough: another few trials may turn them round.", kind="note"
            )
        title = f"Share of the variance of {aim.spec.metric}"
        plot = figures.importances(importances, importance_intervals(study, aim.position))
        yield figure(plot, title=title, caption=_IMPORTANCE, height=60 + 34 * len(importances))


_IMPORTANCE = (
    "fANOVA (Hutter et al. 2014), over the whole of the space. The line through a bar is where 95 % of its shares lie when "
    "trials are drawn again from these: where two lines overlap, the order may be chance. A parameter that only some trials "
    "have, since a section may be off, is left out."
)


def _front(study: optuna.Study, sweep: Sweep) -> Iterator[Html]:
    if not 2 <= len(sweep.spec.objective) <= 3 or not counted_complete(study):
        return
    names = [objective.metric for objective in sweep.spec.objective]
    yield figure(figures.front(study, names), title="What each objective costs the other", height=420)


def _history(study: optuna.Study, aims: Sequence[Aim]) -> Iterator[Html]:
    complete = counted_complete(study)
    for aim in aims if complete else ():
        plot = figures.history(complete, aim.of, sign=aim.spec.sign, name=aim.spec.metric)
        yield figure(plot, title=f"{aim.spec.metric}, trial by trial", caption=_HISTORY, height=340)


_HISTORY = (
    "The star is trial 0, the experiment itself, and the dotted line is its value: what does not lie beyond it won nothing."
)


def _target(aims: Sequence[Aim], aim: Aim) -> Callable[[FrozenTrial], float] | None:
    """Optuna wants none where there is a single objective: with one it forgets which direction is better."""
    return aim.of if len(aims) > 1 else None


def _slices(study: optuna.Study, aims: Sequence[Aim]) -> Iterator[Html]:
    complete, varied = counted_complete(study), _varied(study)
    if varied:
        yield text(_SLICES, kind="small")
    for aim in aims if varied else ():
        plots = {name: figures.parameter(complete, aim.of, name, name=aim.spec.metric) for name in varied}
        yield grid(figure(plot, title=f"{aim.spec.metric} by {name}", height=280) for name, plot in plots.items())


_SLICES = (
    "A dot a trial, the star trial 0. What lies beside a dot differs in the other parameters, too: trends count, not points."
)


def _varied(study: optuna.Study) -> list[str]:
    """Parameters of which complete trials have more than one value."""
    seen: dict[str, set[str]] = {}
    for trial in counted_complete(study):
        for name, value in trial.params.items():
            seen.setdefault(name, set()).add(repr(value))
    return [name for name, values in seen.items() if len(values) > 1]


def _contours(study: optuna.Study, aims: Sequence[Aim]) -> Iterator[Html]:
    if len(counted_complete(study)) < FEWEST_FOR_IMPORTANCE:
        return
    for aim in aims:
        first = [name for name in importances_of(study, aim.position) or {} if name in _varied(study)][:MOST_CONTOURS]
        for one, other in combinations(first, 2):
            plot = figures.pair(study, (one, other), _target(aims, aim), name=aim.spec.metric)
            yield figure(plot, title=f"{aim.spec.metric} by {one} and {other}", caption=_BETWEEN, height=400)


_BETWEEN = "Only the dots were tried, the star is trial 0; between them the colours are interpolated."


def _parallel(study: optuna.Study, sweep: Sweep, aims: Sequence[Aim]) -> Iterator[Html]:
    complete, keys = counted_complete(study), {key: short_key(key, sweep) for key in _varied(study)}
    for aim in aims if len(complete) > 1 and keys else ():
        plot = figures.all_parameters(complete, aim.of, keys, sign=aim.spec.sign, name=aim.spec.metric)
        caption = "From violet, the worst, to yellow, the best; a line ends where a trial has a section off."
        yield figure(plot, title=f"Every trial a line, by {aim.spec.metric}", caption=caption, height=420)


def _curves(study: optuna.Study, sweep: Sweep) -> Iterator[Html]:
    trials = study.get_trials(deepcopy=False)
    if not any(trial.intermediate_values for trial in trials):
        return
    metric, best = sweep.spec.objective[0].metric, next((trial.number for trial in ranked(study, sweep)), None)
    yield figure(figures.evaluations(trials, best, name=metric), title=f"{metric} at every evaluation", height=380)
    pruned = counted(study)[TrialState.PRUNED]
    if pruned:
        rows = [[str(trial.number), trial.user_attrs.get("reason", "")] for trial in pruned]
        yield details(f"{len(pruned)} pruned trials", table(["trial", "why"], rows, numbers=False))


def _timeline(study: optuna.Study) -> Iterator[Html]:
    if any(trial.datetime_start for trial in study.get_trials(deepcopy=False)):
        yield figure(figures.timeline(study), title="When each trial ran", height=360)


def _failed(study: optuna.Study) -> Iterator[Html]:
    failed = counted(study)[TrialState.FAIL]
    if failed:
        rows = [[str(trial.number), trial.user_attrs.get("reason", "no reason is known")] for trial in failed]
        yield table(["trial", "why"], rows, numbers=False)


def _all(study: optuna.Study, sweep: Sweep, folder: StudyFolder) -> Iterator[Html]:
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if trials:
        yield details(f"{len(trials)} trials, in the order in which they began", _trial_table(trials, sweep, folder))


def _reproduce(sweep: Sweep) -> Iterator[Html]:
    name = sweep.spec.name
    yield text("The winning experiment as a spec, and a run of it:")
    yield code(f"tclx sweep best {name} -o best.yaml\ntclx run best.yaml")
    yield joined([bold("What was varied"), text(f"{sweep.base.name}, with the space that the table's columns name.")])
