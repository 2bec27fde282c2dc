"""What does a SLURM job do around a sweep's worker? `python -m tclx.sweep.task rank|after SUBMISSION [CODE]`.

`rank` becomes the worker. `after` is the batch script's own shell: a worker that was asked to stop, or was killed, is requeued;
one that found nothing left to do, or failed by itself, is not. A cancelled job is never brought back.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tclx.errors import RunFailed, TclxError
from tclx.launch.slurm import commands as slurm
from tclx.launch.task import SIGNALLED, STILL_OURS, job_id_of, requeue, state_of_job
from tclx.sweep.cluster import STUDY
from tclx.sweep.study import StudyFolder
from tclx.terminal import printable
from tclx.train.stopping import ignore_requests
from tclx.worker import INTERRUPTED_AND_SAVED


def main(arguments: list[str]) -> int:
    """Do the part that is asked for; returns the exit code."""
    if (len(arguments), *arguments[:1]) not in ((2, "rank"), (3, "after")):
        print("usage: python -m tclx.sweep.task rank|after SUBMISSION [CODE]", file=sys.stderr)
        return 2
    submission = json.loads((Path(arguments[1]) / STUDY).read_text(encoding="utf-8"))
    folder = StudyFolder(Path(submission["study"]))
    if arguments[0] == "rank":
        from tclx.sweep import worker

        return worker.main([str(folder.path)])
    return look_after(int(arguments[2]), max_restarts=submission["max_restarts"])


def look_after(exit_code: int, *, max_restarts: int) -> int:
    """Requeue the worker's job where it is to go on; returns the job's exit code."""
    ignore_requests()
    job_id = job_id_of(os.environ)
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or "0")
    if exit_code == 0:
        return 0
    if exit_code != INTERRUPTED_AND_SAVED and exit_code < SIGNALLED:
        print(f"the worker ended by itself with exit code {exit_code}; see above", file=sys.stderr)
        return exit_code
    if state_of_job(job_id) not in STILL_OURS:
        print(
            "ended from outside (cancelled, or requeued by somebody else); tclx sweep goes on with the study", file=sys.stderr
        )
        return RunFailed.exit_code
    if restart >= max_restarts:
        print(f"restarted {restart} times, and launch.max_restarts is {max_restarts}; tclx sweep submits anew", file=sys.stderr)
        return RunFailed.exit_code
    try:
        return requeue(job_id)
    except (slurm.SlurmRefused, TclxError) as error:
        print(printable(f"could not requeue: {error}"), file=sys.stderr)
        return RunFailed.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
