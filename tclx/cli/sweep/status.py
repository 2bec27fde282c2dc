"""`tclx sweep status`: how a study stands."""

from __future__ import annotations

from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, print_json, say
from tclx.cli.sweep.study import StudyName, opened, print_study

EXAMPLE = "Example:  tclx sweep status loss-weights"


def status(
    sweep: StudyName,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: AsJson = False,
) -> None:
    """Show how a study stands, from any machine that sees its folder and its storage."""
    from tclx.sweep.claims import living_workers
    from tclx.sweep.showing import tree_of

    parts = opened(sweep, runs_dir)
    folder = parts[0].folder
    if as_json:
        print_json({**tree_of(parts), "living_workers": living_workers(folder)})
        return
    print_study(parts)
    say(f"{len(living_workers(folder))} workers live; runs in {folder.runs_dir}, study in {folder.path}")
