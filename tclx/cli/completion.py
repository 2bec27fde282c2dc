"""What does TAB complete? Run ids and experiments, keys and their values, metrics.

Every command imports this module, so its functions import what they ask. Only the names of timm's models need torch, once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import typer

TIMM_KEY = "model.image_encoder.name"


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Run ids, experiments, their variants, and studies in the runs folder."""
    return sorted({name for name in _names(_runs_dir(ctx)) if name.startswith(incomplete)})


def complete_metrics(incomplete: str) -> list[str]:
    """Metrics of evaluations, without their split."""
    from tclx.metrics import of_one_split

    return [name for name in of_one_split() if name.startswith(incomplete)]


def complete_settings(incomplete: str) -> list[str]:
    """`KEY=` of the spec, and behind it what the key may be, where that is a list."""
    from tclx.spec.explain import known_paths

    key, given, value = incomplete.partition("=")
    if not given:
        return [f"{path}=" for path in known_paths() if path.startswith(key)]
    return [f"{key}={choice}" for choice in _choices(key) if choice.startswith(value)]


def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `--sort` and `--where` take: metrics, then keys."""
    from tclx.spec.explain import known_paths

    return [*complete_metrics(incomplete), *(path for path in known_paths() if path.startswith(incomplete))]


def _runs_dir(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("runs_dir") or os.environ.get("TCLX_RUNS") or "runs")


def _names(runs_dir: Path) -> Iterator[str]:
    from tclx.runs import SWEEPS
    from tclx.spec.difference import SEED_AND_HASH

    for plan in runs_dir.glob("*/plan.json"):
        yield plan.parent.name
        yield SEED_AND_HASH.sub("", plan.parent.name)
    for sweep in (runs_dir / SWEEPS).glob("*/sweep.json"):
        yield sweep.parent.name


def _choices(key: str) -> list[str]:
    """The words that a key may be, where there are only these."""
    from tclx.errors import InputError
    from tclx.spec.explain import explain

    if key == TIMM_KEY:
        return _timm_names()
    try:
        found = [re.split(r", | or ", one.values) for one in explain(key)]
    except InputError:
        return []
    return [word for words in found if len(words) > 1 for word in words if re.fullmatch(r"[\w.-]+", word)]


def _timm_names() -> list[str]:
    """Every model of timm; importing it takes seconds, so its names are kept."""
    from importlib.metadata import version

    from tclx.files import write_atomically
    from tclx.system import user_cache

    kept = user_cache() / f"timm-{version('timm')}-models.txt"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8").split()
    import timm

    names: list[str] = timm.list_models()
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, "\n".join(names))
    return names
