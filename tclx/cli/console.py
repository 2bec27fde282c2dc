"""How does the command line speak? Data to stdout, messages to stderr, colour only for people who want it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from tclx.cli.completion import complete_settings
from tclx.errors import TclxError
from tclx.terminal import error_lines, one_line, printable

RunsDir = Annotated[
    Path, typer.Option("--runs-dir", envvar="TCLX_RUNS", metavar="FOLDER", help="Folder of the runs.", file_okay=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the spec; may be repeated.", autocompletion=complete_settings
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]
DEFAULT_RUNS_DIR = Path("runs")


RUNS_HELP = "Run folders or ids, experiments by name or file, sweeps by name or file"
"""What `tclx.found` understands."""


def say(line: str) -> None:
    """A message for people, to stderr; nobody is there to read it when the terminal has been closed, and that ends nothing."""
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def show(text: str = "", *, end: str = "\n") -> None:
    """What a command was asked for, to stdout."""
    sys.stdout.write(printable(text) + end)


def show_coloured(text: str, *, code: str, rest: str) -> None:
    """The same with its beginning in a colour, for people who want it.

    Args:
        text: what is coloured.
        code: of the colour, as terminals know it: `32`.
        rest: follows on the line, uncoloured.
    """
    label = printable(text)
    sys.stdout.write((f"\033[{code}m{label}\033[0m" if wants_colour(sys.stdout) else label) + printable(rest) + "\n")


def print_error(error: TclxError) -> None:
    """Every problem on lines of its own, to stderr."""
    label = "\033[1;31merror:\033[0m" if wants_colour(sys.stderr) else "error:"
    for line in error_lines(error):
        print(label, line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """The one JSON document of a command, to stdout."""
    show(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def wants_colour(stream: Any) -> bool:
    """Whether the stream is a terminal whose user has not set NO_COLOR."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    lines = [[one_line(cell) for cell in line] for line in lines]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    formats = [f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])]
    return "\n".join("  ".join(formats).format(*line).rstrip() for line in lines)
