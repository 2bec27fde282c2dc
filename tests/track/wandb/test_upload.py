"""Promises about W&B, kept with its unmodified client and a server on loopback: every row once and in order, whatever is
killed; and whatever happens to W&B, training ends as it would without, in the time it was given, and says what is the matter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tclx.errors import Interrupted
from tclx.runs import RunFolder
from tclx.track.jsonl import MetricsFile, read
from tclx.track.wandb.process import Say, read_sent, send_now, sending
from tclx.track.wandb.upload import as_logged
from tests.disk import small_disk
from tests.track.wandb_file import read_history
from tests.track.wandb_server import API_KEY, DROP, SILENCE, ReceivedRun, WandbServer, wait_for
from tests.train.toy import kill, outcome, prepare, run, start, toy_spec, wait_until

BATCH = 8
TIME_BASED = ("speed/", "memory/")
MEDIA = ("similarity/", "examples/", "attention/")
SHORT = {"init_timeout_seconds": 1, "finish_timeout_seconds": 4}
FINISH_SECONDS = 4.0
RARE = pytest.mark.faults


def prepared(path: Path, **wandb: Any) -> RunFolder:
    """A run folder whose runs go to W&B."""
    return prepare(path / "toy-s3-1a2b3c4d", toy_spec(**{"tracking.wandb": {"project": "tests", **wandb}}))


def same(value: Any) -> Any:
    """One number whether it went through an integer or not."""
    return float(value) if isinstance(value, int | float) else value


def expected(folder: RunFolder, *, speeds: bool = True) -> list[dict[str, Any]]:
    batch_size = folder.read_json(folder.plan)["global_batch_size"]
    return [plain(as_logged(row, global_batch_size=batch_size), speeds=speeds) for row in read(folder.metrics)]


def received(run: ReceivedRun, *, speeds: bool = True) -> list[dict[str, Any]]:
    assert run.num_overwritten == 0
    assert run.steps == list(range(len(run.steps)))
    return [plain(row, speeds=speeds) for row in run.rows]


def plain(row: dict[str, Any], *, speeds: bool = True) -> dict[str, Any]:
    """The numbers of a row."""
    left_out = MEDIA if speeds else MEDIA + TIME_BASED
    return {name: same(value) for name, value in row.items() if not name.startswith(left_out)}


def events(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    return [event for event in folder.read_events() if event["event"] == name]


def assert_no_secret(folder: RunFolder, *texts: str, key: str = API_KEY) -> None:
    for path in folder.path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    assert all(key not in text for text in texts)


def write_rows(folder: RunFolder, first: int, last: int) -> None:
    """What training does to the run folder: rows, and a checkpoint of the last one."""
    for step in range(first, last + 1):
        MetricsFile(folder.metrics).append({"step": step, "epoch": step / 8, "loss/total": 1.0 / step})
    folder.add_event("saved", step=last, checkpoint=f"step-{last:08d}")


def upload(folder: RunFolder, body: Callable[[], None], *, say: Say = lambda line: None) -> float:
    """A training run that does nothing but `body`; returns the seconds that its end took."""
    spec = toy_spec(**{"tracking.wandb": folder.read_json(folder.spec)["tracking"]["wandb"]}).tracking.wandb
    with sending(folder, spec, say=say):
        body()
        ended_at = time.monotonic()
    return time.monotonic() - ended_at


def children(name: str, *, parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The uploading process (`tclx.track.wandb.upload`), or its service (`wandb-core`); other tests may have one, too."""
    found = []
    for child in (parent or psutil.Process()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            if child.status() != psutil.STATUS_ZOMBIE and name in " ".join(child.cmdline()):
                found.append(child)
    return found


# -------------------------------------------------------------------------------------------------------------- what arrives


def test_a_run_arrives_whole_with_its_spec_its_figures_and_its_best_checkpoint(tmp_path: Path, server: WandbServer) -> None:
    folder = run(prepared(tmp_path, checkpoints="best", tags=["a", "b"], notes="a note"), environment=server.environment)
    there = server.only_run
    assert received(there) == expected(folder)
    assert there.config["model"]["value"]["queue_size"] == 24
    assert there.config["plan"]["value"]["global_batch_size"] == BATCH
    best = folder.read_json(folder.best)
    final = folder.read_json(folder.evaluated("retrieval", "test"))["metrics"]
    assert {name: there.summary[name] for name in final} == pytest.approx(final)
    assert there.summary["best/step"] == best["step"]
    assert there.summary[f"best/{best['metric']}"] == pytest.approx(best["value"])
    facts = {"groupName": "toy", "jobType": "train", "displayName": folder.run_id, "tags": ["a", "b"], "notes": "a note"}
    assert there.facts == facts
    assert (there.project, there.exit_code) == ("tests", 0)
    (artifact,) = there.artifacts_of("model")
    assert artifact["state"] == "COMMITTED"
    assert {"best", f"step-{best['step']:08d}"} <= set(artifact["aliases"])
    assert "model.safetensors" in artifact["files"]
    (complete,) = events(folder, "wandb_complete")
    assert complete["rows"] == len(there.rows)
    assert not events(folder, "wandb_degraded")
    assert "system.proc.memory.rssMB" in there.event_names  # tclx/track/wandb/workspace.py has a panel of it
    assert_no_secret(folder)


def test_every_evaluation_brings_its_histograms_its_examples_and_its_maps(tmp_path: Path, server: WandbServer) -> None:
    folder = run(prepared(tmp_path), environment=server.environment)
    there = server.only_run
    evaluations = [row for row in there.rows if "retrieval/val/text_to_image/r1" in row]
    assert evaluations
    kept = folder.read_json(folder.examples("retrieval", "val", step=evaluations[-1]["trainer/step"]))
    assert evaluations[-1]["similarity/val/matched"]["values"] == kept["similarity"]["matched"]
    assert sum(evaluations[-1]["similarity/val/unmatched"]["values"]) == sum(kept["similarity"]["unmatched"])
    for row in [*evaluations, {name.replace("/test", "/val", 1): value for name, value in there.summary.items()}]:
        table = row["examples/val/text_to_image"]
        assert (table["_type"], table["nrows"]) == ("table-file", len(kept["text_to_image"]))
        assert table["path"] in there.files
        captions = row["attention/val"]["captions"]
        assert len(captions) == sum(1 + len(explained["words"]) for explained in kept["attention"])
        assert set(row["attention/val"]["filenames"]) <= set(there.files)
    assert not (folder.path / "wandb" / "staged").exists()
    columns = json.loads(there.files[evaluations[-1]["examples/val/text_to_image"]["path"]])
    assert [line[0] for line in columns["data"]] == [query["text"] for query in kept["text_to_image"]]
    others = [row for row in there.rows if "retrieval/val/text_to_image/r1" not in row]
    assert not any(name.startswith(MEDIA) for row in others for name in row)


def test_a_checkpoint_by_reference_is_named_where_it_lies_and_not_uploaded(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path / "my runs", checkpoints="best", checkpoint_files="reference")
    run(folder, environment=server.environment)
    (artifact,) = server.only_run.artifacts_of("model")
    assert artifact["state"] == "COMMITTED"
    assert artifact["files"] == []
    checkpoint = folder.checkpoints.resolve() / f"step-{folder.read_json(folder.best)['step']:08d}"
    assert artifact["contents"].keys() == {path.name for path in checkpoint.iterdir()}
    for name, entry in artifact["contents"].items():
        content = (checkpoint / name).read_bytes()
        assert entry["ref"] == (checkpoint / name).as_uri()
        assert entry["size"] == len(content)
        assert entry["digest"] == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert received(server.only_run) == expected(folder)
    assert not events(folder, "wandb_degraded")


@pytest.mark.parametrize("rows", ["live", "saved"])
def test_after_sigkill_and_resume_every_row_is_there_once_and_in_order(tmp_path: Path, server: WandbServer, rows: str) -> None:
    folder = prepared(tmp_path, rows=rows)
    processes = start(folder, environment=server.environment)
    wait_until(lambda: folder.metrics.exists() and '"step": 8,' in folder.metrics.read_text(), processes)
    kill(processes)
    wait_for(lambda: bool(events(folder, "wandb_complete")))  # what was written goes out although its writer is dead
    written = max(row["step"] for row in read(folder.metrics))
    saved = events(folder, "saved")[-1]["step"]
    assert server.only_run.rows[-1]["trainer/step"] == (written if rows == "live" else min(written, 6 if saved < 9 else 8))
    assert server.only_run.exit_code == 1
    run(folder, environment=server.environment)
    assert received(server.only_run, speeds=rows == "saved") == expected(folder, speeds=rows == "saved")
    assert server.only_run.exit_code == 0


def test_killing_the_uploading_process_doubles_nothing(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path)
    said: list[str] = []

    def body() -> None:
        write_rows(folder, 1, 50)
        wait_for(lambda: "file_stream" in server.requests)
        (process,) = children("tclx.track.wandb.upload")
        process.kill()
        # psutil's own wait() would take its exit code from its parent
        wait_for(lambda: not children("tclx.track.wandb.upload"))

    upload(folder, body, say=said.append)
    (line,) = said
    assert "the uploading process ended with -9" in line
    upload(folder, lambda: write_rows(folder, 51, 60))
    assert received(server.only_run) == expected(folder)


def test_killing_the_service_doubles_nothing_and_loses_nothing(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path)
    said: list[str] = []

    def body() -> None:
        write_rows(folder, 1, 50)
        wait_for(lambda: "file_stream" in server.requests)
        (process,) = children("tclx.track.wandb.upload")
        (service,) = children("wandb-core", parent=process)
        service.kill()
        write_rows(folder, 51, 60)
        wait_for(lambda: len(said) > 0)

    assert upload(folder, body, say=said.append) < 20
    assert "Connection" in said[0]
    assert received(server.only_run) == expected(folder)
    assert events(folder, "wandb_complete")


def test_rows_of_another_schedule_are_refused_and_again_uploads_afresh(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path)
    upload(folder, lambda: write_rows(folder, 1, 5))
    folder.metrics.unlink()
    write_rows(folder, 3, 9)
    said: list[str] = []
    assert send_now(folder, "online", seconds=20, say=said.append) == 1
    assert "row 5 is of step 5 there and of step 7 here" in said[0]
    assert "tclx sync --again" in said[0]
    folder.wandb.unlink()
    assert send_now(folder, "online", seconds=20, say=said.append) == 0
    assert received(list(server.runs.values())[1]) == expected(folder)


# ------------------------------------------------------------------------------------------------------------------- offline


def test_offline_the_file_has_every_row_once_after_a_sigkill_and_sync_makes_the_server_equal(
    tmp_path: Path, server: WandbServer
) -> None:
    folder = prepared(tmp_path, mode="offline")
    processes = start(folder, environment=server.environment)
    wait_until(lambda: folder.metrics.exists() and '"step": 8,' in folder.metrics.read_text(), processes)
    kill(processes)
    run(folder, environment=server.environment)
    (file,) = folder.path.glob("wandb/offline-run-*/*.wandb")
    written = read_history(file)
    assert [plain(row) for row in written] == expected(folder)
    assert [name for row in written for name in row if name.startswith("attention/")] == ["attention/val"] * 2
    assert server.requests == []

    assert send_now(folder, "online", seconds=20, say=pytest.fail) == 0
    assert received(server.only_run) == expected(folder)
    sent = read_sent(folder)
    assert sent is not None
    assert sent.num_rows == len(written)


def test_an_upload_that_breaks_off_is_taken_up_where_it_stopped(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path, **SHORT)
    write_rows(folder, 1, 40)
    server.fault, server.fault_matches = DROP, "UpsertBucket"
    said: list[str] = []
    assert send_now(folder, "online", seconds=20, say=said.append) == 3
    assert len(said) == 1
    server.fault = None
    assert send_now(folder, "online", seconds=20, say=said.append) == 0
    write_rows(folder, 41, 50)
    assert send_now(folder, "online", seconds=20, say=said.append) == 0
    assert received(server.only_run) == expected(folder)


# -------------------------------------------------------------------------------------------------------------------- faults


def test_a_dead_server_changes_nothing_of_a_run(tmp_path: Path, server: WandbServer) -> None:
    """Row 17 of the fault table with real training: the same weights, rows and figures as a run without W&B."""
    server.fault = 500
    folder = run(prepared(tmp_path / "with", **SHORT), environment=server.environment)
    without = run(prepare(tmp_path / "without", toy_spec()))
    there, here = outcome(folder), outcome(without)
    assert (there.rows, there.best, there.evaluation) == (here.rows, here.best, here.evaluation)
    weights = [name for name in here.checksums if name.endswith("model.safetensors")]
    assert [there.checksums[name] for name in weights] == [here.checksums[name] for name in weights]
    assert events(folder, "wandb_degraded")
    assert "tclx sync" in (folder.path / "stderr0.txt").read_text()
    state = folder.read_state()
    assert state is not None
    assert state.status == "finished"


# The whole matrix runs with `just faults`; what is left out here ends in the same way.
def test_on_a_full_disk_every_row_arrives_without_images(tmp_path: Path, server: WandbServer) -> None:
    folder = run(prepared(tmp_path, mode="disabled"), environment=server.environment)
    with small_disk(folder.path / "wandb", size="64k"):
        assert send_now(folder, "online", seconds=60, say=pytest.fail) == 0
    assert received(server.only_run) == expected(folder)
    assert not any(name.startswith("attention/") for row in server.only_run.rows for name in row)
    (event,) = events(folder, "wandb_without_images")
    assert "No space left" in event["reason"]


@pytest.mark.parametrize("damage", ["cut", "no base64"])
def test_of_examples_that_cannot_be_read_the_figures_arrive_all_the_same(
    tmp_path: Path, server: WandbServer, damage: str
) -> None:
    folder = run(prepared(tmp_path, mode="disabled"), environment=server.environment)
    kept = folder.examples("retrieval", "test")
    content = json.loads(kept.read_text())
    content["pictures"] = dict.fromkeys(content["pictures"], "x")
    kept.write_text(kept.read_text()[:200] if damage == "cut" else json.dumps(content))
    assert send_now(folder, "online", seconds=60, say=pytest.fail) == 0
    assert received(server.only_run) == expected(folder)
    (event,) = events(folder, "wandb_without_images")
    assert str(kept) in event["reason"] if damage == "cut" else "base64" in event["reason"]


@pytest.mark.parametrize("fault", [429, SILENCE, pytest.param(DROP, marks=RARE), pytest.param("nobody", marks=RARE)])
def test_a_server_that_does_not_answer_at_the_start(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, fault: int | str
) -> None:
    folder = prepared(tmp_path, **SHORT)
    server.fault = fault
    if fault == "nobody":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said: list[str] = []
    assert upload(folder, lambda: write_rows(folder, 1, 20), say=said.append) < FINISH_SECONDS + 1
    assert f"tclx sync {folder.path}" in said[-1]
    assert events(folder, "wandb_degraded")
    assert len(read(folder.metrics)) == 20
    assert_no_secret(folder, *said)


@pytest.mark.parametrize("key", ["f" * 40, pytest.param("too-short", marks=RARE), pytest.param(None, marks=RARE)])
def test_a_wrong_key_is_said_once_and_shown_nowhere(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    folder = prepared(tmp_path)
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("WANDB_API_KEY", key)
    said: list[str] = []

    def body() -> None:
        write_rows(folder, 1, 20)
        wait_for(lambda: len(said) > 0)  # while it trains, not only at its end

    assert upload(folder, body, say=said.append) < 2
    (line,) = said
    assert "wandb login" in line
    assert len(events(folder, "wandb_degraded")) == 1
    assert_no_secret(folder, *said, key=key or API_KEY)
    assert send_now(folder, "online", seconds=20, say=said.append) == 3


@pytest.mark.parametrize("fault", [401, DROP, *(pytest.param(fault, marks=RARE) for fault in (429, 500, SILENCE))])
def test_a_server_that_is_lost_in_the_middle(tmp_path: Path, server: WandbServer, fault: int | str) -> None:
    folder = prepared(tmp_path, **SHORT)
    said: list[str] = []
    longest = 0.0

    def body() -> None:
        nonlocal longest
        write_rows(folder, 1, 10)
        wait_for(lambda: "file_stream" in server.requests)
        server.fault = fault
        for step in range(11, 31):
            before = time.monotonic()
            write_rows(folder, step, step)
            longest = max(longest, time.monotonic() - before)

    assert upload(folder, body, say=said.append) < FINISH_SECONDS + 1
    assert longest < 0.5
    assert "tclx sync" in said[-1]
    assert events(folder, "wandb_degraded")
    server.fault = None
    assert send_now(folder, "online", seconds=20, say=said.append) == 0
    assert received(server.only_run) == expected(folder)


def test_a_run_that_is_asked_to_stop_does_not_wait_long(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path, init_timeout_seconds=30, finish_timeout_seconds=60)
    server.fault = SILENCE

    def body() -> None:
        write_rows(folder, 1, 5)
        raise Interrupted("SIGTERM")

    before = time.monotonic()
    with pytest.raises(Interrupted):
        upload(folder, body)
    assert time.monotonic() - before < 7


def test_signals_to_the_whole_job_do_not_end_the_upload(tmp_path: Path, server: WandbServer) -> None:
    folder = prepared(tmp_path)

    def body() -> None:
        write_rows(folder, 1, 10)
        wait_for(lambda: "file_stream" in server.requests)
        (process,) = children("tclx.track.wandb.upload")
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            process.send_signal(number)
        write_rows(folder, 11, 20)

    upload(folder, body)
    assert received(server.only_run) == expected(folder)
