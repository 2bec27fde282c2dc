"""What is an experiment file once all is said? The whole spec as YAML that loads again, and where each value came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tclx.errors import InputError, Location, Problem
from tclx.spec.load import Experiment, load_experiments, places_of
from tclx.spec.merging import entries, read_with_parents
from tclx.spec.shipped import PREFIX, all_shipped, spec_file

_PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*")
_WORDS = ("true", "false", "null", "yes", "no", "on", "off")
DEFAULT = "default"


class Resolved(NamedTuple):
    """One variant of a file, or the file where it has none."""

    variant: str | None
    seeds: tuple[int, ...]
    tree: dict[str, Any]
    """As a file would say it: `variants` names the variant, `seeds` stands for several."""
    sources: Mapping[str, str]
    """Key path -> `FILE:LINE`, `--set`, `default`; of every value that is no section."""

    @property
    def text(self) -> str:
        """YAML; each value with its source as a comment."""
        return "\n".join(_lines(self.tree, "", self.sources)) + "\n"


def resolve(path: Path, overrides: Sequence[str] = (), *, variant: str | None = None) -> list[Resolved]:
    """The variants of an experiment file, resolved; seeds stay together, since they differ in nothing else.

    Args:
        path: as of `load_experiments`.
        overrides: as of `load_experiments`.
        variant: only this one.

    Raises:
        InputError: as `load_experiments`, and where there is no such variant.
    """
    of_variant: dict[str | None, list[Experiment]] = {}
    for experiment in load_experiments(path, overrides):
        of_variant.setdefault(experiment.spec.variant, []).append(experiment)
    if variant is not None and variant not in of_variant:
        named = ", ".join(str(name) for name in of_variant if name) or "none"
        raise InputError(Problem("--variant", f"{path} has no variant `{variant}`", f"it has {named}"))
    named_places = _variant_places(path)
    return [_resolved(runs, named_places) for name, runs in of_variant.items() if variant in (None, name)]


def _variant_places(path: Path) -> dict[Location, str]:
    """Where the variants' own values were written -> the variant's name."""
    variants = entries(read_with_parents(spec_file(path))).get("variants")
    if variants is None or not isinstance(variants.value, dict):
        return {}
    return {where: name for name, partial in variants.value.items() for _, where in places_of(partial)}


def _resolved(runs: Sequence[Experiment], variant_places: Mapping[Location, str]) -> Resolved:
    spec, origins = runs[0]
    tree = spec.model_dump(mode="json")
    sources = {
        key: _source(key, origins, variant_places) for key, value in _values(tree) if key not in ("variant", "seed", "seeds")
    }
    if spec.variant is None:
        tree.pop("variant")
    else:
        tree = {("variants" if key == "variant" else key): value for key, value in tree.items()}
        tree["variants"] = {spec.variant: {}}
        sources[f"variants.{spec.variant}"] = _source("variant", origins, variant_places)
    seeds = tuple(run.spec.seed for run in runs)
    if len(seeds) > 1:
        tree = {("seeds" if key == "seed" else key): value for key, value in tree.items()}
        tree["seeds"] = list(seeds)
    sources["seeds" if len(seeds) > 1 else "seed"] = _source("seed", origins, variant_places)
    return Resolved(spec.variant, seeds, tree, sources)


def _source(key: str, origins: Mapping[str, Location], variant_places: Mapping[Location, str]) -> str:
    where = origins.get(key)
    section, _, name = key.rpartition(".")
    if where is None or (section and name in ("name", "source", "backend") and where == origins.get(section)):
        return DEFAULT  # a kind that nobody wrote has the place of its section
    if not isinstance(where.path, Path):
        return str(where.path)
    variant = f" (variant {variant_places[where]})" if where in variant_places else ""
    return f"{_short(where.path)}:{where.line}{variant}"


def _short(path: Path) -> str:
    """As a reader would name it: what comes with tclx by its name, what lies below the current folder from there."""
    real = path.resolve()
    if real.is_relative_to(Path.cwd()):
        return str(real.relative_to(Path.cwd()))
    shipped = next((one for one in all_shipped() if one.path.resolve() == real), None)
    return f"{PREFIX}{shipped.name}" if shipped else str(path)


def _values(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _values(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _lines(tree: Mapping[str, Any], before: str, sources: Mapping[str, str]) -> Iterator[str]:
    indent = "  " * before.count("\0")
    for key, value in tree.items():
        path = f"{before}{key}".replace("\0", ".")
        if isinstance(value, dict) and value:
            yield f"{indent}{_written(key)}:"
            yield from _lines(value, f"{before}{key}\0", sources)
        else:
            comment = f" # {sources[path]}" if path in sources else ""
            yield f"{indent}{_written(key)}: {_written(value)}{comment}"


def _written(value: Any) -> str:
    """YAML's flow style, which JSON is, but for words that need no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
