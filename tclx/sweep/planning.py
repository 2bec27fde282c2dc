"""What would a sweep do? For `tclx sweep plan`, before anything is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tclx.launch.order import PlannedRun
from tclx.spec.sweep import ParameterSpec, PriorSpec
from tclx.sweep import space
from tclx.sweep.metrics import as_text
from tclx.sweep.searched import Sweep
from tclx.sweep.sequential import FEWEST
from tclx.sweep.study import num_evaluations
from tclx.sweep.verdict import power


def trial_0(sweep: Sweep) -> Sequence[PlannedRun]:
    """The runs of the experiment as it is, one a seed."""
    return sweep.planned(space.parameters_at(sweep.base_tree, sweep.spec))


def plan_of(sweep: Sweep) -> dict[str, Any]:
    """The sweep's derived numbers, for people and machines."""
    spec = sweep.spec
    at_base = space.parameters_at(sweep.base_tree, spec)
    (first, *_) = trial_0(sweep)
    runs = spec.num_trials * len(sweep.seeds())
    return {
        "name": spec.name,
        "experiment": sweep.base.name + (f" ({sweep.base.variant})" if sweep.base.variant else ""),
        "objective": ", ".join(f"{one.direction} {one.metric}" for one in spec.objective),
        "constraints": ", ".join(f"{one.metric} {_side(one.at_most, one.at_least)}" for one in spec.constraints) or "none",
        "sampler": spec.sampler.name,
        "pruner": spec.pruner.name if spec.pruner else "none",
        "trials": spec.num_trials,
        "ends before": _ends(sweep),
        "seeds": ", ".join(map(str, sweep.seeds())),
        "workers": f"{spec.num_workers} ({sweep.base.launch.backend})",
        "storage": spec.storage or "journal file",
        "steps of a run": first.plan.total_steps,
        "evaluations of a run": num_evaluations(sweep),
        "runs": runs,
        "steps at most": runs * first.plan.total_steps,
        "run id of trial 0": first.plan.run_id,
        **_confirmation_of(sweep, at_base),
        "space": [_row(key, parameter, at_base) for key, parameter in spec.space.items()]
        + [
            {"key": key, "range": f"a share of {simplex.total:g}", "baseline": as_text(space.lookup(sweep.base_tree, key))}
            for simplex in spec.simplex
            for key in simplex.keys
        ],
    }


def _confirmation_of(sweep: Sweep, at_base: dict[str, Any]) -> dict[str, str]:
    confirm = sweep.spec.confirm
    if confirm is None:
        return {"confirmation": "none"}
    seeds = sweep.fresh_seeds()
    arms = confirm.top + 1
    steps = sweep.confirmed(at_base, seeds[0]).plan.total_steps
    shown = ", ".join(map(str, seeds[:5])) + (", ..." if len(seeds) > 5 else "")
    return {
        "confirmation": f"the {confirm.top} best and trial 0 with seeds {shown}, {steps} steps each",
        "its runs": f"{FEWEST * arms} to {len(seeds) * arms}",
        "finds in 80 of 100": f"a difference of {power(sweep)}",
    }


def _ends(sweep: Sweep) -> str:
    stop, hours = sweep.spec.stop, sweep.spec.max_gpu_hours
    found = [f"after {hours:g} GPU-hours"] if hours is not None else []
    return ", ".join([*found, *([stop.name] if stop is not None else [])]) or "no"


def _side(at_most: float | None, at_least: float | None) -> str:
    return f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"


def _row(key: str, parameter: ParameterSpec, at_base: dict[str, Any]) -> dict[str, str]:
    kind = parameter.kinds[0]
    limits = parameter.limits
    shown = f"{kind} [{limits[0]:g}, {limits[1]:g}]" if limits else ", ".join(map(as_text, parameter.choices or ("on", "off")))
    if parameter.prior is not None:
        shown += f", first trials {_prior(parameter.prior)}"
    return {"key": key, "range": shown, "baseline": as_text(at_base[key]) if key in at_base else "-"}


def _prior(prior: PriorSpec) -> str:
    where = f"[{prior.between[0]:g}, {prior.between[1]:g}]" if prior.between is not None else f"near {as_text(prior.value)}"
    return f"{where} ({prior.confidence:.0%})"
