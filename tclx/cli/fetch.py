"""`tclx fetch`: what runs take from the hub, brought to where they find it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import Overrides, say

EXAMPLE = "Example:  tclx fetch experiments/quickstart.yaml"


def fetch(
    specs: Annotated[list[Path], typer.Argument(metavar="SPECS...", help="Experiment files.")],
    overrides: Overrides = None,
) -> None:
    """Bring weights, tokenizers and data sets that runs take from the hub into this machine's cache.

    Do it where there is a network, with an HF_HOME that the compute nodes share: a run that finds all it takes there asks
    no hub. What is there already is not fetched again.
    """
    from tclx.launch.downloads import fetch_all
    from tclx.spec.load import load_experiments

    found = [experiment for path in specs for experiment in load_experiments(path, overrides or [])]
    if not fetch_all(found, say=say):
        say("the runs take nothing from the hub")
