"""Workers as SLURM jobs, where SLURM's commands are stand-ins; tests/slurm has the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tclx.launch.slurm import commands as slurm
from tclx.sweep.begin import create_study
from tclx.sweep.cluster import cancel_workers, submit_workers
from tclx.sweep.parts import open_parts
from tclx.sweep.study import StudyFolder
from tests.launch.handed import Commands
from tests.sweep.toy import load


def test_a_controller_that_is_away_for_a_moment_does_not_keep_a_study_from_being_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.0)
    commands = Commands(tmp_path / "commands", monkeypatch)
    commands.put(
        "squeue",
        f"[ $(wc -l < {commands.folder}/calls) -ge 3 ] && echo '41_0|RUNNING|n1|study.abcd|None' && exit\n"
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    commands.put("scancel", "exit 0")
    folder = StudyFolder.of("study", tmp_path / "runs")
    folder.path.mkdir(parents=True)
    folder.jobs.write_text(json.dumps({"name": "study.abcd", "num_workers": 1, "submission": "-"}) + "\n")
    said: list[str] = []
    assert cancel_workers(folder, say=said.append) == 1
    assert said[0].startswith("SLURM does not answer")
    assert said[-1] == "asked 1 jobs to save and stop: 41_0"
    assert commands.calls[-1] == "scancel 41_0"


@pytest.mark.parametrize("at_work", [True, False])
def test_workers_that_are_there_or_not_needed_are_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_work: bool
) -> None:
    commands = Commands(tmp_path / "commands", monkeypatch)
    launch = {"backend": "slurm", "time_limit_minutes": 60}
    sweep = load(tmp_path, num_trials=1, experiment={"launch": launch})
    folder = StudyFolder.of("toy-sweep", tmp_path / "runs")
    study = create_study(sweep, folder)
    if at_work:
        commands.say("squeue", "41_0|RUNNING|n1|toy-sweep.abcd|None\n")
        folder.jobs.write_text(json.dumps({"name": "toy-sweep.abcd", "num_workers": 1, "submission": "-"}) + "\n")
    else:
        commands.say("squeue", "")
        study.tell(study.ask(), 1.0)
    said: list[str] = []
    assert submit_workers(open_parts(folder), folder, say=said.append) is None
    what = "1 workers are on their way already (41_0)" if at_work else "every trial has ended, none is needed"
    assert said == [f"{what}; nothing was submitted"]
