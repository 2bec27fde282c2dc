"""How much training would each pruner have saved? The evaluations of a finished, unpruned study, told again to each of them.

Trials are told one after the other in the order in which they were tried, so every pruner sees the same curves; a sampler that
learns would have tried others after a pruned trial, which a replay cannot show.

    python benchmarks/pruning_replay.py RUNS/sweeps/NAME
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from tclx.spec.sweep import AshaPruner, HyperbandPruner, MedianPruner
from tclx.sweep.searched import Sweep
from tclx.sweep.study import StudyFolder, build_pruner, open_study
from tclx.sweep.summary import counted_complete

PRUNERS = {
    "none": None,
    "median": MedianPruner(name="median"),
    "asha": AshaPruner(name="asha"),
    "hyperband": HyperbandPruner(name="hyperband"),
}


def main(folder: Path) -> None:
    study_folder = StudyFolder(folder.resolve())
    sweep = study_folder.read_sweep()
    complete = counted_complete(open_study(study_folder, sweep))
    curves = [[value for _, value in sorted(trial.intermediate_values.items())] for trial in complete]
    direction = sweep.spec.objective[0].direction
    everything = sum(map(len, curves))
    print(f"{len(curves)} trials of {sweep.spec.name}, {everything} evaluations")
    print(f"{'pruner':<10} {'evaluations':>11} {'saved':>6} {'pruned':>6} {'best':>8}")
    for name, spec in PRUNERS.items():
        pruner = build_pruner(_with(sweep, spec))
        used, pruned, best = replay(curves, pruner, direction)
        print(f"{name:<10} {used:>11} {1 - used / everything:>6.0%} {pruned:>6} {best:>8.2f}")


def _with(sweep: Sweep, pruner: MedianPruner | AshaPruner | HyperbandPruner | None) -> Sweep:
    from dataclasses import replace

    return replace(sweep, spec=sweep.spec.model_copy(update={"pruner": pruner}))


def replay(curves: Sequence[Sequence[float]], pruner: BasePruner, direction: str) -> tuple[int, int, float]:
    """Evaluations that were used, trials that were pruned, and the best value among the others."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    better = max if direction == "maximize" else min
    study = optuna.create_study(direction=direction, pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    used, pruned, reached = 0, 0, []
    for curve in curves:
        trial = study.ask()
        for step, value in enumerate(curve, 1):
            used += 1
            trial.report(value, step)
            if step < len(curve) and trial.should_prune():  # at the last one nothing is left to save
                study.tell(trial, state=TrialState.PRUNED)
                pruned += 1
                break
        else:
            study.tell(trial, better(curve))
            reached.append(better(curve))
    return used, pruned, better(reached)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
