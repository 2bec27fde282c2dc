"""`tclx data`: look at data, and check it before training."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Write generated data out; check pictures before training.")
