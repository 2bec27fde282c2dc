"""Promises of what is decided before anything is sent: which rows, under which name, with which environment."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import Interrupted
from tclx.runs import RunFolder
from tclx.spec.tracking import WandbSpec
from tclx.track.jsonl import MetricsFile
from tclx.track.wandb import process as sending_module
from tclx.track.wandb.process import (
    RowReader,
    begin_sent,
    child_environment,
    due,
    missing,
    saved_step,
    sending,
    wandb_mode,
    write_sent,
)
from tclx.track.wandb.upload import as_logged

SAVED = WandbSpec(rows="saved")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Rows of the steps 1 to 5, the newest checkpoint at 3."""
    folder = RunFolder(tmp_path / "toy-cma+imc-s0-1a2b3c4d")
    folder.path.mkdir()
    for step in range(1, 6):
        MetricsFile(folder.metrics).append({"step": step, "loss/total": 1.0 / step})
    folder.add_event("saved", step=3, checkpoint="step-00000003")
    return folder


def steps(folder: RunFolder, spec: WandbSpec) -> list[int]:
    return [row["step"] for row in RowReader(folder.metrics).rows(due(folder, spec).up_to_step)]


def test_live_rows_are_all_rows_and_saved_rows_those_that_no_resume_takes_back(folder: RunFolder) -> None:
    assert steps(folder, WandbSpec()) == [1, 2, 3, 4, 5]
    assert steps(folder, SAVED) == [1, 2, 3]


def test_after_a_lost_checkpoint_the_one_that_was_resumed_from_counts(folder: RunFolder) -> None:
    folder.add_event("resumed", step=2)
    assert saved_step(folder.read_events()) == 2
    folder.add_event("saved", step=4, checkpoint="step-00000004")
    assert steps(folder, SAVED) == [1, 2, 3, 4]


def test_a_row_of_the_saved_step_that_is_written_later_is_sent_too(folder: RunFolder) -> None:
    """An evaluation follows its checkpoint."""
    folder.metrics.write_text('{"step": 3}\n')
    reader = RowReader(folder.metrics)
    assert len(list(reader.rows(3))) == 1
    MetricsFile(folder.metrics).append({"step": 3, "retrieval/val/r_mean": 50.0})
    MetricsFile(folder.metrics).append({"step": 4})
    assert [row.get("retrieval/val/r_mean") for row in reader.rows(3)] == [50.0]
    assert reader.num_read == 2


def test_half_a_line_is_left_until_it_is_whole(folder: RunFolder) -> None:
    whole = folder.metrics.read_text()
    folder.metrics.write_text(whole[:-5])
    reader = RowReader(folder.metrics)
    assert len(list(reader.rows(None))) == 4
    folder.metrics.write_text(whole)
    assert [row["step"] for row in reader.rows(None)] == [5]


def test_reading_goes_on_behind_what_the_server_has(folder: RunFolder) -> None:
    reader = RowReader(folder.metrics)
    assert reader.skip(6) is None
    assert reader.skip(2) == {"step": 2, "loss/total": 0.5}
    assert [row["step"] for row in reader.rows(None)] == [3, 4, 5]


def test_a_row_keeps_its_names_and_gets_its_axes() -> None:
    row = {"step": 3, "epoch": 0.5, "loss/total": None, "loss/cma": 1.5, "nonfinite": ["loss/total"]}
    logged = as_logged(row, global_batch_size=8)
    assert math.isnan(logged.pop("loss/total"))
    assert logged == {"trainer/step": 3, "trainer/samples": 24, "epoch": 0.5, "loss/cma": 1.5}


def test_the_wandb_run_is_named_once_after_the_run(folder: RunFolder) -> None:
    name = begin_sent(folder, WandbSpec()).wandb_id
    assert name.startswith("toy-cma-imc-s0-1a2b3c4d-")
    assert begin_sent(folder, WandbSpec(project="another")).wandb_id == name
    folder.wandb.unlink()
    assert begin_sent(folder, WandbSpec()).wandb_id != name  # `--again` is another run there


def test_a_long_name_keeps_its_end_which_tells_runs_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / f"{'n' * 64}-{'v' * 64}-s0-1a2b3c4d")
    folder.path.mkdir()
    name = begin_sent(folder, WandbSpec()).wandb_id
    assert len(name) == 64
    assert "-s0-1a2b3c4d-" in name


def test_nothing_of_another_wandb_run_reaches_the_process_that_uploads(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "WANDB_RUN_ID",
        "WANDB_RESUME",
        "WANDB_SWEEP_ID",
        "WANDB_SERVICE",
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
    ):
        monkeypatch.setenv(name, "x")
    kept = {name for name in child_environment(folder.path) if name.startswith("WANDB_")}
    assert kept == {"WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING"}


def test_the_machine_may_say_offline_and_without_a_section_there_is_nothing() -> None:
    assert wandb_mode(WandbSpec(), {}) == "online"
    assert wandb_mode(WandbSpec(), {"WANDB_MODE": "offline"}) == "offline"
    assert wandb_mode(WandbSpec(mode="offline"), {"WANDB_MODE": "disabled"}) == "disabled"
    assert wandb_mode(None, {"WANDB_MODE": "online"}) == "disabled"


@pytest.mark.parametrize("spec", [None, WandbSpec(mode="disabled")])
def test_without_wandb_nothing_is_started_and_nothing_written(folder: RunFolder, spec: WandbSpec | None) -> None:
    before = sorted(folder.path.rglob("*"))
    with sending(folder, spec, say=pytest.fail):
        pass
    assert sorted(folder.path.rglob("*")) == before


def test_what_is_missing_is_counted(folder: RunFolder) -> None:
    sent = begin_sent(folder, WandbSpec())
    assert missing(folder, WandbSpec()) == "5 of 5 rows"
    write_sent(folder, sent.__class__(sent.wandb_id, sent.project, num_rows=5))
    assert missing(folder, WandbSpec()) is None
    folder.write_json(folder.evaluated("retrieval", "test"), {"metrics": {"retrieval/test/r_mean": 50.0}})
    assert missing(folder, WandbSpec()) == "the final metrics"
    folder.checkpoints.joinpath("step-00000003").mkdir(parents=True)
    assert missing(folder, WandbSpec(checkpoints="all")) == "the final metrics, 1 checkpoints"


def test_the_best_checkpoint_is_due_when_the_run_has_ended(folder: RunFolder) -> None:
    folder.checkpoints.joinpath("step-00000003").mkdir(parents=True)
    folder.best.write_text(json.dumps({"step": 3, "metric": "retrieval/val/r_mean", "value": 40.0}))
    best = WandbSpec(checkpoints="best")
    assert due(folder, best).checkpoints == {}
    folder.add_event("finished", step=5)
    assert due(folder, best).checkpoints == {"step-00000003": ("step-00000003", "best")}
    assert due(folder, best).summary == {"best/step": 3, "best/retrieval/val/r_mean": 40.0}


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """An uploading process that takes no end, and a hurry that lasts half a second."""

    def start(*_: Any, **__: Any) -> subprocess.Popen[str]:
        program = [sys.executable, "-c", "import time; time.sleep(60)"]
        return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(sending_module, "_start", start)
    monkeypatch.setattr(sending_module, "INTERRUPTED_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_MODE", "online")


def test_a_run_that_was_asked_to_stop_does_not_wait_as_a_finished_one_does(folder: RunFolder, endless: None) -> None:
    began = time.monotonic()
    with pytest.raises(Interrupted), sending(folder, WandbSpec(finish_timeout_seconds=30), say=lambda line: None):
        raise Interrupted("SIGTERM")
    assert time.monotonic() - began < 10


def test_a_finished_run_waits_until_its_bound_or_until_somebody_is_in_a_hurry(folder: RunFolder, endless: None) -> None:
    said: list[str] = []
    began = time.monotonic()
    with sending(folder, WandbSpec(finish_timeout_seconds=3), say=said.append):
        pass
    assert 2.9 < time.monotonic() - began < 15
    assert "not everything was taken within 3 s" in said[-1]
    began = time.monotonic()
    with sending(folder, WandbSpec(finish_timeout_seconds=30), say=said.append, hurried=lambda: time.monotonic() > began + 1):
        pass
    assert time.monotonic() - began < 15
