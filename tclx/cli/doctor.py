"""`tclx doctor`: what is missing on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, aligned, print_json, say, show, show_coloured
from tclx.errors import InputError, MachineError, Problem
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.doctor.check import Check
    from tclx.spec.experiment import ExperimentSpec

EXAMPLE = "Example:  tclx doctor --deep"
_COLOURS = {"ok": "32", "info": "36", "warning": "33", "problem": "1;31"}


def doctor(
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="An experiment: what W&B will do for its runs.")] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch, in a separate process, and test the GPU.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Submit a short job to every node of a partition, and compare what they find.")
    ] = False,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="With --cluster: of which; by default the spec's.")
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="With --cluster: how long to wait for nodes that are busy.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: Python, GPUs, disk, runs folder, SLURM, logins; say what is missing and what to do.

    Nothing is changed, and nothing submitted but with --cluster. The exit code is 3 when something stands in the way of runs.
    """
    from tclx.doctor.machine import examine
    from tclx.spec.load import load_experiments

    specs = [experiment.spec for experiment in load_experiments(spec)] if spec is not None else []
    if cluster:
        look_at_nodes(specs, partition, runs_dir=runs_dir, minutes=minutes, as_json=as_json)
        return
    if partition is not None:
        raise InputError(Problem("--partition", "goes with --cluster"))
    checks = examine(runs_dir=runs_dir, deep=deep, specs=specs)
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        print_checks(checks)
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(MachineError.exit_code)


def look_at_nodes(
    specs: Sequence[ExperimentSpec], partition: str | None, *, runs_dir: Path, minutes: float, as_json: bool
) -> None:
    """A table of the partition's nodes, and what is wrong with which."""
    from tclx.doctor.cluster import as_rows, examine_nodes
    from tclx.spec.launch import SlurmLaunch

    launches = [spec.launch for spec in specs if isinstance(spec.launch, SlurmLaunch)]
    if specs and not launches:
        raise InputError(
            Problem("launch.backend", "is local: there are no nodes to ask", "a spec with `backend: slurm`, or none")
        )
    launch = launches[0] if launches else SlurmLaunch(backend="slurm", gpus_per_node=0)
    if partition is not None:
        launch = launch.model_copy(update={"partition": partition})
    nodes = examine_nodes(launch, runs_dir=runs_dir, minutes=minutes, all_gpus=not launches, say=say)
    if as_json:
        print_json([node._asdict() for node in nodes])
    else:
        show(aligned(as_rows(nodes)))
        for node in nodes:
            for remark in node.remarks:
                show_coloured(f"{node.verdict:<7}", code=_COLOURS[node.verdict], rest=one_line(f"  {node.name}  {remark}"))
    if any(node.verdict == "problem" for node in nodes):
        raise typer.Exit(MachineError.exit_code)


def print_checks(checks: Sequence[Check]) -> None:
    """A line a check; below it what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        rest = one_line(f"  {check.name:<{width}}  {check.found}")
        show_coloured(f"{check.verdict:<7}", code=_COLOURS[check.verdict], rest=rest)
        if check.advice:
            show(one_line(f"{'':7}  {'':{width}}  -> {check.advice}"))
