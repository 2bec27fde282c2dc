"""Does an experiment work at all? Two steps of every variant by the real worker, and an evaluation of a few rows.

What is changed for it, and what was limited, is said; nothing of it is kept.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tclx.data.facts import examine
from tclx.errors import TclxError
from tclx.launch.ending import last_lines
from tclx.launch.local.queue import launch
from tclx.launch.order import PlannedRun, plan_runs
from tclx.launch.prepare import Outcome, Say
from tclx.plan import make_plan, starting_from
from tclx.spec.experiment import ExperimentSpec, InitSpec

STEPS = 2
NUM_IMAGES = 16
"""Of each split that is evaluated."""


class Tried(NamedTuple):
    """How one variant did."""

    label: str
    ending: str
    """`works`, `fails`, `skipped` or `interrupted`."""
    seconds: float
    reason: str | None = None
    exit_code: int = 0


@dataclass
class _Small:
    """Makes runs small, and remembers what it limited."""

    limits: dict[str, None]

    def spec(self, spec: ExperimentSpec) -> ExperimentSpec:
        tree: dict[str, Any] = spec.model_dump(mode="json")
        if tree["training"]["steps"] != 0:
            tree["training"] |= {"steps": STEPS, "epochs": None}
            if spec.compat != "official":  # which cuts the warm-up itself
                tree["optim"]["schedule"]["warmup_steps"] = min(spec.optim.schedule.warmup_steps, STEPS - 1)
            if spec.evaluation.during_training is not None:
                tree["evaluation"] |= {"every_steps": STEPS, "every_epochs": None}
        tree["training"]["checkpoints"]["every_steps"] = STEPS
        tree["tracking"] |= {"log_every_steps": 1, "tensorboard": False, "wandb": None}
        for key in ("term_gradient_norms_every_steps", "term_gradients_every_steps"):
            if tree["tracking"][key] is not None:
                tree["tracking"][key] = 1
        if spec.launch.backend != "local":
            tree["launch"] = {"backend": "local"}
            self.limits[f"one process here, none by {spec.launch.backend}"] = None
        if spec.data.bad_images.policy == "refuse" and any(source.source != "scenes" for source in _sources(spec)):
            tree["data"]["bad_images"]["policy"] = "skip"
            self.limits["not every image is opened first: tclx data check does that"] = None
        if spec.init is not None and spec.init.resume:
            tree["init"]["resume"] = False
            self.limits["init.resume: from the other run's weights, at step 0"] = None
        for split in ("val", "test"):
            if tree["data"][split] is not None:
                tree["data"][split] = self._first_rows(tree["data"][split], split)
        for name, task in spec.evaluation.tasks.items():
            if task.forms is None or any(True for _ in task.paths()):
                self.limits[f"evaluation.{name} has data of its own, which are evaluated in full"] = None
        return ExperimentSpec.model_validate_json(json.dumps(tree))

    def _first_rows(self, source: dict[str, Any], split: str) -> dict[str, Any]:
        key = {"scenes": "num_images", "files": "limit", "folder": "limit"}.get(source["source"])
        if key is None:
            self.limits[f"data.{split} is evaluated in full"] = None
            return source
        if source[key] is None or source[key] > NUM_IMAGES:
            self.limits[f"data.{split}: the first {NUM_IMAGES} images"] = None
            return {**source, key: NUM_IMAGES}
        return source


def _sources(spec: ExperimentSpec) -> list[Any]:
    return [source for source in (spec.data.train, spec.data.val, spec.data.test) if source is not None]


def try_out(paths: Sequence[Path], overrides: Sequence[str], *, say: Say) -> list[Tried]:
    """Two steps of every variant of the experiments, and of what they start from, with one seed, in a folder that is removed.

    Args:
        paths: experiment files.
        overrides: `key=value` for them.
        say: receives what is limited.

    Raises:
        InputError, MachineError: as `plan_runs` and the start of runs; what one variant meets alone is its own ending.
    """
    with tempfile.TemporaryDirectory(prefix="tclx-smoke-") as name:
        folder = Path(name)
        small = _Small({})
        runs = _made_small(_one_of_each(plan_runs(paths, overrides, runs_dir=folder)), small, folder)
        say(f"{STEPS} steps of each of {len(runs)}; nothing is kept or uploaded" if len(runs) > 1 else f"{STEPS} steps")
        for line in small.limits:
            say(f"  limited: {line}")
        tried: dict[str, Tried] = {}
        for run in runs:
            before = tried.get(run.needs or "")
            if before is not None and before.ending != "works":
                one = Tried(_label(run), "skipped", 0.0, f"it starts from {before.label}", before.exit_code)
            else:
                one = _tried(run, folder)
            tried[run.plan.run_id] = one
            if one.ending == "interrupted":
                break
        return list(tried.values())


def _one_of_each(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The first seed of every variant that is asked for, after what it starts from."""
    by_id = {run.plan.run_id: run for run in runs}
    first: dict[tuple[str, str | None], PlannedRun] = {}
    for run in runs:
        if run.asked_for:
            first.setdefault((run.plan.name, run.plan.variant), run)
    wanted = set[str]()
    for one in first.values():
        needed: PlannedRun | None = one
        while needed is not None:
            wanted.add(needed.plan.run_id)
            needed = by_id.get(needed.needs) if needed.needs else None
    return [run for run in runs if run.plan.run_id in wanted]


def _made_small(runs: Sequence[PlannedRun], small: _Small, runs_dir: Path) -> list[PlannedRun]:
    ids: dict[str, str] = {}
    made = []
    for run in runs:
        spec, needs = small.spec(run.spec), ids.get(run.needs or "")
        if needs:
            spec = spec.model_copy(update={"init": InitSpec(checkpoint=str((runs_dir / needs).resolve()))})
        facts = examine(spec.data, without_data=False).facts
        # The weights that it starts from are not there yet, and planning looks for files.
        plan = make_plan(spec.model_copy(update={"init": None}) if needs else spec, facts)
        ids[run.plan.run_id] = (starting_from(plan, spec, needs) if needs else plan).run_id
        plan = starting_from(plan, spec, needs) if needs else plan
        made.append(PlannedRun(spec, plan, needs, asked_for=True))
    return made


def _label(run: PlannedRun) -> str:
    return f"{run.plan.name}-{run.plan.variant}" if run.plan.variant else run.plan.name


def _tried(run: PlannedRun, runs_dir: Path) -> Tried:
    began = time.monotonic()
    try:
        outcomes = launch([run._replace(needs=None)], runs_dir=runs_dir, into_logs=True)
    except TclxError as error:
        return Tried(_label(run), "fails", time.monotonic() - began, str(error), error.exit_code)
    seconds = time.monotonic() - began
    if not outcomes or outcomes[0].ending == "interrupted":
        return Tried(_label(run), "interrupted", seconds, None, 130)
    (outcome,) = outcomes
    if outcome.ending == "finished":
        return Tried(_label(run), "works", seconds)
    return Tried(_label(run), "fails", seconds, _reason(outcome), outcome.exit_code)


def _reason(outcome: Outcome) -> str:
    """With the end of its log, which is gone with the folder."""
    if "traceback in" not in (outcome.reason or ""):
        return outcome.reason or "it ended without a word"
    said = (outcome.reason or "").partition(" (traceback in")[0]
    return "\n".join([said, *(f"    {line}" for line in last_lines(outcome.folder.log(0)))])
