"""`tclx schema`: the JSON Schema that editors complete specs with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import say, show

EXAMPLE = "Example:  tclx schema -o experiments/schema.json"


class Kind(StrEnum):
    """What there is a schema of."""

    EXPERIMENT = "experiment"
    SWEEP = "sweep"
    TABLE = "table"


def schema(
    kind: Annotated[Kind, typer.Argument(help="File type to print the schema of.")] = Kind.EXPERIMENT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file; stdout by default.", dir_okay=False)
    ] = None,
) -> None:
    """Print the JSON Schema of a spec file, for editors and other tools."""
    import json

    from tclx.files import write_atomically
    from tclx.spec.schema import experiment_schema, sweep_schema, table_schema

    made = {Kind.EXPERIMENT: experiment_schema, Kind.SWEEP: sweep_schema, Kind.TABLE: table_schema}[kind]()
    text = json.dumps(made, indent=1) + "\n"
    if output is None:
        show(text, end="")
    else:
        write_atomically(output, text)
        say(f"wrote {output}")
