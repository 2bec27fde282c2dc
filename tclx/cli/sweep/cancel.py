"""`tclx sweep cancel`: stop a study's workers."""

from __future__ import annotations

from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say
from tclx.cli.sweep.study import StudyName

EXAMPLE = "Example:  tclx sweep cancel loss-weights"


def cancel(
    sweep: StudyName,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Ask all workers of a study to save and stop; `tclx sweep SWEEP` goes on later."""
    from tclx.sweep.cluster import cancel_workers
    from tclx.sweep.study import find_study

    folder = find_study(sweep, runs_dir)
    if cancel_workers(folder, say=say) == 0:
        say("no worker of this study is at work")
