"""What is searched? A checked sweep: the experiment, what varies in it, and the runs that follow from a trial's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import ValidationError

from tclx.data.facts import collect_facts
from tclx.errors import InputError
from tclx.launch.order import PlannedRun
from tclx.plan import DataFacts, make_plan, starting_from
from tclx.spec.difference import CHANGES_NO_RESULT
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.merging import SET
from tclx.spec.sweep import SweepSpec
from tclx.spec.tracking import WandbSpec
from tclx.spec.validation import problems_of
from tclx.spec.yaml import Node
from tclx.sweep import space


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: everything that a worker needs, wherever it runs."""

    spec: SweepSpec
    base: ExperimentSpec
    """Trial 0: the experiment with the sweep's `changes`."""
    needs: str | None
    """Id of the run whose weights all trials start from."""
    facts: DataFacts
    """Of the base's data."""
    experiment: ExperimentSpec | None = None
    """What the file asks for without the sweep's `changes`, paths absolute; None where it cannot stand without them, and in
    studies that were begun before this was written down."""
    warnings: tuple[str, ...] = ()
    """What makes the metrics of its trials doubtful; known when its file is read, not to workers."""
    part: str | None = None
    """The variant, where the file asks for a search of each of several."""

    @property
    def title(self) -> str:
        """The study's name, with the variant where it has several."""
        return self.spec.name if self.part is None else f"{self.spec.name}-{self.part}"

    def is_experiment(self, spec: ExperimentSpec) -> bool:
        """Whether a trial's run is one that the experiment's own file asks for, whatever its seed."""
        return self.experiment is not None and content(spec) == content(self.experiment)

    @property
    def base_tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = self.base.model_dump(mode="json")
        return tree

    @property
    def tracked(self) -> ExperimentSpec:
        """The base as a trial's runs are tracked."""
        return self._tracked(self.base)

    def seeds(self) -> tuple[int, ...]:
        """Of every trial's runs."""
        return self.spec.seeds or (self.base.seed,)

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial with these parameters puts into the experiment, as the sweep file would say it."""
        return space.shown(space.values_of(drawn, self.spec), self.spec)

    def planned(self, drawn: Mapping[str, Any]) -> list[PlannedRun]:
        """The runs of a trial with these parameters, one a seed.

        Raises:
            InputError: together they make no experiment that can run.
        """
        tree = space.with_values(self.base_tree, space.values_of(drawn, self.spec))
        return [self.planned_as(tree, seed) for seed in self.seeds()]

    def fresh_seeds(self) -> tuple[int, ...]:
        """With which a confirmation trains: the first that no trial of the search was trained with."""
        seen, wanted = set(self.seeds()), self.spec.confirm.seeds if self.spec.confirm is not None else 0
        return tuple(seed for seed in range(wanted + len(seen)) if seed not in seen)[:wanted]

    def confirmed(self, drawn: Mapping[str, Any], seed: int) -> PlannedRun:
        """The run that confirms a trial with these parameters, with a fresh seed.

        Raises:
            InputError: together they make no experiment that can run.
        """
        tree = space.with_values(self._confirmed_tree, space.values_of(drawn, self.spec))
        return self.planned_as(tree, seed)

    @property
    def _confirmed_tree(self) -> dict[str, Any]:
        """Trial 0 as it is confirmed: of the experiment's own length; where it is trained, and from what, as in the search."""
        if self.experiment is None or self.spec.confirm is None or self.spec.confirm.keep_changes:
            return self.base_tree
        base = self.base_tree
        tree = self.experiment.model_dump(mode="json") | {key: base[key] for key in ("launch", "tracking", "init")}
        return tree | {"data": tree["data"] | {"num_workers": base["data"]["num_workers"]}}

    def for_confirming(self) -> Sweep:
        """What the trainings of its confirmation are made from: nothing prunes them."""
        return replace(self, spec=self.spec.model_copy(update={"pruner": None}))

    def wandb(self) -> WandbSpec | None:
        """Of the study and its trials: they are one group on W&B, the study's, unless the experiment names another."""
        spec = self.base.tracking.wandb
        return spec if spec is None or spec.group is not None else spec.model_copy(update={"group": self.spec.name})

    def _tracked(self, spec: ExperimentSpec) -> ExperimentSpec:
        return spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"wandb": self.wandb()})})

    def planned_as(self, tree: dict[str, Any], seed: int, *, context: dict[str, Any] | None = None) -> PlannedRun:
        """The run of an experiment of this sweep, as JSON knows it.

        Args:
            tree: the experiment.
            seed: with which it is trained.
            context: `tclx.section.WRITTEN` where a user has written the values.

        Raises:
            InputError: it cannot run.
        """
        try:
            spec = ExperimentSpec.model_validate_json(json.dumps({**tree, "seed": seed}), context=context)
        except ValidationError as error:
            raise InputError(*problems_of(error, _as_node({**tree, "seed": seed}))) from error
        facts = self.facts if spec.data == self.base.data else _facts(spec.data)
        spec = self._tracked(spec)
        plan = make_plan(spec, facts)
        if self.needs is not None:
            plan = starting_from(plan, spec, self.needs)
        return PlannedRun(spec, plan, None, asked_for=True)


def content(spec: ExperimentSpec) -> dict[str, Any]:
    """What a run's result follows from, but for its seed, and the run that it starts from, which a run names by its path."""
    return spec.model_dump(exclude={**CHANGES_NO_RESULT, "init": True, "seed": True})


_facts = cache(collect_facts)
"""Of data that a trial changes: counted once a process, for all seeds and trials."""


def changes_no_result(spec: SweepSpec) -> bool:
    """Whether a sweep's `changes` leave the experiment what it is."""
    return all(key.startswith(("launch", "tracking")) or key == "data.num_workers" for key in spec.changes)


def _as_node(tree: Any) -> Node:
    """A resolved experiment for messages, without lines."""
    if isinstance(tree, dict):
        return Node({key: _as_node(value) for key, value in tree.items()}, SET)
    if isinstance(tree, list):
        return Node(tuple(_as_node(value) for value in tree), SET)
    return Node(tree, SET)
