"""`tclx examples`: the experiments and sweeps that come with tclx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tclx.cli.console import AsJson, print_json, say, show
from tclx.errors import InputError, Problem

if TYPE_CHECKING:
    from tclx.spec.shipped import Shipped

EXAMPLE = "Example:  tclx examples --copy quickstart my-experiments"


def examples(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Where --copy writes; here by default.", file_okay=False),
    ] = None,
    copy: Annotated[str | None, typer.Option("--copy", metavar="NAME", help="Write this one out, to change it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the experiments and sweeps that come with tclx, or write one out.

    Wherever a command takes a file it takes `tclx:NAME`, and so do `extends`, `init.experiment` and a sweep's `experiment`.
    Nothing is ever overwritten.
    """
    from tclx.spec.shipped import PREFIX, all_shipped, find_shipped

    if copy is not None:
        written = copy_example(find_shipped(copy), folder or Path())
        show(str(written))
        return
    if folder is not None:
        raise InputError(Problem("FOLDER", "is where --copy writes", f"tclx examples --copy NAME {folder}"))
    found = all_shipped()
    if as_json:
        print_json([{"name": one.name, "is_sweep": one.is_sweep, "is_part": one.is_part, "about": one.about} for one in found])
        return
    titles = {
        "experiments, for tclx run": [one for one in found if not one.is_sweep and not one.is_part],
        "parts, for `extends`": [one for one in found if one.is_part],
        "sweeps, for tclx sweep": [one for one in found if one.is_sweep],
    }
    width = max(len(one.name) for one in found)
    for title, group in titles.items():
        show(f"{title}:")
        for one in group:
            show(f"  {PREFIX}{one.name:<{width}}  {one.about}")


def copy_example(shipped: Shipped, folder: Path) -> Path:
    """Write a shipped file out, and beside it the schema that editors complete it with; returns where.

    Raises:
        InputError: there is such a file already.
        MachineError: it cannot be written.
    """
    from tclx.spec.shipped import as_own, write_new

    path = folder / f"{shipped.name.rpartition('/')[2]}.yaml"
    write_new(path, as_own(shipped), is_sweep=shipped.is_sweep)
    say(f"wrote {path}; what it names as tclx:... comes with tclx")
    return path
