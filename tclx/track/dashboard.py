"""What does a W&B project look like when it is opened? A workspace as code: sections for the questions that TCL raises.

Uses wandb-workspaces, which is imported where it is needed only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tclx.errors import MachineError
from tclx.spec.experiment import ExperimentSpec

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP = "trainer/step"
_PARTS = {"cma": ("image_to_text", "text_to_image"), "imc": ("image", "text"), "lmi": ("image", "text")}


def build_workspace(spec: ExperimentSpec, *, entity: str, parameters: Sequence[str] = ()) -> Workspace:
    """The workspace of an experiment's runs, nothing saved yet.

    Args:
        spec: of one of them; terms that are off have no panels.
        entity: who owns the project.
        parameters: dotted paths of a sweep, for its parallel coordinates and importances.
    """
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, Workspace, WorkspaceSettings

    wandb = spec.tracking.wandb
    if wandb is None:
        raise ValueError("the experiment has no tracking.wandb")
    group = wandb.group or spec.name
    return Workspace(
        name=f"tclx {group}",
        entity=entity,
        project=wandb.project,
        sections=sections(spec, parameters),
        settings=WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=RunsetSettings(filters=expr.And(expr.Metric("Group") == group)),
    )


def sections(spec: ExperimentSpec, parameters: Sequence[str] = ()) -> list[Section]:
    """Losses side by side, information bounds, health, retrieval, speed; for a sweep its parameters first."""
    from wandb_workspaces.workspaces import Section

    on = [term for term in _PARTS if getattr(spec.objectives, term) is not None]
    others = [term for term in ("itm", "mlm") if getattr(spec.objectives, term) is not None]
    split = spec.evaluation.during_training
    panels: dict[str, list[Any]] = {
        "Sweep": _sweep(spec, parameters),
        "Contrastive terms": [_line(f"{term.upper()}", [f"loss/{term}_{part}" for part in _PARTS[term]]) for term in on],
        "All terms": [_line("total", ["loss/total"]), *(_line(term.upper(), [f"loss/{term}"]) for term in (*on, *others))],
        "Mutual information bounds (nats)": [
            _line(term.upper(), [f"mi_bound/{term}_{part}" for part in _PARTS[term]]) for term in on if term != "lmi"
        ],
        "Representation health": [
            _line("alignment", ["health/alignment"]),
            _line("uniformity", ["health/uniformity_image", "health/uniformity_text"]),
            _line("modality gap", ["health/modality_gap"]),
            _line("temperature", ["temperature/shared"]),
        ],
        "Retrieval": _retrieval(split) if split is not None else [],
        "Optimisation": [
            _line("learning rate", ["learning_rate"]),
            _line("gradient norm", ["gradient_norm"]),
            _line("soft-label weight", ["soft_labels/weight"]),
        ],
        "Systems": [
            _line("images a second", ["speed/images_per_second"]),
            _line("share of time waiting for data", ["speed/share_waiting_for_data"]),
            _line("bad pictures", ["data/bad_images"]),
        ],
    }
    return [Section(name=name, panels=inside, is_open=True) for name, inside in panels.items() if inside]


def _line(title: str, metrics: list[str]) -> Any:
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(title=title, x=STEP, y=metrics)


def _retrieval(split: str) -> list[Any]:
    from wandb_workspaces.reports.v2 import BarPlot

    name = f"retrieval/{split}"
    ways = ("text_to_image", "image_to_text")
    curves = [_line(f"{way.replace('_', ' ')}, recall", [f"{name}/{way}/r{k}" for k in (1, 5, 10)]) for way in ways]
    return [
        *curves,
        _line("mean recall", [f"{name}/r_mean"]),
        BarPlot(title="best mean recall", metrics=[f"best/{name}/r_mean"]),
    ]


def _sweep(spec: ExperimentSpec, parameters: Sequence[str]) -> list[Any]:
    from wandb_workspaces.reports.v2 import (
        Config,
        ParallelCoordinatesPlot,
        ParallelCoordinatesPlotColumn,
        ParameterImportancePlot,
        SummaryMetric,
    )

    if not parameters:
        return []
    goal = f"best/retrieval/{spec.evaluation.during_training}/{spec.evaluation.best_metric}"
    columns = [*(Config(name) for name in parameters), SummaryMetric(goal)]
    return [
        ParallelCoordinatesPlot(columns=[ParallelCoordinatesPlotColumn(column) for column in columns]),
        ParameterImportancePlot(with_respect_to=goal),
    ]


def serialised(workspace: Workspace) -> str:
    """The workspace as it is sent to W&B, in JSON; no server is asked."""
    text: str = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text


def save(workspace: Workspace) -> str:
    """Make the workspace, or replace what an earlier call has made for the same project and name; returns its address.

    Raises:
        MachineError: W&B cannot be used from here.
    """
    name = hashlib.sha256(f"{workspace.entity}/{workspace.project}/{workspace.name}".encode()).hexdigest()[:11]
    try:
        return _save(workspace, name)
    except Exception as error:  # the client raises anything, from its own errors to those of its transport
        raise MachineError(f"W&B did not take the workspace: {' '.join(str(error).split())[:300]}") from error


def _save(workspace: Workspace, name: str) -> str:
    from wandb_workspaces.workspaces import internal

    workspace._internal_name = internal._url_query_str_to_internal_name(name)
    view = _existing(workspace, name)
    if view is not None:
        workspace._internal_id = view
    workspace.save()
    url: str = workspace.url
    return url


def _existing(workspace: Workspace, name: str) -> str | None:
    """The id of the view with this name, where there is one."""
    from wandb_workspaces.workspaces import internal

    try:
        found: str = internal.get_view_dict(workspace.entity, workspace.project, name)["id"]
    except ValueError:
        return None  # neither it nor, before the first run, its project
    return found
