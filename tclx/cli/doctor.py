"""`tclx doctor`: what is missing on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, print_json, show, show_coloured
from tclx.errors import MachineError
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.doctor.check import Check

EXAMPLE = "Example:  tclx doctor --deep"
_COLOURS = {"ok": "32", "info": "36", "warning": "33", "problem": "1;31"}


def doctor(
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="An experiment: what W&B will do for its runs.")] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch, in a separate process, and test the GPU.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: Python, GPUs, disk, runs folder, SLURM, logins; say what is missing and what to do.

    Nothing is changed and nothing submitted. The exit code is 3 when something stands in the way of runs.
    """
    from tclx.doctor.machine import examine
    from tclx.spec.load import load_experiments

    specs = [experiment.spec for experiment in load_experiments(spec)] if spec is not None else []
    checks = examine(runs_dir=runs_dir, deep=deep, specs=specs)
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        print_checks(checks)
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(MachineError.exit_code)


def print_checks(checks: Sequence[Check]) -> None:
    """A line a check; below it what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        rest = one_line(f"  {check.name:<{width}}  {check.found}")
        show_coloured(f"{check.verdict:<7}", code=_COLOURS[check.verdict], rest=rest)
        if check.advice:
            show(one_line(f"{'':7}  {'':{width}}  -> {check.advice}"))
