"""What does a W&B project look like when it is opened? A workspace as code: sections for the questions that TCL raises.

Uses wandb-workspaces, which is imported where it is needed only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.errors import MachineError
from tclx.metrics import CPU_USE, MEMORY_USE, MFU
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.objectives import TERMS
from tclx.tasks.pretrain.terms.term import ContrastiveTerm
from tclx.tasks.retrieval import CUTOFFS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP = "trainer/step"
TRIALS = "trials"
"""The table of the study's own run."""
_PAIRS = ("matched", "unmatched")
_TIME = "RelativeTime(Process)"
"""The axis of what W&B's own monitor records: it knows no training step."""
MAX_GPUS = 8
"""Lines of one panel; a node rarely has more."""


class Study(NamedTuple):
    """What a sweep adds to its experiment."""

    parameters: tuple[str, ...]
    """Keys of the experiment that trials give a value."""
    switches: tuple[str, ...] = ()
    """Keys of sections that trials switch on and off."""
    goals: tuple[str, ...] = ()
    """The metrics that it aims at."""


def build_workspace(specs: Sequence[ExperimentSpec], *, entity: str, study: Study | None = None) -> Workspace:
    """The workspace of the runs of a group, nothing saved yet.

    Args:
        specs: of its runs, one or more; a term that is off in all of them has no panels. The first one's project and group.
        entity: who owns the project.
        study: for a sweep's trials: its parallel coordinates and importances.
    """
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, Workspace, WorkspaceSettings

    wandb = specs[0].tracking.wandb
    if wandb is None:
        raise ValueError("the experiment has no tracking.wandb")
    group = wandb.group or specs[0].name
    return Workspace(
        name=f"tclx {group}",
        entity=entity,
        project=wandb.project,
        sections=sections(specs, study),
        settings=WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=RunsetSettings(filters=expr.And(expr.Metric("Group") == group)),
    )


def sections(specs: Sequence[ExperimentSpec], study: Study | None = None) -> list[Section]:
    """Losses side by side, information bounds, health, retrieval, speed; for a sweep its parameters first."""
    from wandb_workspaces.workspaces import Section

    terms = {name: term for name, term in TERMS.items() if any(_is_on(name, spec, study) for spec in specs)}
    with_parts = {name: term.parts for name, term in terms.items() if term.parts}
    bounded = {name: term.parts for name, term in terms.items() if term.has_bound}
    contrastive = [name for name, term in terms.items() if issubclass(term, ContrastiveTerm)]
    during = {spec.evaluation.during_training: None for spec in specs if spec.evaluation.during_training is not None}
    shown = during | {spec.evaluation.at_end: None for spec in specs if spec.evaluation.at_end is not None}
    panels: dict[str, list[Any]] = {
        "Sweep": _sweep(specs[0], study) if study is not None else [],
        "Contrastive terms": [
            _line(name.upper(), [f"loss/{name}_{part}" for part in parts]) for name, parts in with_parts.items()
        ],
        "All terms": [_line("total", ["loss/total"]), *(_line(term.upper(), [f"loss/{term}"]) for term in terms)],
        "Decisions on training batches (%)": [
            _line(f"accuracy of {name.upper()}", list(term.accuracies(name).values()))
            for name, term in terms.items()
            if term.judges
        ],
        "Mutual information bounds (nats)": [
            _line(name.upper(), [f"mi_bound/{name}_{part}" for part in parts]) for name, parts in bounded.items()
        ],
        "Representation health": [
            _line("alignment", ["health/alignment"]),
            _line("uniformity", ["health/uniformity_image", "health/uniformity_text"]),
            _line("modality gap", ["health/modality_gap"]),
            _line("temperature", _temperatures(specs, contrastive)),
            *(
                [_line("queue filled", ["health/queue_fill"]), _line("queue's age gap", ["health/queue_age_gap"])]
                if any(spec.model.queue_size for spec in specs)
                else []
            ),
            *(_media(f"similarity, {split}", [f"similarity/{split}/{kind}" for kind in _PAIRS]) for split in shown),
        ],
        "Retrieval": [panel for split in during for panel in _retrieval(split)],
        "Other tasks": [panel for split in during for panel in _other_tasks(specs, split)],
        "Best": [_bar(f"best {specs[0].evaluation.best_metric}", specs[0].evaluation.best_row_metric)] if during else [],
        "Retrieval examples": [
            _table(f"examples/{split}/{way}") for split in shown for way in ("text_to_image", "image_to_text")
        ],
        "Other examples": [
            _table(f"examples/{split}/{task}")
            for task in dict.fromkeys(name for spec in specs for name in spec.evaluation.tasks if name != "retrieval")
            for split in shown
        ],
        "Attention": [_media(f"attention, {split}", [f"attention/{split}"]) for split in shown],
        "Optimisation": [
            _line("learning rate", ["learning_rate"]),
            _line("gradient norm", ["gradient_norm"]),
            *_gradient_norms(specs, list(terms)),
            *_gradients_compared(specs, list(terms)),
            *_multipliers(specs, list(terms)),
            _line("soft-label weight", ["soft_labels/weight"]),
        ],
        "Systems": [
            _line("images a second", ["speed/images_per_second"]),
            *([_line("model FLOPs utilisation (%)", [MFU])] if any(map(_num_gpus, specs)) else []),
            _line("share of time waiting for data", ["speed/share_waiting_for_data"]),
            _line("peak memory (GiB)", ["memory/peak_gib"]),
            _line("CPUs and memory in use (%)", [CPU_USE, MEMORY_USE]),
            _line("bad images", ["data/bad_images"]),
            *_monitored(max(_num_gpus(spec) for spec in specs)),
        ],
    }
    return [Section(name=name, panels=inside, is_open=True) for name, inside in panels.items() if inside]


def _is_on(term: str, spec: ExperimentSpec, study: Study | None) -> bool:
    return getattr(spec.objectives, term) is not None or (study is not None and f"objectives.{term}" in study.switches)


def _temperatures(specs: Sequence[ExperimentSpec], terms: Sequence[str]) -> list[str]:
    """The shared one, and those of terms that have their own."""
    own = [term for term in terms if any(_own_temperature(term, spec) for spec in specs)]
    return [f"temperature/{name}" for name in ("shared", *own)]


def _own_temperature(term: str, spec: ExperimentSpec) -> bool:
    section = getattr(spec.objectives, term)
    return section is not None and section.temperature is not None


def _gradient_norms(specs: Sequence[ExperimentSpec], terms: Sequence[str]) -> list[Any]:
    if all(spec.tracking.term_gradient_norms_every_steps is None for spec in specs):
        return []
    return [_line("gradient norm of each term", [f"gradient_norm/{term}" for term in terms])]


def _multipliers(specs: Sequence[ExperimentSpec], terms: Sequence[str]) -> list[Any]:
    if all(spec.objectives.balance is None for spec in specs):
        return []
    return [_line("multipliers of the terms", [f"balance/{term}" for term in terms])]


def _gradients_compared(specs: Sequence[ExperimentSpec], terms: Sequence[str]) -> list[Any]:
    if len(terms) < 2 or all(spec.tracking.term_gradients_every_steps is None for spec in specs):
        return []
    pairs = [f"gradient_cosine/{first}_{second}" for first, second in combinations(terms, 2)]
    return [
        _line("share of the update", [f"gradient_share/{term}" for term in terms]),
        _line("gradient norm to that of all terms", [f"gradient_ratio/{term}" for term in terms]),
        _line("cosine of two terms' gradients", pairs),
    ]


def _num_gpus(spec: ExperimentSpec) -> int:
    """GPUs that W&B's monitor may see: those of rank 0's node."""
    if spec.training.device in ("cpu", "mps"):
        return 0
    launch = spec.launch
    return min(launch.num_processes if launch.backend == "local" else launch.gpus_per_node, MAX_GPUS)


def _monitored(num_gpus: int) -> list[Any]:
    """What W&B records of rank 0's machine, by the client's names."""
    of_gpus = {"GPU (%)": "gpu", "GPU memory (%)": "memoryAllocated", "GPU power (W)": "powerWatts", "GPU temperature": "temp"}
    panels = [
        _line(title, [f"system/gpu.{index}.{name}" for index in range(num_gpus)], x=_TIME) for title, name in of_gpus.items()
    ]
    return [
        *(panels if num_gpus else []),
        _line("CPU (%)", ["system/cpu"], x=_TIME),
        _line("memory of the process (MB)", ["system/proc.memory.rssMB"], x=_TIME),
    ]


def _line(title: str, metrics: list[str], *, x: str = STEP) -> Any:
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(title=title, x=x, y=metrics)


def _media(title: str, keys: list[str]) -> Any:
    """Images or histograms, with a slider over the steps."""
    from wandb_workspaces.reports.v2 import MediaBrowser

    return MediaBrowser(title=title, media_keys=keys)


def _table(key: str) -> Any:
    """The newest table of each run, one below the other; as wide as the page."""
    from wandb_workspaces.reports.v2 import Layout, WeavePanelSummaryTable

    return WeavePanelSummaryTable(table_name=key, layout=Layout(w=24, h=12))


def _bar(title: str, metric: str) -> Any:
    from wandb_workspaces.reports.v2 import BarPlot

    return BarPlot(title=title, metrics=[f"best/{metric}"])


def _retrieval(split: str) -> list[Any]:
    name, ways = f"retrieval/{split}", ("text_to_image", "image_to_text")
    curves = [_line(f"{way.replace('_', ' ')}, recall", [f"{name}/{way}/r{k}" for k in CUTOFFS]) for way in ways]
    return [*curves, _line("mean recall", [f"{name}/r_mean"])]


def _other_tasks(specs: Sequence[ExperimentSpec], split: str) -> list[Any]:
    """A panel for each main metric of the tasks that have no section of their own."""
    tasks = {name: task for spec in specs for name, task in spec.evaluation.tasks.items() if name != "retrieval"}
    return [
        _line(metric.title, [f"{name}/{split}/{metric.name}"])
        for name, task in tasks.items()
        for metric in task.metrics
        if metric.name in task.main
    ]


def _sweep(spec: ExperimentSpec, study: Study) -> list[Any]:
    from wandb_workspaces.reports.v2 import (
        Config,
        ParallelCoordinatesPlot,
        ParallelCoordinatesPlotColumn,
        ParameterImportancePlot,
        SummaryMetric,
    )

    followed = spec.evaluation.best_row_metric
    # A summary has the last value of a metric, and the best one of what picks the best checkpoint.
    goals = [f"best/{goal}" if goal == followed else goal for goal in study.goals]
    columns = [*(Config(name) for name in study.parameters), *(SummaryMetric(goal) for goal in goals)]
    return [
        ParallelCoordinatesPlot(columns=[ParallelCoordinatesPlotColumn(column) for column in columns]),
        *(ParameterImportancePlot(with_respect_to=goal) for goal in goals),
        _table(TRIALS),
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
