"""A study begun, continued, watched: by workers of this machine, or those of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna

from tclx.launch.downloads import check_downloads
from tclx.sweep import local
from tclx.sweep.begin import create_study
from tclx.sweep.cluster import is_going_on, submit_workers
from tclx.sweep.load import Sweep
from tclx.sweep.showing import LOOK_SECONDS, StudyWatch
from tclx.sweep.storage import patiently
from tclx.sweep.study import StudyFolder
from tclx.sweep.summary import summarise

Say = Callable[[str], None]
Ended = Callable[[optuna.Study, Sweep, StudyFolder], None]
"""Shows a study when everything that was watched has ended."""


def say_doubts(sweep: Sweep, *, say: Say) -> None:
    """What makes the trials' metrics doubtful, or would be found out by the first trial.

    Raises:
        MachineError: what they take from the hub is neither in the cache nor to be had.
    """
    for warning in (*sweep.warnings, *check_downloads([sweep.base], with_image=True)):
        say(f"warning: {warning}")


def resume_study(path: Path, *, detach: bool, follow: bool, say: Say, ended: Ended) -> int:
    """Go on with a study as it was last asked for; returns the exit code.

    Args:
        path: its folder.
        detach, follow, say, ended: as `work`.
    """
    folder = StudyFolder(path)
    sweep = folder.read_sweep()
    return work(sweep, folder, create_study(sweep, folder), detach=detach, follow=follow, say=say, ended=ended)


def work(sweep: Sweep, folder: StudyFolder, study: optuna.Study, *, detach: bool, follow: bool, say: Say, ended: Ended) -> int:
    """Put workers to work on what is left of a study; returns the exit code.

    Args:
        sweep, folder, study: as `create_study` made them.
        detach: here: return at once; the workers outlive this process.
        follow: on SLURM: wait and watch.
        say: receives what a user wants to know.
        ended: shows what came out.
    """
    folder.note_start()
    if sweep.base.launch.backend == "slurm":
        submit_workers(sweep, folder, study, say=say)
        return _follow(sweep, folder, study, say=say, ended=ended) if follow else 0
    with local.as_only_pool(folder) as alone:
        if alone and not detach:
            with StudyWatch(study, sweep, folder, say=say) as watch:
                exit_code = local.run_workers(
                    folder,
                    sweep.spec.num_workers,
                    say=watch.say,
                    look=watch.look,
                    num_ended=lambda: patiently(lambda: summarise(study, sweep, folder).ended, say=watch.say),
                )
                watch.look(at_once=True)
            ended(study, sweep, folder)
            return exit_code
    if alone:
        say(f"working in the background (process {local.detach(folder)}); tclx sweep status {sweep.spec.name} shows it")
        return 0
    say("workers of this study are at work already; this only watches")
    return _follow(sweep, folder, study, say=say, ended=ended)


def _follow(sweep: Sweep, folder: StudyFolder, study: optuna.Study, *, say: Say, ended: Ended) -> int:
    """Watch until no worker lives and nothing is left; Ctrl-C only leaves."""
    try:
        with StudyWatch(study, sweep, folder, say=say) as watch:
            while patiently(lambda: is_going_on(folder), say=watch.say):
                watch.look()
                time.sleep(LOOK_SECONDS)
            watch.look(at_once=True)
    except KeyboardInterrupt:
        say("no longer watching; the workers go on")
        return 130
    ended(study, sweep, folder)
    return 0
