"""Which runs does a spec file ask for? YAML, its parents, `--set`, variants x seeds -> checked specs, one a run.

Every mistake is reported at the line where it was written, all of them at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tclx.errors import InputError, Location, Problem
from tclx.section import WRITTEN
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.fields import ROOT
from tclx.spec.merging import SET, entries, merge, merge_files, override_tree, read_with_parents
from tclx.spec.resolve import with_absolute_paths, with_default_kinds
from tclx.spec.shipped import spec_file
from tclx.spec.validation import problems_of
from tclx.spec.yaml import Node

Origins = Mapping[str, Location]
"""Dotted key path (`optim.betas`, `data.train.files[0]`) -> where it was written. Keys left at their default have none."""

NOT_IN_A_VARIANT = {
    "extends": "a file extends, a variant changes keys",
    "variants": "variants do not nest",
    "seeds": "seeds are listed once, beside `variants`",
    "seed": "seeds are listed once, beside `variants`, as `seeds`",
    "name": "the variant's own name is added to it",
    "variant": "the variant's own name is added to it",
}
MAX_SEEDS = 10_000
_WHOLE_FILE_KEYS = ("seed", "seeds", "variants")


class Experiment(NamedTuple):
    """One resolved run."""

    spec: ExperimentSpec
    origins: Origins
    """Where its keys were written, for what is found wrong later."""


class _Draft(NamedTuple):
    """One run before it is checked."""

    tree: Node
    written_as: Mapping[str, str]
    """Key of the resolved spec -> the key that the user wrote, where they differ."""
    differs_in_seed: bool
    """From the one before, and in nothing else."""


def load_experiments(path: Path, overrides: Sequence[str] = (), *, only: str | None = None) -> list[Experiment]:
    """Read an experiment file: its parents merged, then `--set`, then one run for every variant and seed, variants outermost.

    Args:
        path: a YAML file, or `tclx:NAME` for one that comes with tclx.
        overrides: `key.path=value`, the value in YAML; they win over the file and over its variants. Relative paths in them
            start at the current directory.
        only: the one variant that is wanted; None for all.

    Raises:
        InputError: with every problem of every run, each once.
    """
    changes = entries(override_tree(overrides))
    whole = Node({key: node for key, node in changes.items() if key in _WHOLE_FILE_KEYS}, SET)
    rest = Node({key: node for key, node in changes.items() if key not in _WHOLE_FILE_KEYS}, SET)
    file = read_with_parents(spec_file(path))
    tree = Node(entries(merge_files(file, whole)), file.where)
    problems: dict[Problem, None] = {}
    experiments: list[Experiment] = []
    checked: Experiment | None = None
    for draft in _drafts(tree, rest, problems, only):
        checked = (draft.differs_in_seed and checked and _with_seed(checked, draft)) or _checked(draft, problems)
        experiments += [checked] if checked else []
    if problems:
        raise InputError(*_in_reading_order(problems))
    return experiments


def load_spec_json(path: Path) -> ExperimentSpec:
    """Read the resolved spec of a run folder.

    Raises:
        InputError: it cannot be read, or another version of tclx wrote it.
    """
    try:
        return ExperimentSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(Problem("", f"cannot read {path}: {error.strerror}")) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise InputError(Problem("", f"{path} is no spec that this version of tclx understands: {what}")) from error


def _drafts(tree: Node, changes: Node, problems: dict[Problem, None], only: str | None) -> Iterator[_Draft]:
    base = {key: node for key, node in entries(tree).items() if key not in ("variants", "seeds")}
    seeds = _seeds(entries(tree).get("seeds"), problems)
    for name, partial in _variants(entries(tree).get("variants"), problems):
        if only not in (None, name):
            continue
        merged = entries(merge(merge(Node(base, tree.where), partial, ROOT), changes, ROOT))
        variant = {} if name is None else {"variant": Node(name, partial.where)}
        for index, (key, seed) in enumerate(seeds):
            value = {**merged, **variant, **({} if seed is None else {"seed": seed})}
            yield _Draft(Node(value, tree.where), {"seed": key, "variant": f"variants.{name}"}, differs_in_seed=index > 0)


def _seeds(seeds: Node | None, problems: dict[Problem, None]) -> list[tuple[str, Node | None]]:
    """The key under which each seed was written, and the seed; None leaves `seed` as it is."""
    if seeds is None:
        return [("seed", None)]
    if not isinstance(seeds.value, tuple) or not seeds.value:
        problems[Problem("seeds", "must be a list such as [0, 1, 2]", where=seeds.where)] = None
        return [("seed", None)]
    if len(seeds.value) > MAX_SEEDS:
        problems[Problem("seeds", f"{len(seeds.value):,} seeds stand here", f"at most {MAX_SEEDS:,}", seeds.where)] = None
        return [("seed", None)]
    values = [seed.value for seed in seeds.value]
    for index, seed in enumerate(seeds.value):
        if seed.value in values[:index]:
            problems[Problem(f"seeds[{index}]", f"the seed {seed.value} stands here twice", where=seed.where)] = None
    return [(f"seeds[{index}]", seed) for index, seed in enumerate(seeds.value)]


def _variants(variants: Node | None, problems: dict[Problem, None]) -> list[tuple[str | None, Node]]:
    """Names and partial specs, without those that are no partial spec; a file without variants is one run without a name."""
    unnamed: list[tuple[str | None, Node]] = [(None, Node({}, SET))]
    if variants is None or variants.value is None or variants.value == {}:
        return unnamed
    if not isinstance(variants.value, dict):
        problems[
            Problem("variants", "must be names with changes, such as `no-imc: {objectives: {imc: null}}`", where=variants.where)
        ] = None
        return unnamed
    for name, partial in variants.value.items():
        problems.update(dict.fromkeys(_variant_problems(name, partial)))
    usable = [(name, partial) for name, partial in variants.value.items() if isinstance(partial.value, dict)]
    return [*((name, _without_forbidden(partial)) for name, partial in usable)] or unnamed


def _variant_problems(name: str, partial: Node) -> Iterator[Problem]:
    if not isinstance(partial.value, dict):
        yield Problem(f"variants.{name}", "must be keys and values", "write {} where nothing changes", partial.where)
        return
    for key, reason in NOT_IN_A_VARIANT.items():
        if key in partial.value:
            yield Problem(f"variants.{name}.{key}", "cannot stand in a variant", reason, partial.value[key].where)


def _without_forbidden(partial: Node) -> Node:
    return Node({key: node for key, node in entries(partial).items() if key not in NOT_IN_A_VARIANT}, partial.where)


def _checked(draft: _Draft, problems: dict[Problem, None]) -> Experiment | None:
    """The finished run, or None with its problems added."""
    found: list[Problem] = []
    tree = with_absolute_paths(with_default_kinds(draft.tree), found)
    try:
        spec = ExperimentSpec.model_validate_json(json.dumps(tree.plain()), context=WRITTEN)
    except ValidationError as error:
        found += problems_of(error, tree)
    else:
        if not found:
            return Experiment(spec, dict(places_of(tree)))
    problems.update((problem._replace(key=draft.written_as.get(problem.key, problem.key)), None) for problem in found)
    return None


def _with_seed(checked: Experiment, draft: _Draft) -> Experiment | None:
    """The same run with the draft's seed, which is quicker by far than to check all of it again; None for one that is none."""
    seed = entries(draft.tree)["seed"]
    if type(seed.value) is not int or not 0 <= seed.value < 2**31:
        return None
    return Experiment(checked.spec.model_copy(update={"seed": seed.value}), {**checked.origins, "seed": seed.where})


def places_of(node: Node, key: str = "") -> Iterator[tuple[str, Location]]:
    """Every key path of a tree, below `key`, and where it was written; the empty one is the file that was named."""
    yield key, node.where
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from places_of(child, f"{key}.{name}" if key else name)
    elif isinstance(node.value, tuple):
        for index, item in enumerate(node.value):
            yield from places_of(item, f"{key}[{index}]")


def _in_reading_order(problems: Iterable[Problem]) -> list[Problem]:
    """By line within each file; files in the order in which their first problem was found."""
    files: dict[str, list[Problem]] = {}
    for problem in problems:
        files.setdefault(str(problem.where.path) if problem.where else "", []).append(problem)
    return [problem for found in files.values() for problem in sorted(found, key=_line)]


def _line(problem: Problem) -> tuple[int, int]:
    return (problem.where.line, problem.where.column) if problem.where else (0, 0)
