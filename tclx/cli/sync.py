"""`tclx sync`: bring W&B up to date with run folders and studies."""

from __future__ import annotations

from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, AsJson, RunsDir, print_json, say, show

EXAMPLE = "Example:  tclx sync quickstart"


def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS...]", help=f"{RUNS_HELP}; all by default.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    again: Annotated[
        bool, typer.Option("--again", help="Upload the whole run as a new W&B run, even if W&B already has it.")
    ] = False,
    timeout: Annotated[int, typer.Option("--timeout", min=10, metavar="SECONDS", help="Time limit per run or study.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Upload to W&B what it does not have yet: offline runs, and what was left when W&B could not be reached.

    Of a sweep that is named: its trials' runs, then the study. Needs a login (WANDB_API_KEY or `wandb login`) and sight of the
    run folders, no GPU. What arrived is asked for, and the next call goes on from there. Exit code 1: something is still
    missing; 3: W&B cannot be used from here.
    """
    from tclx.use.sync import sync_all

    outcomes = sync_all(runs or [], runs_dir=runs_dir, again=again, timeout=timeout, say=say)
    if as_json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            name, count = ("run_id", "rows") if "run_id" in outcome else ("study", "trials")
            show(f"{outcome[name]}  {outcome[f'num_{count}']} {count}  {outcome['url'] or '-'}  {outcome['outcome']}")
        if not outcomes:
            say("nothing to upload: no run here was started with W&B")
    if code := max((outcome["exit_code"] for outcome in outcomes), default=0):
        raise typer.Exit(code)
