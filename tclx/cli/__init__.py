"""The `tclx` command: parse, call one function, print. One command a file; heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.platform == "win32":
        print("error: tclx runs on Linux and macOS; on Windows install and start it in WSL (wsl --install)", file=sys.stderr)
        sys.exit(3)
    # Help through rich costs 100 ms; only people at a terminal see the difference.
    os.environ.setdefault("TYPER_USE_RICH", "1" if sys.stdout.isatty() else "0")
    from tclx.cli.app import app

    try:
        app(prog_name="tclx")
    finally:
        _flush()


def _flush() -> None:
    """Write what is buffered; a reader that has gone (`tclx results | head -1`) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
