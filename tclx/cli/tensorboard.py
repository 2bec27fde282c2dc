"""`tclx tensorboard`: give runs their TensorBoard copy after the fact."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RUNS_HELP, RunsDir, say, show
from tclx.errors import MachineError

EXAMPLE = "Example:  tclx tensorboard quickstart && tensorboard --logdir runs"


def tensorboard(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNS]...", help=f"{RUNS_HELP}; all by default.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write the rows of metrics.jsonl for TensorBoard, into tensorboard/ of each run folder; in place of an earlier copy.

    A run with `tracking.tensorboard: true` keeps this copy itself while it trains, and is left alone then.
    """
    from tclx.found import find
    from tclx.launch.watch import GOING_ON, watch_runs
    from tclx.spec.load import load_spec_json
    from tclx.track.tensorboard import write_copy

    if find_spec("tensorboard") is None:
        raise MachineError("the package tensorboard is not installed: pip install 'tclx[tensorboard]'")
    statuses = watch_runs(find(runs or [], runs_dir=runs_dir, trials=True).folders)
    for status in statuses:
        folder = status.folder
        if status.standing in GOING_ON and load_spec_json(folder.spec).tracking.tensorboard:
            say(f"{folder.run_id}: keeps its copy itself")
            continue
        show(f"{folder.run_id}  {write_copy(folder)} rows  {folder.tensorboard}")
    if not statuses:
        say(f"no runs in {runs_dir}; choose another folder with --runs-dir")
