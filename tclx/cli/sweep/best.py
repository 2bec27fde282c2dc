"""`tclx sweep best`: the winner as an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say, show
from tclx.cli.sweep.study import StudyName, WhichVariant, one_of, opened

EXAMPLE = "Example:  tclx sweep best loss-weights -o experiments/best.yaml"


def best(
    sweep: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file; stdout by default.", dir_okay=False)
    ] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", help="Trial number instead of the best, for instance one of the Pareto front.")
    ] = None,
    variant: WhichVariant = None,
    keep_changes: Annotated[
        bool, typer.Option("--keep-changes", help="Keep the sweep's `changes`, such as fewer steps, as its trials had them.")
    ] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write the best trial as an experiment that `tclx run` accepts, with where it comes from.

    With a confirmation it is the trial that was confirmed, or, where none was, the experiment itself.

    It extends the sweep's experiment, at that one's full length: the sweep's own `changes` are named, and left out.
    """
    from tclx.files import write_atomically
    from tclx.sweep.export import experiment_of
    from tclx.sweep.verdict import conclusion

    part = one_of(opened(sweep, runs_dir), variant)
    if trial is None and (confirmation := part.confirmation()) is not None:
        say(conclusion(confirmation, part.sweep))
    beside = output.parent if output else None
    text = experiment_of(part, number=trial, keep_changes=keep_changes, beside=beside)
    if output is None:
        show(text, end="")
    else:
        write_atomically(output, text)
        say(f"wrote {output}")
