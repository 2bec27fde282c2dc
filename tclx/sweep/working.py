"""A study begun, continued, watched: by workers of this machine, or those of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tclx.launch.downloads import check_downloads
from tclx.sweep import local
from tclx.sweep.begin import create_studies
from tclx.sweep.cluster import is_going_on, submit_workers
from tclx.sweep.parts import Part, num_ended, open_parts
from tclx.sweep.searched import Sweep
from tclx.sweep.showing import LOOK_SECONDS, StudyWatch
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder

Say = Callable[[str], None]
Ended = Callable[[Sequence[Part]], None]
"""Shows a study when everything that was watched has ended."""


def say_doubts(sweeps: Sequence[Sweep], *, say: Say) -> None:
    """What makes the trials' metrics doubtful, or would be found out by the first trial.

    Raises:
        MachineError: what they take from the hub is neither in the cache nor to be had.
    """
    warnings = [warning for sweep in sweeps for warning in sweep.warnings]
    for warning in dict.fromkeys([*warnings, *check_downloads([sweep.base for sweep in sweeps], with_image=True)]):
        say(f"warning: {warning}")


def resume_study(path: Path, *, detach: bool, follow: bool, say: Say, ended: Ended) -> int:
    """Go on with a study as it was last asked for; returns the exit code.

    Args:
        path: its folder.
        detach, follow, say, ended: as `work`.
    """
    folder = StudyFolder(path)
    create_studies([part.read_sweep() for part in folder.parts()], folder)
    return work(folder, detach=detach, follow=follow, say=say, ended=ended)


def work(folder: StudyFolder, *, detach: bool, follow: bool, say: Say, ended: Ended) -> int:
    """Put workers to work on what is left of a study; returns the exit code.

    Args:
        folder: of the study, as `create_studies` made it.
        detach: here: return at once; the workers outlive this process.
        follow: on SLURM: wait and watch.
        say: receives what a user wants to know.
        ended: shows what came out.
    """
    folder.note_start()
    parts = open_parts(folder)
    spec, launch = parts[0].sweep.spec, parts[0].sweep.base.launch
    if launch.backend == "slurm":
        submit_workers(parts, folder, say=say)
        return _follow(parts, folder, say=say, ended=ended) if follow else 0
    with local.as_only_pool(folder) as alone:
        if alone and not detach:
            with StudyWatch(parts, say=say) as watch:
                exit_code = local.run_workers(
                    folder,
                    spec.num_workers,
                    say=watch.say,
                    look=watch.look,
                    num_ended=lambda: patiently(lambda: num_ended(parts), say=watch.say),
                )
                watch.look(at_once=True)
            ended(parts)
            return exit_code
    if alone:
        say(f"working in the background (process {local.detach(folder)}); tclx sweep status {spec.name} shows it")
        return 0
    say("workers of this study are at work already; this only watches")
    return _follow(parts, folder, say=say, ended=ended)


def _follow(parts: Sequence[Part], folder: StudyFolder, *, say: Say, ended: Ended) -> int:
    """Watch until no worker lives and nothing is left; Ctrl-C only leaves."""
    try:
        with StudyWatch(parts, say=say) as watch:
            while patiently(lambda: is_going_on(folder), say=watch.say):
                watch.look()
                time.sleep(LOOK_SECONDS)
            watch.look(at_once=True)
    except KeyboardInterrupt:
        say("no longer watching; the workers go on")
        return 130
    ended(parts)
    return 0
